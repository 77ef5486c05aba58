"""What calibration counts and sums up, as it lies in a file: llama-imatrix's GGUF, or a `.dat`.

`common/imatrix-loader.cpp` reads these files, `tools/imatrix/imatrix.cpp` writes and adds them up.
A GGUF has raw sums and counts. A `.dat` has means times the number of calls, and one number for all
experts of a tensor: what came in by that way cannot be told apart again.
"""

from __future__ import annotations

import atexit
import functools
import os
import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.calibration.statistics import SCHEMA, TensorStatistics, tensor_statistics
from quantkit.errors import ImatrixError, OutputExists, QuantkitError, SourceNotFound
from quantkit.gguf.container import (
    MAGIC,
    Header,
    KeyValue,
    TensorInfo,
    align,
    array,
    header_bytes,
    read_header,
    string,
    uint32,
)  # fmt: skip
from quantkit.gguf.types import type_by_name
from quantkit.hub.http import SCHEME
from quantkit.hub.repository import Address, Reader
from quantkit.storage.whole import check_place, replace_file

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
Bytes = NDArray[np.uint8]

SQUARES, COUNTS, SUMS = ".in_sum2", ".counts", ".in_sum"
_PART = 1 << 24  # bytes that are fetched at once
CHUNK_SIZE = 512  # tokens, where a file does not say (llama-imatrix's default)
_F32 = type_by_name("F32").id
_STRINGS = 8  # GGUF's number for text


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor's: `squares` float32 `[k * n]`, the sums of x^2 for n input channels, matrix after
    matrix; `counts` int64 `[k]`, or `[1]` for all of them, the rows x that were summed up; `sums`
    float32 like `squares`, the sums of x, where they were kept."""

    squares: Floats
    counts: Counts
    sums: Floats | None = None


@dataclass(frozen=True, eq=False)
class Sums:
    """All of a file. `entries` by the name of the tensor; `chunk_size` tokens a chunk (0: not
    known), `chunks` as the file says; `nextn`: how many of the last layers predict further tokens;
    `is_dat`: it has means, not sums; `notes`: keys that are quantkit's own."""

    entries: Mapping[str, Entry] = field(repr=False)
    datasets: tuple[str, ...] = ()
    chunk_size: int = 0
    chunks: int = 0
    nextn: int = 0
    is_dat: bool = False
    notes: tuple[KeyValue, ...] = ()


def read_sums(path: str | os.PathLike[str]) -> Sums:
    """Read a matrix of either form, here or at hf://ORG/MODEL/FILE.

    Raises SourceError: SourceNotFound, CorruptFile or UnsupportedSource (a GGUF that cannot be
    read) among others; ImatrixError: a file that is no importance matrix, or a damaged one.
    """
    given = os.fspath(path)
    file = hub_file(given) if given.startswith(SCHEME) else Path(given)
    try:
        data: Bytes = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, "u1")
    except OSError as e:
        raise SourceNotFound(f"{path}: cannot be read ({e.strerror})") from None
    return _from_gguf(file, data) if data[:4].tobytes() == MAGIC else _from_dat(file, data)


@functools.cache
def hub_file(address: str) -> Path:
    """A file of the Hub on this machine, until this process ends. Raises SourceError."""
    source = Address.parse(address)
    file = next((f for f in source.listing() if f.path == source.file), None)
    if file is None:
        raise SourceNotFound(f"{address}: no such file in the model")
    directory = tempfile.TemporaryDirectory(prefix="quantkit-")
    atexit.register(directory.cleanup)
    path = Path(directory.name) / file.name
    with closing(Reader(file)) as there, path.open("wb") as f:
        for at in range(0, file.size, _PART):
            f.write(there.pread(min(_PART, file.size - at), at))
    return path


def read_exact(path: Path) -> Sums:
    """What `as_gguf` made `exact`, in memory. Raises as `read_sums` does."""
    if not path.exists():
        raise SourceNotFound(f"{path}: no such file")
    return _from_gguf(path, np.fromfile(path, np.uint8), "I64")


def _from_gguf(path: Path, data: Bytes, counted_in: str = "F32") -> Sums:
    kind = type_by_name(counted_in).id
    header = read_header(path)
    infos = {t.name: t for t in header.tensors}
    names = sorted(
        {
            t.name.removesuffix(suffix)
            for t in header.tensors
            for suffix in (SQUARES, COUNTS, SUMS)
            if t.name.endswith(suffix)
        }
    )
    if not names:
        raise ImatrixError(f"{path} is not an importance matrix: it has no {SQUARES} tensors")
    entries = {}
    for name in names:
        for part in (name + SQUARES, name + COUNTS, name + SUMS):
            there, wanted = part in infos, kind if part.endswith(COUNTS) else _F32
            if infos[part].ggml_type != wanted if there else not part.endswith(SUMS):
                raise ImatrixError(f"{path}: tensor {part} is missing, or not F32")
        squares = _values(infos[name + SQUARES], header, data)
        counts = _values(infos[name + COUNTS], header, data, counted_in)
        exact = counts.astype(np.float64)  # whole numbers up to 2^53
        if not (np.abs(exact) <= 1 << 53).all() or squares.size % exact.size:
            raise ImatrixError(
                f"{path}: {squares.size} sums and {exact.size} counts for {name} do not go "
                "together, or a count is not a number; the file is damaged"
            )
        whole = np.trunc(exact + np.copysign(0.5, exact)).astype(np.int64)  # C's lround
        sums = _values(infos[name + SUMS], header, data) if name + SUMS in infos else None
        if sums is not None and sums.size != squares.size:
            raise ImatrixError(
                f"{path}: {squares.size} sums of squares and {sums.size} sums for {name}; "
                "the file is damaged"
            )
        entries[name] = Entry(squares, whole, sums)
    return _with_origin(path, header, entries)


