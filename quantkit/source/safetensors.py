"""The safetensors container: a JSON header that says where each tensor's bytes lie.

The checks are those of the safetensors library (`Metadata::validate`), made without the weights at
hand: the header is enough to know that a file of a given size can be whole.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from math import prod
from typing import Any

from quantkit.errors import CorruptFile, SourceNotFound, UnsupportedSource
from quantkit.storage.inputs import File, open_input
from quantkit.storage.substitutes import substitute

MAX_HEADER = 100_000_000  # bytes, as in the library
MAX_AXES = 8  # of a tensor
GUESS = 1 << 18  # bytes of the first read: most headers whole
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its dtype as the file spells it, and its bytes, `start` to `end` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_entries(file: File) -> list[Entry]:
    """The tensors of a file, sorted by name, from its header alone.

    Raises CorruptFile (anything that does not hold together, the file's length among it),
    UnsupportedSource (a dtype that safetensors does not have yet), SourceNotFound, and for a file
    on the Hub what reading it raises.
    """
    try:
        opened = open_input(file)
    except FileNotFoundError:
        raise SourceNotFound(f"{file}: no such file") from None
    try:
        with closing(opened) as f:
            data = bytes(f.pread(GUESS, 0))
            if what := substitute(data):
                raise UnsupportedSource(f"{file}: {what}")
            if len(data) < 8:
                raise ValueError(f"{len(data)} bytes in all")
            (size,) = struct.unpack_from("<Q", data)
            if size > min(MAX_HEADER, f.size - 8):
                is_size = size < MAX_HEADER << 10  # or eight letters, read as a number
                begin = f"a header of {size} bytes" if is_size else f"it begins with {data[:16]!r}"
                raise ValueError(f"{begin} in a file of {f.size}")
            if len(data) < 8 + size:
                data += f.pread(8 + size - len(data), len(data))
            entries = _parse(data[8 : 8 + size], 8 + size, f.size)
    except (ValueError, RecursionError) as e:
        raise CorruptFile(
            f"{file}: not a whole safetensors file ({e}); download it again"
        ) from None
    for entry in entries:
        if entry.dtype not in _BITS:
            raise UnsupportedSource(f"{file}: tensor {entry.name} is {entry.dtype}: not known")
    return sorted(entries, key=lambda e: e.name)


def _parse(header: bytes, begin: int, file_size: int) -> list[Entry]:
    """The entries of a header whose tensors begin at byte `begin`. Raises ValueError."""
    found = json.loads(header.decode("utf-8"), object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError("the header is not a JSON object")
    metadata = found.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("'__metadata__' is not a table of texts")
    entries = [_entry(name, entry, begin) for name, entry in found.items()]
    end = begin
    for e in sorted(entries, key=lambda e: (e.start, e.end)):
        if e.start != end or e.end < e.start:
            raise ValueError(f"tensor {e.name} is at {e.start} to {e.end}, not from {end} on")
        bits = prod(e.shape) * _BITS.get(e.dtype, 0)
        if e.dtype in _BITS and (bits % 8 or e.end - e.start != bits // 8):
            said = f"{e.dtype} {list(e.shape)} in {e.end - e.start} bytes"
            raise ValueError(f"tensor {e.name}: {said}")
        end = e.end
    if end != file_size:
        raise ValueError(f"its tensors end at byte {end}, the file at {file_size}")
    return entries


def _entry(name: str, entry: Any, begin: int) -> Entry:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise ValueError(f"tensor {name} has no dtype")
    shape: Any = entry.get("shape")
    ends: Any = entry.get("data_offsets")
    if not _counts(shape) or not _counts(ends) or len(ends) != 2:
        raise ValueError(f"tensor {name} has no shape or no offsets")
    if len(shape) > MAX_AXES:
        raise ValueError(f"tensor {name} has {len(shape)} axes; {MAX_AXES} are read")
    return Entry(name, entry["dtype"], tuple(shape), begin + ends[0], begin + ends[1])


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 64 for v in values)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{key} is listed twice")
        out[key] = value
    return out
