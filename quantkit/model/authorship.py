"""Whose work a model is, as a person says it: `--model-name`, and `--metadata` with a file of
`general.*` keys, which is read as llama.cpp's converter reads one."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.architectures.rules import ConversionOptions
from quantkit.errors import CorruptFile, SourceError, SourceNotFound, UsageError
from quantkit.plain_text import is_utf8
from quantkit.storage.parse import MAX_JSON, parse_json

if TYPE_CHECKING:
    from gguf import Metadata


@dataclass(frozen=True)
class Kind:
    """What a field of gguf's Metadata may hold: Python types, and a word for them."""

    words: str
    types: tuple[type, ...]


TEXT, TEXT_OR_LIST = Kind("text", (str,)), Kind("text", (str, list))
INTEGER, NUMBER = Kind("a whole number", (int,)), Kind("a number", (int, float))
LIST = Kind("a list", (list,))

# the fields of gguf.Metadata, which does not check them itself
FIELDS = {
    "sampling_sequence": TEXT, "sampling_top_k": INTEGER, "sampling_top_p": NUMBER,
    "sampling_min_p": NUMBER, "sampling_xtc_probability": NUMBER, "sampling_xtc_threshold": NUMBER,
    "sampling_temp": NUMBER, "sampling_penalty_last_n": INTEGER, "sampling_penalty_repeat": NUMBER,
    "sampling_mirostat": INTEGER, "sampling_mirostat_tau": NUMBER, "sampling_mirostat_eta": NUMBER,
    "name": TEXT, "author": TEXT, "version": TEXT, "organization": TEXT, "finetune": TEXT,
    "basename": TEXT, "description": TEXT, "quantized_by": TEXT, "size_label": TEXT, "url": TEXT,
    "doi": TEXT, "uuid": TEXT, "repo_url": TEXT, "source_url": TEXT, "source_doi": TEXT,
    "source_uuid": TEXT, "source_repo_url": TEXT, "license": TEXT_OR_LIST, "license_name": TEXT,
    "license_link": TEXT, "base_models": LIST, "tags": LIST, "languages": LIST, "datasets": LIST,
}  # fmt: skip

# what an entry of base_models and of datasets may say, each of them text
ENTRY = (
    "name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url",
)  # fmt: skip
GROUPS = ("sampling", "license", "source")  # their fields are keys with a dot more


def _key(field: str) -> str:
    """The key that a field is written as in a file for `--metadata`."""
    group, _, rest = field.partition("_")
    return f"general.{group}.{rest}" if group in GROUPS and rest else f"general.{field}"


# the licence itself is the card's alone, as the converter has it
KEYS = {_key(field): field for field in FIELDS if field != "license"}


def override(metadata: Metadata, options: ConversionOptions) -> None:
    """Set the fields that a person names. Raises SourceNotFound, SourceError, CorruptFile,
    UsageError."""
    if options.metadata is not None:
        for key, value in _read(options.metadata).items():
            setattr(metadata, KEYS[key], value)
    if options.model_name is not None:
        if not _is_text(options.model_name):
            raise UsageError(f"--model-name: {options.model_name!r} is not UTF-8")
        metadata.name = options.model_name


def _read(path: Path) -> dict[str, Any]:
    """The keys of a file, checked. Raises SourceNotFound, SourceError, CorruptFile."""
    try:
        with path.open("rb") as file:
            values = parse_json(file.read(MAX_JSON + 1), str(path))
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: no such file (--metadata)") from None
    except OSError as e:
        raise SourceError(f"{path}: cannot be read ({e.strerror})") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise CorruptFile(f"{path}: a JSON object with keys of general.* is expected, not {kind}")
    for key, value in values.items():
        _check(path, key, value)
    return values


def _check(path: Path, key: str, value: Any) -> None:
    if key not in KEYS:
        near = get_close_matches(key, KEYS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if key == "general.license":
            hint = "; the licence is that of the model card (README.md)"
        raise CorruptFile(f"{path}: {key!r} is no key that --metadata sets{hint}")
    field = KEYS[key]
    kind = FIELDS[field]
    if value is None:  # the key is left out
        return
    if field in ("base_models", "datasets"):
        fits, words = (
            isinstance(value, list) and all(map(_is_entry, value)),
            (f"a list of objects with texts, of {', '.join(ENTRY)}"),
        )
    elif kind is LIST:
        fits, words = isinstance(value, list) and all(map(_is_text, value)), "a list of texts"
    elif kind is TEXT:
        fits, words = _is_text(value), kind.words
    else:
        fits, words = _is_number(value, kind), f"{kind.words} that a file can hold"
    if not fits:
        raise CorruptFile(f"{path}: {key} is {_short(value)}, not {words}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_utf8(value)


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and all(k in ENTRY and _is_text(v) for k, v in value.items())


def _is_number(value: Any, kind: Kind) -> bool:
    """INT32 or FLOAT32 hold it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind is INTEGER:
        return isinstance(value, int) and -(2**31) <= value < 2**31
    return abs(value) < 3.4e38


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]} ..."
