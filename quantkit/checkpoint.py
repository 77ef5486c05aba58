"""Where weights come from: safetensors files and GGUF. Headers first, rows on demand.

A `SourceTensor` says where a tensor's bytes lie; `Files.read_rows` fetches some of its rows with
one `pread`. Nothing is mapped and nothing is cached, so memory is what the caller asks for.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import disk
from quantkit.errors import (
    CorruptFile,
    ShardMissing,
    SourceError,
    SourceNotFound,
    UnsupportedSource,
)
from quantkit.ggml_types import GGMLType, type_by_id, type_by_name
from quantkit.gguf_file import Header, read_header
from quantkit.splits import split_siblings

LARGE = 1 << 30  # bytes
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of the input, as rows: of `shape[-1]` weights, or of one weight where it has only
    one axis (so that a permutation of rows serves a bias as well) or is `flat`.

    `data` holds the values of the few tensors that are computed from the config instead of read.
    `raw` is the stored dtype of what is not weights by itself; with a `coding`, the weights are
    made of such `parts` (`codings.py`).
    """

    name: str
    ggml: GGMLType
    shape: tuple[int, ...]  # NumPy order
    path: Path
    offset: int  # bytes
    data: np.ndarray[Any, np.dtype[np.float32]] | None = None
    flat: bool = False
    raw: str = ""
    coding: str = ""
    parts: tuple[SourceTensor, ...] = ()
    settings: tuple[int, ...] = ()  # of the coding

    @property
    def n_per_row(self) -> int:
        """Weights in a row."""
        return 1 if self._is_vector else self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows, all leading axes taken together."""
        return prod(self.shape) // self.n_per_row

    @property
    def _is_vector(self) -> bool:
        return self.flat or (len(self.shape) == 1 and self.ggml.is_float)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.ggml.row_bytes(self.n_per_row)


class Files:
    """The open input files. One `Files` serves any number of threads."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._fds: dict[Path, int] = {}
        for path in sorted(set(paths)):
            self._fds[path] = disk.open_read(path)
        # a source that would push everything else out of memory gives its pages back
        self._large = sum(os.fstat(fd).st_size for fd in self._fds.values()) > LARGE

    def __enter__(self) -> Files:
        return self

    def locate(self, t: SourceTensor, row: int) -> tuple[int, int]:
        """The descriptor of a tensor's file, and the offset of one of its rows there."""
        return self._fds[t.path], t.offset + row * t.row_bytes

    def __exit__(self, *exc: object) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def read_rows(self, t: SourceTensor, first: int, count: int) -> np.ndarray[Any, Any]:
        """Rows `first` to `first + count` of `t`.

        Returns `[count, n_per_row]` in float32, float16 or bfloat16, or, for block types,
        uint8 `[count, bytes per row]`. Raises CorruptFile if the file ends before they do.
        """
        if t.data is not None:
            return t.data.reshape(t.n_rows, t.n_per_row)[first : first + count]
        data = self._read(t, t.offset + first * t.row_bytes, count * t.row_bytes)
        return np.frombuffer(data, _numpy_dtype(t.ggml)).reshape(count, -1)

    def read_columns(
        self, t: SourceTensor, first: int, count: int, column: int, width: int
    ) -> np.ndarray[Any, Any]:
        """`width` columns of rows `first` to `first + count` of a float `t`: `[count, width]`."""
        size = t.row_bytes // t.n_per_row
        starts = (t.offset + r * t.row_bytes + column * size for r in range(first, first + count))
        data = b"".join(self._read(t, start, width * size) for start in starts)
        return np.frombuffer(data, _numpy_dtype(t.ggml)).reshape(count, width)

    def _read(self, t: SourceTensor, offset: int, size: int) -> bytes:
        fd = self._fds[t.path]
        try:
            data = disk.pread(fd, size, offset)
        except OSError as e:
            raise SourceError(
                f"{t.path}: tensor {t.name} cannot be read ({e.strerror}); "
                "see to the disk and run it again"
            ) from None
        if self._large:
            disk.forget(fd, offset, size)
        if len(data) != size:
            raise CorruptFile(
                f"{t.path}: tensor {t.name} ends early: {size} bytes wanted, "
                f"{len(data)} there; the file is truncated"
            )
        return data


def _numpy_dtype(ggml: GGMLType) -> Any:
    if ggml.name == "BF16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    types = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}
    return types.get(ggml.name, np.uint8)


# safetensors dtype -> the ggml type that is read, for weights and for what they are made of
_WEIGHTS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_RAW = {"F8_E4M3": "I8", "F8_E5M2": "I8", "F8_E8M0": "I8", "U8": "I8", "I8": "I8", "I32": "I32",
        "I64": "I64"}  # fmt: skip