def _with_origin(path: Path, header: Header, entries: dict[str, Entry]) -> Sums:
    """With the datasets and the number of chunks; llama-quantize insists on all three keys, and
    takes datasets that are no array of texts for none."""
    origin: dict[str, Any] = {}
    for key in ("datasets", "chunk_count", "chunk_size"):
        item = next((i for i in header.kv if i.key == f"imatrix.{key}"), None)
        if item is None or (key != "datasets" and item.type != "UINT32"):
            wrong = "missing" if item is None else f"{item.type}, not UINT32"
            raise ImatrixError(
                f"{path}: imatrix.{key} is {wrong}; not a matrix of llama-imatrix, or a damaged one"
            )
        texts = item.type == "ARRAY" and item.element_type == "STRING"
        origin[key] = item.value if texts or key != "datasets" else ()
    nextn = header.get("imatrix.n_layer_nextn", 0)
    return Sums(
        entries,
        tuple(map(str, origin["datasets"])),
        origin["chunk_size"],
        origin["chunk_count"],
        nextn if isinstance(nextn, int) else 0,
        notes=tuple(i for i in header.kv if i.key.startswith("quantkit.")),
    )


def _values(t: TensorInfo, header: Header, data: Bytes, kind: str = "F32") -> NDArray[Any]:
    dtype = np.dtype({"F32": "<f4", "I64": "<i8"}[kind])
    start = header.data_offset + t.offset
    return data[start : start + dtype.itemsize * prod(t.shape)].view(dtype)


def _from_dat(path: Path, data: Bytes) -> Sums:
    """`[count, entries ..., chunks, dataset]`; an entry is a name, the number of calls, and means
    that were multiplied by it (experts that were never reached as 1)."""
    at = 0

    def take(n: int) -> Bytes:
        nonlocal at
        if not 0 <= n <= data.size - at:
            raise ImatrixError(
                f"{path} is not an importance matrix, or a damaged one: "
                f"{n} bytes expected at byte {at} of {data.size}"
            )
        at += n
        return data[at - n : at]

    def number() -> int:
        return int(struct.unpack("<i", take(4).tobytes())[0])

    def text() -> str:
        return take(number()).tobytes().split(b"\0")[0].decode("utf-8", "surrogateescape")

    entries: dict[str, Entry] = {}
    for _ in range(number()):
        name, calls, size = text(), number(), number()
        if size < 1:
            raise ImatrixError(f"{path}: {name} has {size} values; the file is damaged")
        entries[name] = Entry(take(4 * size).copy().view("<f4"), np.array([calls], np.int64))
    if not entries:
        raise ImatrixError(f"{path}: no entries; not an importance matrix, or an empty one")
    chunks = number() if at < data.size else 0
    dataset = text() if at < data.size else ""
    return Sums(entries, (dataset,) if dataset else (), chunks=chunks, is_dat=True)


def merged(parts: Sequence[tuple[str, Sums]], chunk_size: int = 0) -> Sums:
    """Matrices, each with the name that a person knows it by, added up as llama-imatrix does.

    Means of a `.dat` become sums again with `chunk_size` tokens a call (0: what the first GGUF
    among them says, or 512). Raises ImatrixError: two are not of one model, or one is damaged.
    """
    size = chunk_size or next((s.chunk_size for _, s in parts if s.chunk_size), CHUNK_SIZE)
    total: dict[str, Entry] = {}
    for label, part in parts:
        if total and not total.keys() & part.entries.keys():
            raise ImatrixError(f"{label} is of another model than {parts[0][0]}: no tensor in both")
        for name, entry in part.entries.items():
            if not usable(entry.squares):
                raise ImatrixError(
                    f"{label}: NaN, infinite or negative importances for {name}; "
                    "the file is damaged"
                )
            given = entry
            if part.is_dat:
                scaled = entry.squares * np.float32(size)
                given = Entry(scaled, entry.counts * size)
            total[name] = _sum(total[name], given, label, name) if name in total else given
    return Sums(
        total,
        tuple(name for _, part in parts for name in part.datasets),
        size,
        _chunks(total.values(), size),
        max(part.nextn for _, part in parts),
    )


def usable(values: NDArray[np.float32]) -> bool:
    """Whether values can weigh anything: finite, none negative."""
    return bool((np.isfinite(values) & (values >= 0)).all())


