"""`manifest.json`: what a release holds, file by file and tensor by tensor, with checksums.

Beside the facts of the model it keeps what the files were made from, as digests, so that a later
run knows whether it is the same release. While a release is being made, its record is
`manifest.json.partial`: the files that were begun, and the checksums taken so far.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantkit import LLAMA_CPP
from quantkit.errors import CorruptFile
from quantkit.loading.kinds import PREFIX
from quantkit.recipes.sensitivity import made_from, use_case
from quantkit.releases.quality import Calibration, Scores
from quantkit.reporting.inspection import Experts, Parameters
from quantkit.storage.parse import parse_json

NAME, CHECKSUMS = "manifest.json", "SHA256SUMS"
_INNERMOST = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: `offset` and `nbytes` in its file, `shape` in NumPy order."""

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    sha256: str

    def as_data(self) -> dict[str, Any]:
        """Plain values, as the manifest has them."""
        return {
            "name": self.name,
            "format": self.format,
            "shape": list(self.shape),
            "offset": self.offset,
            "bytes": self.nbytes,
            "sha256": self.sha256,
        }

    @classmethod
    def of_data(cls, data: Any) -> TensorRecord:
        """What `as_data` gave. Raises ValueError."""
        shape = _get(data, "shape", list)
        if not all(isinstance(n, int) for n in shape):
            raise ValueError("'shape' is not one of whole numbers")
        return cls(
            _get(data, "name", str),
            _get(data, "format", str),
            tuple(shape),
            _count(data, "offset"),
            _count(data, "bytes"),
            _get(data, "sha256", str),
        )


@dataclass(frozen=True)
class BegunFile:
    """A file that is to be made: `type` is its label, `plan` its `journal.plan_digest`."""

    name: str
    type: str
    plan: str

    @classmethod
    def of_data(cls, data: Any) -> BegunFile:
        """What `asdict` gave. Raises ValueError."""
        return cls(*(_get(data, key, str) for key in ("name", "type", "plan")))


@dataclass(frozen=True)
class FileRecord:
    """One file. `sha256` is empty and `tensors` are none of a file that is only planned; `seen` is
    the file's fingerprint when it was hashed, in the record of a release in the making."""

    name: str
    type: str
    nbytes: int
    sha256: str
    tensors: tuple[TensorRecord, ...]
    plan: str
    seen: str | None = None

    def as_data(self) -> dict[str, Any]:
        """Plain values, as the manifest has them."""
        return {
            "name": self.name,
            "type": self.type,
            "bytes": self.nbytes,
            "sha256": self.sha256,
            "tensors": [t.as_data() for t in self.tensors],
            "plan": self.plan,
            **({"seen": self.seen} if self.seen is not None else {}),
        }

    @classmethod
    def of_data(cls, data: Any) -> FileRecord:
        """What `as_data` gave. Raises ValueError."""
        name = _get(data, "name", str)
        if name in ("", ".", "..") or name != os.path.basename(name) or "\0" in name:
            raise ValueError(f"{name!r} is not a file of its directory")
        return cls(
            name,
            _get(data, "type", str),
            _count(data, "bytes"),
            _get(data, "sha256", str),
            tuple(map(TensorRecord.of_data, _get(data, "tensors", list))),
            _get(data, "plan", str),
            _get(data, "seen", str, type(None)),
        )


@dataclass(frozen=True)
class MadeFrom:
    """Digests of the source and of the importance matrix, as in `journal.Identity`; what the
    weights of the source were `quantized` in already (`Plan.quantized_before`); and the
    `journal.model_digest` of the text, which older manifests do not have."""

    source: str
    importance: str
    quantized: tuple[str, ...] = ()
    model: str = ""

    def as_data(self) -> dict[str, Any]:
        """Plain values, as the manifest has them."""
        data: dict[str, Any] = {"source": self.source, "importance": self.importance}
        data |= {"model": self.model} if self.model else {}
        return data | ({"quantized": list(self.quantized)} if self.quantized else {})

    @classmethod
    def of_data(cls, data: Any) -> MadeFrom:
        """What `as_data` gave. Raises ValueError."""
        quantized = data.get("quantized", []) if isinstance(data, dict) else []
        if not isinstance(quantized, list) or not all(isinstance(q, str) for q in quantized):
            raise ValueError("'quantized' is not a list of words")
        return cls(
            _get(data, "source", str),
            _get(data, "importance", str),
            tuple(quantized),
            _get(data, "model", str, type(None)) or "",
        )