def safetensors_of(directory: Path) -> list[SourceTensor]:
    """Every tensor of a checkpoint directory: file after file, sorted by name in each.

    That is the order in which llama.cpp's converter meets them. Raises SourceNotFound,
    ShardMissing, CorruptFile, UnsupportedSource.
    """
    index = directory / INDEX
    if index.is_file():
        return _indexed(directory, index)
    paths = sorted(directory.glob("model*.safetensors"))
    if not paths:
        if any(directory.glob("pytorch_model*.bin")):
            raise UnsupportedSource(
                f"{directory}: only .bin weights here; save the model as safetensors "
                "(save_pretrained does) and try again"
            )
        raise SourceNotFound(f"{directory}: no model*.safetensors and no {INDEX} in it")
    return _unique([t for path in paths for t in read_safetensors(path)])


def _indexed(directory: Path, index: Path) -> list[SourceTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CorruptFile(f"{index}: 'weight_map' is not a table of tensor names to file names")
    files = sorted(set(weight_map.values()))
    for name in files:
        if name != os.path.basename(name):
            raise CorruptFile(f"{index}: {name!r} points outside the checkpoint's directory")
    if missing := [name for name in files if not (directory / name).is_file()]:
        raise ShardMissing(
            f"{directory}: {len(missing)} of {len(files)} weight files are not there: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; download them again"
        )
    tensors = _unique([t for name in files for t in read_safetensors(directory / name)])
    found = {t.name for t in tensors}
    if lost := sorted(weight_map.keys() - found):
        raise CorruptFile(
            f"{directory}: {INDEX} lists {lost[0]} in {weight_map[lost[0]]}, which does not "
            f"hold it ({len(lost)} such tensors); download the checkpoint again"
        )
    if extra := sorted(found - weight_map.keys()):
        raise CorruptFile(
            f"{directory}: tensor {extra[0]} is in a shard but not in {INDEX} "
            f"({len(extra)} such tensors); the shards and the index are of different models"
        )
    return tensors


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


def read_safetensors(path: Path) -> list[SourceTensor]:
    """The tensors of one safetensors file, sorted by name.

    The safetensors library validates the header (sizes, overlaps, the file's length); the byte
    offsets, which it does not hand out, are then read from the same JSON.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            entries = json.loads(f.read(size))
    except (SafetensorError, ValueError, struct.error) as e:
        raise CorruptFile(
            f"{path}: not a whole safetensors file ({e}); download it again"
        ) from None
    entries.pop("__metadata__", None)
    out = []
    for name, entry in sorted(entries.items()):
        dtype = entry["dtype"]
        ggml = _WEIGHTS.get(dtype) or _RAW.get(dtype)
        if ggml is None:
            raise UnsupportedSource(
                f"{path}: tensor {name} is {dtype}; F32, F16 and BF16 are read"
            )
        # a scalar is a row of one weight
        shape = tuple(entry["shape"]) or (1,)
        start = 8 + size + entry["data_offsets"][0]
        raw = "" if dtype in _WEIGHTS else dtype
        out.append(SourceTensor(name, type_by_name(ggml), shape, path, start, raw=raw))
    return out


def open_gguf(path: Path) -> tuple[Header, list[SourceTensor]]:
    """The header of a GGUF file and its tensors in file order."""
    header = read_header(path)
    tensors = []
    for t in header.tensors:
        ggml = type_by_id(t.ggml_type)
        assert ggml is not None  # read_header refuses unknown types
        offset = header.data_offset + t.offset
        tensors.append(SourceTensor(t.name, ggml, t.shape, path, offset))
    return header, tensors


def open_gguf_set(path: Path) -> tuple[Header, list[SourceTensor]]:
    """The first header of a GGUF file's set of splits, and the tensors of all of them.

    Raises ShardMissing, CorruptFile (splits that do not belong together) beside `open_gguf`'s.
    """
    header, tensors = open_gguf(path)
    if header.get("split.count", 0) < 2:
        return header, tensors
    files = split_siblings(path)
    if missing := [f.name for f in files if not f.is_file()]:
        raise ShardMissing(
            f"{path.parent}: {len(missing)} of {len(files)} splits are not there: {missing[0]}"
        )
    opened = [open_gguf(f) for f in files]
    found = [(h.get("split.no"), h.get("split.count")) for h, _ in opened]
    if found != [(i, len(files)) for i in range(len(files))]:
        raise CorruptFile(f"{path}: the splits beside it are not of one set: {found}")
    first = opened[0][0]
    tensors = _unique([t for _, shard in opened for t in shard])
    if first.get("split.tensors.count") != len(tensors):
        raise CorruptFile(
            f"{path}: {first.get('split.tensors.count')} tensors are promised, "
            f"{len(tensors)} are in the splits"
        )
    return first, tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises SourceNotFound, CorruptFile."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise CorruptFile(f"{path}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value
