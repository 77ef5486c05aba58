"""The tensors of a Hugging Face checkpoint, from the headers of its weight files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from quantkit.errors import CorruptFile, ShardMissing, SourceNotFound, UnsupportedSource
from quantkit.gguf.types import type_by_name
from quantkit.plain_text import first_of
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.mistaken import no_model
from quantkit.source.safetensors import read_entries
from quantkit.source.tensors import SourceTensor, same_bytes
from quantkit.source.torch_zip import read_torch_entries
from quantkit.storage.inputs import File, map_files
from quantkit.storage.substitutes import check_finished

INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")

# safetensors dtype -> the ggml type that is read, for weights and for what they are made of
_WEIGHTS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_RAW = {"F8_E4M3": "I8", "F8_E5M2": "I8", "F8_E8M0": "I8", "U8": "I8", "I8": "I8", "BOOL": "I8",
        "I16": "I16", "U16": "I16", "I32": "I32", "U32": "I32", "I64": "I64", "U64": "I64",
        "F64": "F64"}  # fmt: skip


_KINDS = (INDEX, "model*.safetensors"), (BIN_INDEX, "pytorch_model*.bin")


def has_weights(files: CheckpointFiles, prefix: str = "model") -> bool:
    """Whether a file of weights, or an index of such, is there; `prefix` as of `read_tensors`."""
    if any(fnmatchcase(name, f"{prefix}*.safetensors") for name in files.weights):
        return True
    return prefix == "model" and any(
        files.has(index) or any(fnmatchcase(name, pattern) for name in files.weights)
        for index, pattern in _KINDS
    )


def read_tensors(files: CheckpointFiles, prefix: str = "model") -> list[SourceTensor]:
    """Every tensor of a checkpoint: file after file, sorted by name in each (those of `.bin` files
    in their own order).

    That is the order in which llama.cpp's converter meets them. `prefix`: how the names of the
    files begin. Raises SourceNotFound, ShardMissing, CorruptFile, UnsupportedSource.
    """
    if prefix != "model":  # such a format has no index
        names = sorted(n for n in files.weights if fnmatchcase(n, f"{prefix}*.safetensors"))
        if not names:
            raise SourceNotFound(f"{files.where}: no {prefix}*.safetensors in it")
        return _read_all([files.weights[name] for name in names])
    for index, pattern in _KINDS:
        if files.has(index):
            return _indexed(files, index)
        if names := sorted(name for name in files.weights if fnmatchcase(name, pattern)):
            return _read_all([files.weights[name] for name in names])
    what = no_model(files)
    why = f"; {what}" if what else ""
    raise SourceNotFound(f"{files.where}: no model*.safetensors or pytorch_model*.bin in it{why}")


def _indexed(files: CheckpointFiles, index: str) -> list[SourceTensor]:
    """The tensors of the shards that an index names, which are those that it lists."""
    weight_map = files.json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CorruptFile(
            f"{files.label(index)}: 'weight_map' is not a table of tensor names to file names"
        )
    shards = sorted(set(weight_map.values()))
    for name in shards:
        if name != os.path.basename(name):
            inside = not os.path.isabs(name) and not os.path.normpath(name).startswith("..")
            wrong = "lies in a folder; move the weights beside it, and the index's names with them"
            raise CorruptFile(
                f"{files.label(index)}: {name!r} "
                + (wrong if inside else "points outside the checkpoint's directory")
            )
    if missing := [name for name in shards if name not in files.weights]:
        pattern = "model*.safetensors" if index == INDEX else "pytorch_model*.bin"
        others = sorted({n for n in files.weights if fnmatchcase(n, pattern)} - {*shards})
        cure = "download them again"
        if others:  # of another save
            cure = f"if {others[0]} is the model, {index} is left from before: delete it"
        raise ShardMissing(
            f"{files.where}: {len(missing)} of {len(shards)} weight files are not there: "
            f"{first_of(missing)}; {cure}"
        )
    whole = "model.safetensors" if index == INDEX else "pytorch_model.bin"
    if whole in files.weights and whole not in shards:  # transformers and llama.cpp read it
        raise CorruptFile(
            f"{files.where}: {whole} lies beside the {len(shards)} files of {index}, and which of "
            "them is the model is not known; keep the files of one model only"
        )
    tensors = _read_all([files.weights[name] for name in shards])
    stored = {t.name for t in tensors}
    if lost := sorted(weight_map.keys() - stored):
        raise CorruptFile(
            f"{files.where}: {index} lists {lost[0]} in {weight_map[lost[0]]}, which does not "
            f"hold it ({len(lost)} such tensors); download the checkpoint again"
        )
    if unlisted := sorted(stored - weight_map.keys()):
        raise CorruptFile(
            f"{files.where}: tensor {unlisted[0]} is in a shard but not in {index} "
            f"({len(unlisted)} such tensors); the shards and the index are of different models"
        )
    return tensors


def absent_shards(names: Iterable[str]) -> list[str]:
    """The files of a set, `model-00002-of-00003.safetensors`, that are not among those of it."""
    there = {*names}
    sets = {m.group(1, 3, 4) for m in map(_SHARD.fullmatch, there) if m}
    every = (f"{a}-{i + 1:05d}-of-{n}{end}" for a, n, end in sets for i in range(int(n)))
    return sorted({*every} - there)


def _read_all(shards: list[File]) -> list[SourceTensor]:
    return _unique([t for tensors in map_files(read_weights, shards) for t in tensors])


def _unique(tensors: list[SourceTensor]) -> list[SourceTensor]:
    """The tensors, of which each counts once, where it stands first. Raises CorruptFile if it is
    another where it stands again: llama.cpp's converter would take the last."""
    seen: dict[str, SourceTensor] = {}
    for t in tensors:
        first = seen.setdefault(t.name, t)
        if first is not t and not same_bytes(first, t):
            raise CorruptFile(
                f"{t.path.parent}: tensor {t.name} is in {first.path.name} and another in "
                f"{t.path.name}; keep the files of one model only"
            )
    return [*seen.values()]


def read_weights(path: File) -> list[SourceTensor]:
    """The tensors of one safetensors file, sorted by name, or of one `.bin` file. Raises
    CorruptFile, UnsupportedSource, and for a file on the Hub what reading it raises."""
    check_finished(path)
    tensors = []
    for e in read_torch_entries(path) if path.suffix == ".bin" else read_entries(path):
        ggml = _WEIGHTS.get(e.dtype) or _RAW.get(e.dtype)
        if ggml is None:
            raise UnsupportedSource(
                f"{path}: tensor {e.name} is {e.dtype}; F64, F32, F16 and BF16 are read"
            )
        # a scalar is a row of one weight
        raw = "" if e.dtype in _WEIGHTS else e.dtype
        shape = e.shape or (1,)
        tensors.append(SourceTensor(e.name, type_by_name(ggml), shape, path, e.start, raw=raw))
    return tensors
