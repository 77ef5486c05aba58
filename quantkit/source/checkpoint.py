"""Where weights come from: safetensors files and GGUF. Headers first, rows on demand.

A `SourceTensor` says where a tensor's bytes lie; `Files.read_rows` fetches some of its rows with
one `pread`. Nothing is mapped and nothing is cached, so memory is what the caller asks for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path

from quantkit.errors import (
    CorruptFile,
    ShardMissing,
    SourceNotFound,
    UnsupportedSource,
)
from quantkit.gguf.types import type_by_name
from quantkit.source.safetensors import read_entries
from quantkit.source.tensors import SourceTensor
from quantkit.source.torch_zip import read_torch_entries
from quantkit.storage.inputs import File, map_files
from quantkit.storage.json_files import read_json

INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"


# safetensors dtype -> the ggml type that is read, for weights and for what they are made of
_WEIGHTS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_RAW = {"F8_E4M3": "I8", "F8_E5M2": "I8", "F8_E8M0": "I8", "U8": "I8", "I8": "I8", "BOOL": "I8",
        "I16": "I16", "U16": "I16", "I32": "I32", "U32": "I32", "I64": "I64", "U64": "I64",
        "F64": "F64"}  # fmt: skip


def safetensors_of(directory: Path, files: Mapping[str, File] | None = None) -> list[SourceTensor]:
    """Every tensor of a checkpoint directory: file after file, sorted by name in each (those of
    `.bin` files in their own order).

    That is the order in which llama.cpp's converter meets them. `files`: where the weights are, by
    name, if not in the directory. Raises SourceNotFound, ShardMissing, CorruptFile,
    UnsupportedSource.
    """
    if files is None:
        files = {path.name: path for path in directory.iterdir() if path.is_file()}
    for index, pattern in (INDEX, "model*.safetensors"), (BIN_INDEX, "pytorch_model*.bin"):
        if (directory / index).is_file():
            return _indexed(directory, directory / index, files)
        if names := sorted(name for name in files if fnmatch(name, pattern)):
            return _read_all([files[name] for name in names])
    raise SourceNotFound(f"{directory}: no model*.safetensors and no {INDEX} in it")


def _indexed(directory: Path, index: Path, files: Mapping[str, File]) -> list[SourceTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CorruptFile(f"{index}: 'weight_map' is not a table of tensor names to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if name != os.path.basename(name):
            raise CorruptFile(f"{index}: {name!r} points outside the checkpoint's directory")
    if missing := [name for name in names if name not in files]:
        raise ShardMissing(
            f"{directory}: {len(missing)} of {len(names)} weight files are not there: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; download them again"
        )
    tensors = _read_all([files[name] for name in names])
    found = {t.name for t in tensors}
    if lost := sorted(weight_map.keys() - found):
        raise CorruptFile(
            f"{directory}: {index.name} lists {lost[0]} in {weight_map[lost[0]]}, which does not "
            f"hold it ({len(lost)} such tensors); download the checkpoint again"
        )
    if extra := sorted(found - weight_map.keys()):
        raise CorruptFile(
            f"{directory}: tensor {extra[0]} is in a shard but not in {index.name} "
            f"({len(extra)} such tensors); the shards and the index are of different models"
        )
    return tensors


def _read_all(files: list[File]) -> list[SourceTensor]:
    return _unique([t for found in map_files(read_weights, files) for t in found])


def _unique(tensors: list[SourceTensor]) -> list[SourceTensor]:
    seen: dict[str, SourceTensor] = {}
    for t in tensors:
        if t.name in seen:
            raise CorruptFile(
                f"tensor {t.name} is in {seen[t.name].path.name} and in {t.path.name}; "
                "keep the files of one model only"
            )
        seen[t.name] = t
    return tensors


def read_weights(path: File) -> list[SourceTensor]:
    """The tensors of one safetensors file, sorted by name, or of one `.bin` file. Raises
    CorruptFile, UnsupportedSource, and for a file on the Hub what reading it raises."""
    out = []
    for e in read_torch_entries(path) if path.suffix == ".bin" else read_entries(path):
        ggml = _WEIGHTS.get(e.dtype) or _RAW.get(e.dtype)
        if ggml is None:
            raise UnsupportedSource(
                f"{path}: tensor {e.name} is {e.dtype}; F32, F16 and BF16 are read"
            )
        # a scalar is a row of one weight
        raw = "" if e.dtype in _WEIGHTS else e.dtype
        shape = e.shape or (1,)
        out.append(SourceTensor(e.name, type_by_name(ggml), shape, path, e.start, raw=raw))
    return out
