"""The files of a Hugging Face checkpoint: small ones, read once, and where its weights are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import CorruptFile, SourceError, SourceNotFound, UnsupportedSource
from quantkit.hub.repository import CARD, LARGEST_CARD, LARGEST_SMALL
from quantkit.source.hub_cache import cached_model
from quantkit.storage.inputs import File
from quantkit.storage.parse import is_no_json, parse_json
from quantkit.storage.substitutes import substitute


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's small files (config, tokenizer, model card ...) and its weights.

    A small file is read when it is first asked for, and parsed once; callers share what they get
    and must not change it. The small files of a model on the Hub lie in a temporary `directory`:
    errors name it by `where`.
    """

    directory: Path  # holds the small files
    where: str  # the checkpoint as a person knows it: its directory, or hf://ORG/MODEL
    weights: Mapping[str, File]  # by file name
    _contents: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    _objects: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def local(cls, directory: Path) -> CheckpointFiles:
        """A checkpoint directory on this machine. Raises SourceNotFound."""
        if not directory.is_dir():
            what = "a file; name the directory of a checkpoint" if directory.exists() else None
            raise SourceNotFound(f"{directory}: {what or 'no such directory'}")
        weights = {path.name: path for path in directory.iterdir() if path.is_file()}
        return cls(directory, str(directory), weights)

    @property
    def name(self) -> str:
        """What the model is called: the name of its directory, or of the model in the Hub's cache
        that it is a snapshot of. "_" stands for bytes that are no UTF-8."""
        cached = cached_model(self.directory)
        name = cached.rpartition("/")[2] if cached else self.directory.resolve().name
        return re.sub("[\ud800-\udfff]", "_", name)

    def inside(self, folder: str) -> CheckpointFiles:
        """The small files of a folder of it, by themselves."""
        return CheckpointFiles(self.directory / folder, self.label(folder), {})

    def path(self, name: str) -> Path:
        """Where a small file lies on this machine. Not for messages: see `label`."""
        return self.directory / name

    def label(self, name: str) -> str:
        """A small file as messages name it."""
        return f"{self.where}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is a small file of that name. Raises SourceNotFound, UnsupportedSource: it
        has the name and cannot be read, and without it the model would be another."""
        path = self.path(name)
        if path.is_file():
            return True
        if os.path.lexists(path):
            if not path.exists():
                raise SourceNotFound(
                    f"{self.label(name)} is a link to a file that is not there; download it again"
                )
            what = "a directory" if path.is_dir() else "a pipe or a device"
            raise UnsupportedSource(f"{self.label(name)} is {what}; a file is expected")
        return False

    def weight(self, name: str) -> File | None:
        """A file of weights, here or on the Hub; None if there is none."""
        return self.weights.get(name) or (self.path(name) if self.has(name) else None)

    def data(self, name: str) -> bytes:
        """A small file's bytes; of a model card that is too long, the lines that are read. Raises
        SourceNotFound, SourceError, UnsupportedSource."""
        if name not in self._contents:
            most = LARGEST_CARD if name == CARD else LARGEST_SMALL
            try:
                with self.path(name).open("rb") as file:
                    data = file.read(most + 1)
            except FileNotFoundError:
                raise SourceNotFound(f"{self.label(name)}: no such file") from None
            except OSError as e:
                raise SourceError(f"{self.label(name)}: cannot be read ({e.strerror})") from None
            if len(data) > most and name != CARD:
                size = self.path(name).stat().st_size
                raise UnsupportedSource(
                    f"{self.label(name)}: {size} bytes; {most} of such a file are read"
                )
            if len(data) > most:
                data = data[: data.rfind(b"\n") + 1]
            if not name.endswith(".md") and (what := substitute(data)):
                raise UnsupportedSource(f"{self.label(name)}: {what}")
            self._contents[name] = data
        return self._contents[name]

    def text(self, name: str) -> str:
        """A small file's text, its lines ended by "\\n". Raises SourceError, CorruptFile."""
        try:
            text = self.data(name).decode("utf-8")
        except UnicodeDecodeError as e:
            raise CorruptFile(f"{self.label(name)}: not UTF-8 ({e})") from None
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file. Raises SourceError, CorruptFile."""
        if name not in self._objects:
            self._objects[name] = self._parsed(name)
        return self._objects[name]

    def optional(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no such file. Raises CorruptFile."""
        return self.json(name) if self.has(name) else None

    def generation(self) -> dict[str, Any] | None:
        """generation_config.json; None if there is none, or where it is no JSON, or nothing (null,
        an empty list): llama.cpp's converter goes on without it. Raises SourceError,
        CorruptFile."""
        name = "generation_config.json"
        if not self.has(name) or is_no_json(self.data(name)):
            return None
        value = parse_json(self.data(name), self.label(name))
        return self.json(name) if value or isinstance(value, dict) else None

    def _parsed(self, name: str) -> dict[str, Any]:
        value = parse_json(self.data(name), self.label(name))
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise CorruptFile(f"{self.label(name)}: a JSON object is expected, not {kind}")
        return value
