"""The tensors of a GGUF file, or of the set of splits that it is one of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from quantkit.errors import (
    CorruptFile,
    ShardMissing,
    SourceNotFound,
    UnsupportedSource,
)
from quantkit.gguf.container import Header, read_header
from quantkit.gguf.schema import check
from quantkit.gguf.splits import is_gguf, split_siblings, unsplit_name
from quantkit.gguf.types import type_by_id
from quantkit.plain_text import first_of
from quantkit.source.checkpoint import _unique
from quantkit.source.mistaken import no_gguf
from quantkit.source.tensors import SourceTensor
from quantkit.storage.inputs import File, map_files
from quantkit.storage.substitutes import check_finished


def open_gguf(path: File) -> tuple[Header, list[SourceTensor]]:
    """The header of a GGUF file, its metadata of the kinds that are expected, and its tensors in
    file order. Raises CorruptFile beside `read_header`'s."""
    check_finished(path)
    header = read_header(path)
    check(header.kv, path)
    tensors = []
    for t in header.tensors:
        ggml = type_by_id(t.ggml_type)
        assert ggml is not None  # read_header refuses unknown types
        offset = header.data_offset + t.offset
        tensors.append(SourceTensor(t.name, ggml, t.shape, path, offset))
    return header, tensors


def models_here(directory: Path) -> list[Path]:
    """The GGUF models in a directory, in the order of their names: of a set of splits, the first
    that is there."""
    files = sorted(p for p in directory.iterdir() if is_gguf(p) and p.is_file())
    return list({unsplit_name(p.name): p for p in reversed(files)}.values())[::-1]


def model_files(path: Path) -> list[Path]:
    """A GGUF file as it is, or the models in a directory. Raises SourceNotFound if it has none,
    UnsupportedSource for an address, from which a `Path` has made a path."""
    if re.match(r"(hf|https?):", str(path)) and not path.exists():
        raise UnsupportedSource(
            f"{path}: a file of this machine is expected; download it first (`hf download`)"
        )
    if not path.is_dir():
        return [path]
    if not (found := models_here(path)):
        inside = next((p for p in sorted(path.iterdir()) if p.is_dir() and models_here(p)), None)
        hint = f"; {inside} has some" if inside else ""
        raise SourceNotFound(f"{path}: no GGUF file in it{hint}")
    return found


def open_gguf_set(
    path: File, files: Mapping[str, File] | None = None
) -> tuple[Header, list[SourceTensor]]:
    """The first header of a GGUF file's set of splits, and the tensors of all of them.

    `files`: where the others are, by name, if not beside it. Raises ShardMissing, CorruptFile
    (splits that do not belong together) beside `open_gguf`'s.
    """
    if isinstance(path, Path) and (what := no_gguf(path)):
        raise UnsupportedSource(f"{path} is {what}")
    header, tensors = open_gguf(path)
    if header.get("split.count", 0) < 2:
        return header, tensors
    names = split_siblings(path.name)
    if len(names) < 2:
        raise CorruptFile(
            f"{path}: it is split {header.get('split.no', 0) + 1} of {header.get('split.count')} "
            "under another name; splits are found by theirs: NAME-00001-of-"
            f"{header.get('split.count'):05d}.gguf, and so on"
        )
    if files is None:
        assert isinstance(path, Path)
        files = {f.name: f for f in map(path.with_name, names) if f.is_file()}
    if missing := [name for name in names if name not in files]:
        raise ShardMissing(
            f"{path.parent}: {len(missing)} of {len(names)} splits are not there: "
            f"{first_of(missing)}; all of them are one model"
        )
    opened = map_files(open_gguf, [files[name] for name in names])
    found = [(h.get("split.no"), h.get("split.count")) for h, _ in opened]
    if found != [(i, len(names)) for i in range(len(names))]:
        raise CorruptFile(
            f"{path}: the splits beside it are not of one set, in order, by their headers: "
            + ", ".join(
                f"{name} is {no} of {n}" for name, (no, n) in zip(names, found, strict=True)
            )
        )
    first = opened[0][0]
    tensors = _unique([t for _, shard in opened for t in shard])
    if first.get("split.tensors.count") != len(tensors):
        raise CorruptFile(
            f"{path}: {first.get('split.tensors.count')} tensors are promised, "
            f"{len(tensors)} are in the splits"
        )
    return first, tensors
