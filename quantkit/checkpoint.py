"""Where weights come from: safetensors files and GGUF. Headers first, rows on demand.

A `SourceTensor` says where a tensor's bytes lie; `Files.read_rows` fetches some of its rows with
one `pread`. Nothing is mapped and nothing is cached, so memory is what the caller asks for.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
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
from quantkit.inputs import File, Input, LocalInput, map_files, open_input
from quantkit.remote import RemoteFile
from quantkit.safetensors_file import read_entries
from quantkit.splits import split_siblings
from quantkit.torch_file import read_torch_entries

BANDS = 3  # matrices held whole at once, where the columns of a file on the Hub are wanted
INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"

Key = tuple[str, tuple[int, ...], int, int]


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
    path: File
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
    def is_remote(self) -> bool:
        """Whether its rows come from a server."""
        return isinstance(self.path, RemoteFile)

    @property
    def _is_vector(self) -> bool:
        return self.flat or (len(self.shape) == 1 and self.ggml.is_float)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.ggml.row_bytes(self.n_per_row)


class Files:
    """The open input files. One `Files` serves any number of threads."""

    def __init__(self, paths: Iterable[File]) -> None:
        self._stop = threading.Event()
        self._inputs: dict[File, Input] = {}
        for path in dict.fromkeys(paths):
            self._inputs[path] = open_input(path, self._stop)
        self._bands: dict[Key, Future[np.ndarray[Any, Any]]] = {}
        self._lock = threading.Lock()
        # a source that would push everything else out of memory is kept out of it
        if sum(f.size for f in self._inputs.values()) > disk.memory_bytes() // 4:
            for opened in self._inputs.values():
                if isinstance(opened, LocalInput):
                    opened.spare_memory()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *exc: object) -> None:
        for opened in self._inputs.values():
            opened.close()
        self._inputs.clear()

    def stop(self) -> None:
        """End reads that wait for a server; they raise SourceUnreachable."""
        self._stop.set()

    def locate(self, t: SourceTensor, row: int) -> tuple[int, int] | None:
        """The descriptor of a tensor's file, and the offset of one of its rows there; None if it
        is not on this machine."""
        opened = self._inputs[t.path]
        if not isinstance(opened, LocalInput):
            return None
        return opened.fd, t.offset + row * t.row_bytes

    def expect(self, t: SourceTensor, first: int, count: int) -> bool:
        """Have the system fetch rows that will be read soon. False if reading them may take long
        all the same: they come from a server, or past the system's memory."""
        if t.data is not None:
            return True
        expected = True
        for part in t.parts or (t,):  # each as large a share of its bytes
            opened, size = self._inputs[part.path], part.n_rows * part.row_bytes
            start, end = (size * row // t.n_rows for row in (first, first + count))
            if not (
                isinstance(opened, LocalInput) and opened.expect(end - start, part.offset + start)
            ):
                expected = False
        return expected

    def read_rows(self, t: SourceTensor, first: int, count: int) -> np.ndarray[Any, Any]:
        """Rows `first` to `first + count` of `t`.

        Returns `[count, n_per_row]` in float32, float16 or bfloat16, or, for block types,
        uint8 `[count, bytes per row]`. Raises CorruptFile if the file ends before they do.
        """
        if t.data is not None:
            return t.data.reshape(t.n_rows, t.n_per_row)[first : first + count]
        data = self._read(t, t.offset + first * t.row_bytes, count * t.row_bytes)
        return np.frombuffer(data, numpy_dtype(t.ggml)).reshape(count, -1)

    def read_columns(
        self, t: SourceTensor, first: int, count: int, column: int, width: int
    ) -> np.ndarray[Any, Any]:
        """`width` columns of rows `first` to `first + count` of a float `t`: `[count, width]`."""
        if t.is_remote:  # a request a row would be far too many
            return self._band(t, first, count)[:, column : column + width]
        size = t.row_bytes // t.n_per_row
        starts = (t.offset + r * t.row_bytes + column * size for r in range(first, first + count))
        data = b"".join(self._read(t, start, width * size) for start in starts)
        return np.frombuffer(data, numpy_dtype(t.ggml)).reshape(count, width)

    def _band(self, t: SourceTensor, first: int, count: int) -> np.ndarray[Any, Any]:
        """Rows that are asked for piece by piece: fetched once, and held until others are."""
        key = (t.name, t.shape, first, count)
        with self._lock:
            band = self._bands.get(key)
            mine = band is None
            if band is None:
                band = self._bands[key] = Future()
                if len(self._bands) == BANDS:  # chunks at work may still hold the one that goes
                    del self._bands[next(iter(self._bands))]
        if mine:
            try:
                band.set_result(self.read_rows(t, first, count))
            except BaseException as e:
                band.set_exception(e)
        return band.result()

    def _read(self, t: SourceTensor, offset: int, size: int) -> bytes | bytearray | memoryview:
        opened = self._inputs[t.path]
        try:
            data = opened.pread(size, offset)
        except OSError as e:
            raise SourceError(
                f"{t.path}: tensor {t.name} cannot be read ({e.strerror}); "
                "see to the disk and run it again"
            ) from None
        if len(data) != size:
            raise CorruptFile(
                f"{t.path}: tensor {t.name} ends early: {size} bytes wanted, "
                f"{len(data)} there; the file is truncated"
            )
        return data


def numpy_dtype(ggml: GGMLType) -> Any:
    """The dtype in which values of a type are read; uint8 for blocks."""
    if ggml.name == "BF16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    types = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}
    return types.get(ggml.name, np.uint8)


# safetensors dtype -> the ggml type that is read, for weights and for what they are made of
_WEIGHTS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_RAW = {"F8_E4M3": "I8", "F8_E5M2": "I8", "F8_E8M0": "I8", "U8": "I8", "I8": "I8", "I32": "I32",
        "I64": "I64"}  # fmt: skip


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


def open_gguf(path: File) -> tuple[Header, list[SourceTensor]]:
    """The header of a GGUF file and its tensors in file order."""
    header = read_header(path)
    tensors = []
    for t in header.tensors:
        ggml = type_by_id(t.ggml_type)
        assert ggml is not None  # read_header refuses unknown types
        offset = header.data_offset + t.offset
        tensors.append(SourceTensor(t.name, ggml, t.shape, path, offset))
    return header, tensors


def open_gguf_set(
    path: File, files: Mapping[str, File] | None = None
) -> tuple[Header, list[SourceTensor]]:
    """The first header of a GGUF file's set of splits, and the tensors of all of them.

    `files`: where the others are, by name, if not beside it. Raises ShardMissing, CorruptFile
    (splits that do not belong together) beside `open_gguf`'s.
    """
    header, tensors = open_gguf(path)
    if header.get("split.count", 0) < 2:
        return header, tensors
    names = split_siblings(path.name)
    if files is None:
        assert isinstance(path, Path)
        files = {f.name: f for f in map(path.with_name, names) if f.is_file()}
    if missing := [name for name in names if name not in files]:
        raise ShardMissing(
            f"{path.parent}: {len(missing)} of {len(names)} splits are not there: {missing[0]}"
        )
    opened = map_files(open_gguf, [files[name] for name in names])
    found = [(h.get("split.no"), h.get("split.count")) for h, _ in opened]
    if found != [(i, len(names)) for i in range(len(names))]:
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