@dataclass(frozen=True)
class Manifest:
    """A release. `base_model` and `repo` are names on the Hub (ORG/NAME).

    `left`: files of an earlier run that are not here, but may be on the Hub; the card does not list
    them. `errors`: the mean relative error of each type, once the release is whole. `scores`: what
    was measured in llama.cpp. `imatrix`: the matrix that lies beside the files. `llama_cpp`: the
    version whose bytes these are. `begun`: every file of a release in the making.
    """

    quantkit: str  # the version that made it
    name: str
    source: str
    architecture: str
    parameters: Parameters
    experts: Experts | None
    made_from: MadeFrom
    base_model: str | None = None
    repo: str | None = None
    files: tuple[FileRecord, ...] = ()
    left: tuple[FileRecord, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    scores: Scores | None = None
    imatrix: Calibration | None = None
    llama_cpp: str = LLAMA_CPP
    begun: tuple[BegunFile, ...] = ()

    @property
    def records(self) -> tuple[FileRecord, ...]:
        """Every file that is on record."""
        return self.files + self.left

    @property
    def kinds(self) -> list[str]:
        """The types of its files, in order."""
        return list(dict.fromkeys(f.type for f in self.files))

    def use_case(self, kind: str) -> str:
        """What the files of a type are, made of a source that was quantized before."""
        if kind not in self.errors:
            return made_from(self.made_from.quantized)
        return use_case(self.errors[kind], self.made_from.quantized)

    @property
    def texts(self) -> list[str]:
        """The same without the encoders that go with all of them."""
        return [kind for kind in self.kinds if not kind.startswith(PREFIX)]

    def first_file(self, kind: str) -> str:
        """The file to name for a type: the first of its splits."""
        return next(f.name for f in self.files if f.type == kind)

    def as_data(self) -> dict[str, Any]:
        """Plain values, as manifest.json has them."""
        data = {
            "quantkit": self.quantkit,
            "llama_cpp": self.llama_cpp,
            "name": self.name,
            "source": self.source,
            "architecture": self.architecture,
            "parameters": asdict(self.parameters),
            "experts": asdict(self.experts) if self.experts else None,
            "made_from": self.made_from.as_data(),
            "base_model": self.base_model,
            "repo": self.repo,
            "files": [f.as_data() for f in self.files],
        }
        unless_empty = {
            "left": [f.as_data() for f in self.left],
            "errors": dict(self.errors),
            "scores": self.scores and self.scores.as_data(),
            "imatrix": self.imatrix and asdict(self.imatrix),
            "begun": [asdict(f) for f in self.begun],
        }
        return data | {key: value for key, value in unless_empty.items() if value}

    @classmethod
    def of_data(cls, data: Any) -> Manifest:
        """What `as_data` gave. Raises ValueError."""
        size = _get(data, "parameters", dict)
        experts = _get(data, "experts", dict, type(None))
        errors = data.get("errors", {})
        if not isinstance(errors, dict) or not all(
            isinstance(error, int | float) for error in errors.values()
        ):
            raise ValueError("'errors' is not a number for each type")
        return cls(
            quantkit=_get(data, "quantkit", str),
            name=_get(data, "name", str),
            source=_get(data, "source", str),
            architecture=_get(data, "architecture", str),
            parameters=Parameters(_get(size, "total", int), _get(size, "active", int)),
            experts=experts
            and Experts(_get(experts, "count", int), _get(experts, "used", int, type(None))),
            made_from=MadeFrom.of_data(_get(data, "made_from", dict)),
            base_model=_get(data, "base_model", str, type(None)),
            repo=_get(data, "repo", str, type(None)),
            files=tuple(map(FileRecord.of_data, _get(data, "files", list))),
            left=tuple(map(FileRecord.of_data, data.get("left", []))),
            errors=errors,
            scores=Scores.of_data(data["scores"]) if data.get("scores") else None,
            imatrix=Calibration.of_data(data["imatrix"]) if data.get("imatrix") else None,
            llama_cpp=str(data.get("llama_cpp", LLAMA_CPP)),
            begun=tuple(map(BegunFile.of_data, data.get("begun", []))),
        )


def _get(data: Any, key: str, *kinds: type) -> Any:
    """A value of an object, of one of these types (one that is missing is None). Raises
    ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"an object is expected, not {type(data).__name__}")
    value = data.get(key)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{key!r} is {'missing' if value is None else type(value).__name__}")
    return value


def _count(data: Any, key: str) -> int:
    """A number of bytes. Raises ValueError."""
    value: int = _get(data, key, int)
    if value < 0:
        raise ValueError(f"{key!r} is {value}")
    return value


def partial_path(directory: Path) -> Path:
    """The record of a release in the making."""
    return directory / f"{NAME}.partial"


def read(path: Path) -> Manifest | None:
    """A manifest, or None if there is none. Raises CorruptFile."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Manifest:
    """A manifest from its text. Raises CorruptFile, which names `where` it is."""
    again = "remove it and run again"  # ours to write, not to be downloaded
    try:
        return Manifest.of_data(parse_json(data, where, mend=again))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise CorruptFile(f"{where}: not a manifest, or damaged ({e}); {again}") from None


def use_of(file: Path) -> str | None:
    """The use case of a file whose source was quantized before, which the file itself does not
    tell, and the manifest beside it does; None where there is no such word of it."""
    try:
        found = read(file.with_name(NAME))
    except CorruptFile:  # of something else, perhaps
        return None
    kinds = [record.type for record in found.records if record.name == file.name] if found else []
    if found is None or not kinds or not found.made_from.quantized:
        return None
    return found.use_case(kinds[0])


def as_json(manifest: Manifest) -> str:
    """The manifest's text, each tensor on one line."""
    text = json.dumps(manifest.as_data(), indent=1, ensure_ascii=False)
    return _INNERMOST.sub(lambda match: re.sub(r"\n +", " ", match[0]), text) + "\n"


def as_checksums(manifest: Manifest) -> str:
    """What `sha256sum -c` reads: of the files, and of the matrix that lies beside them."""
    sums = [(f.sha256, f.name) for f in manifest.files]
    if manifest.imatrix:
        sums.append((manifest.imatrix.sha256, manifest.imatrix.name))
    return "".join(f"{digest}  {name}\n" for digest, name in sums)