def _sum(a: Entry, b: Entry, label: str, name: str) -> Entry:
    if a.squares.size != b.squares.size:
        raise ImatrixError(
            f"{label} is of another model: {b.squares.size} values for {name}, "
            f"not {a.squares.size} as in the others"
        )
    if a.counts.size != b.counts.size and 1 not in (a.counts.size, b.counts.size):
        raise ImatrixError(
            f"{label} is of another model: {b.counts.size} counts for {name}, not {a.counts.size}"
        )
    both = a.sums is not None and b.sums is not None
    return Entry(
        a.squares + b.squares,
        a.counts + b.counts,
        a.sums + b.sums if both else None,  # type: ignore[operator]
    )


def _chunks(entries: Iterable[Entry], size: int) -> int:
    """How many chunks the most rows of a tensor are, rounded to the nearest."""
    most = max((int(e.counts.max()) for e in entries), default=0)
    return (most + size // 2) // size


def counted(sums: Sums) -> Sums:
    """With the number of chunks that follows from the counts, as llama-imatrix writes it."""
    return replace(sums, chunks=_chunks(sums.entries.values(), sums.chunk_size or CHUNK_SIZE))


def check_matrix(path: Path, force: bool) -> None:
    """A matrix can be put there, in place of another one if `force` says so: never of a model, or
    of the text that it is made of. Raises OutputError, OutputExists."""
    check_place(path, force)
    try:
        if path.exists():
            read_sums(path)
    except QuantkitError:
        raise OutputExists(
            f"{path} exists, and is no importance matrix; name another file, or remove it"
        ) from None


def write(path: Path, sums: Sums, dat: bool = False) -> None:
    """Write a matrix as llama-imatrix does, GGUF or `.dat`; the file is there whole or not at all.

    Raises DiskFull, OutputError, ImatrixError: nothing was counted.
    """
    replace_file(path, as_dat(sums) if dat else as_gguf(sums))


def as_gguf(sums: Sums, exact: bool = False) -> list[bytes]:
    """The bytes of llama-imatrix's GGUF, statistics included. `exact`: counts as 64-bit numbers and
    no statistics, for a file that is read here again."""
    kv = [
        string("general.type", "imatrix"),
        array("imatrix.datasets", list(map(_encoded, sums.datasets)), _STRINGS),
        uint32("imatrix.chunk_count", sums.chunks),
        uint32("imatrix.chunk_size", sums.chunk_size or CHUNK_SIZE),
    ]
    if sums.nextn:
        kv.append(uint32("imatrix.n_layer_nextn", sums.nextn))
    kv.append(array("imatrix.stats_schema", SCHEMA))
    kv += sums.notes
    told = {} if exact else tensor_statistics(sums.entries, sums.nextn)
    infos, parts, at = list[TensorInfo](), list[bytes](), 0
    for name in sorted(sums.entries, key=_encoded):
        for tensor, values in _tensors(name, sums.entries[name], told.get(name), exact):
            data = values.tobytes()
            shape = values.shape[1:] if values.shape[0] == 1 and values.ndim > 1 else values.shape
            infos.append(TensorInfo(tensor, shape, _ids[values.dtype.str], at))
            parts.append(data.ljust(align(len(data)), b"\0"))
            at += len(parts[-1])
    return [header_bytes(kv, infos), *parts]


_ids = {"<f4": _F32, "<i8": type_by_name("I64").id}


def _tensors(
    name: str, e: Entry, told: TensorStatistics | None, exact: bool
) -> Iterable[tuple[str, NDArray[Any]]]:
    shape = (e.counts.size, e.squares.size // e.counts.size)
    yield name + SQUARES, e.squares.reshape(shape)
    yield name + COUNTS, e.counts.astype("<i8" if exact else "<f4").reshape(-1, 1)
    if e.sums is not None:
        yield name + SUMS, e.sums.reshape(shape)
    if not exact:
        yield f"{name}.stats", told.row if told else np.zeros(len(SCHEMA), "<f4")


def as_dat(sums: Sums) -> list[bytes]:
    """The bytes of a `.dat`: tensors with data only, experts without any as 1. Raises
    ImatrixError: there is no data."""
    size = sums.chunk_size or CHUNK_SIZE
    told = {n: e for n, e in sums.entries.items() if e.counts.max() > 0}
    if not told:
        raise ImatrixError("there is nothing to write: no tensor has data")
    parts = [struct.pack("<i", len(told))]
    for name in sorted(told, key=_encoded):
        entry = told[name]
        calls = -(-int(entry.counts.max()) // size)
        rows = entry.squares.reshape(entry.counts.size, -1)
        counts = entry.counts.astype(np.float32)[:, None]
        means = np.divide(rows, counts, out=np.ones_like(rows), where=counts > 0)
        text = _encoded(name)
        parts.append(struct.pack("<i", len(text)) + text + struct.pack("<ii", calls, rows.size))
        parts.append((means * np.float32(calls)).astype("<f4").tobytes())
    last = _encoded(sums.datasets[-1]) if sums.datasets else b""
    parts.append(struct.pack("<ii", sums.chunks, len(last)) + last)
    return parts


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
