"""Files that are wrong in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path

import numpy as np

from quantkit.gguf.container import Header, KeyValue, header_bytes, read_header
from quantkit.gguf.types import type_by_id

Change = Callable[[Header, bytearray], None]


def rewritten(
    path: Path,
    out: Path,
    change: Change = lambda header, data: None,
    kv: Callable[[tuple[KeyValue, ...]], Iterable[KeyValue]] = lambda kv: kv,
) -> Path:
    """A copy of a GGUF file with its tensors' bytes or its metadata changed."""
    header = read_header(path)
    data = bytearray(path.read_bytes()[header.data_offset :])
    change(header, data)
    out.write_bytes(header_bytes(tuple(kv(header.kv)), header.tensors) + data)
    return out


def span(header: Header, name: str) -> slice:
    t = next(t for t in header.tensors if t.name == name)
    ggml = type_by_id(t.ggml_type)
    assert ggml is not None
    return slice(t.offset, t.offset + ggml.row_bytes(prod(t.shape)))


def swap(name: str, a: int, b: int, count: int = 4) -> Change:
    def change(header: Header, data: bytearray) -> None:
        whole = span(header, name)
        experts = np.frombuffer(data[whole], np.uint8).reshape(count, -1)
        order = [{a: b, b: a}.get(x, x) for x in range(count)]
        data[whole] = experts[order].tobytes()

    return change


def overwrite(name: str, other: str) -> Change:
    def change(header: Header, data: bytearray) -> None:
        data[span(header, name)] = data[span(header, other)]

    return change


def flip(name: str, at: int, mask: int = 1) -> Change:
    def change(header: Header, data: bytearray) -> None:
        data[span(header, name).start + at] ^= mask

    return change


def without(key: str) -> Callable[[tuple[KeyValue, ...]], Iterable[KeyValue]]:
    return lambda kv: (item for item in kv if item.key != key)


def instead(new: KeyValue) -> Callable[[tuple[KeyValue, ...]], Iterable[KeyValue]]:
    return lambda kv: (new if item.key == new.key else item for item in kv)
