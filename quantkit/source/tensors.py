"""What a tensor of the input is, and its rows on demand.

A `SourceTensor` says where a tensor's bytes lie; `Files.read_rows` fetches some of its rows with
one `pread`. Nothing is mapped and nothing is cached, so memory is what the caller asks for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from quantkit.errors import (
    CorruptFile,
    SourceError,
)
from quantkit.gguf.types import GGMLType
from quantkit.hub.repository import RemoteFile
from quantkit.storage import os_files
from quantkit.storage.inputs import File, Input, LocalInput, open_input

_NUMBERS: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I16": np.int16, "I32": np.int32,
    "I64": np.int64,
}  # fmt: skip
_AT_ONCE = 1 << 24  # bytes of each of two tensors that are compared
BANDS = 3  # matrices held whole at once, where the columns of a file on the Hub are wanted


Key = tuple[str, tuple[int, ...], int, int]


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of the input, as rows: of `shape[-1]` weights, or of one weight where it has only
    one axis (so that a permutation of rows serves a bias as well) or is `flat`.

    `data` holds the values of the few tensors that are computed from the config instead of read.
    `raw` is the stored dtype of what is not weights by itself; with a `coding`, the weights are
    made of such `parts` (`codings/`).
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
        unique = dict.fromkeys(paths)
        os_files.allow_open(len(unique))
        for path in unique:
            self._inputs[path] = open_input(path, self._stop)
        self._bands: dict[Key, Future[np.ndarray[Any, Any]]] = {}
        self._lock = threading.Lock()
        # a source that would push everything else out of memory is kept out of it
        if sum(f.size for f in self._inputs.values()) > os_files.memory_bytes() // 4:
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


def same_bytes(one: SourceTensor, other: SourceTensor) -> bool:
    """Whether two tensors of files are the same to the last bit. Raises SourceError."""
    if (one.ggml, one.raw, one.shape) != (other.ggml, other.raw, other.shape):
        return False
    step = max(1, _AT_ONCE // one.row_bytes)
    with Files([one.path, other.path]) as files:
        for at in range(0, one.n_rows, step):
            n = min(step, one.n_rows - at)
            a, b = (files.read_rows(t, at, n).view(np.uint8) for t in (one, other))
            if not np.array_equal(a, b):
                return False
    return True


def numpy_dtype(ggml: GGMLType) -> Any:
    """The dtype in which values of a type are read; uint8 for blocks."""
    if ggml.name == "BF16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return _NUMBERS.get(ggml.name, np.uint8)
