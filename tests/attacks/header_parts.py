"""The header of a GGUF file in pieces, any of which may be wrong."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from quantkit.gguf.container import read_header
from quantkit.gguf.types import type_by_id


@dataclass
class Tensor:
    """One tensor's line of a header, as it will be written."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int


@dataclass
class Parts:
    """A header in pieces, any of which may be wrong, and how many zeros follow it."""

    kv: list[tuple[bytes, bytes]]
    tensors: list[Tensor]
    version: int = 3
    magic: bytes = b"GGUF"
    more_keys: int = 0  # than the count says
    more_tensors: int = 0
    alignment: int = 32
    padding: bytes | None = None
    tail: int | None = None  # bytes of data; None: as many as the tensors take
    cut: int = 0  # bytes that are missing at the end
    done: list[str] = field(default_factory=list)

    def copy(self) -> Parts:
        tensors = [replace(t, dims=[*t.dims]) for t in self.tensors]
        return replace(self, kv=[*self.kv], tensors=tensors, done=[])

    def lay_out(self) -> None:
        """Give each tensor the offset that it should have."""
        end = 0
        for t in self.tensors:
            t.offset = end & (1 << 64) - 1
            end += -(-_bytes(t) // self.alignment) * self.alignment

    def head(self) -> bytes:
        n_kv, n_tensors = len(self.kv) + self.more_keys, len(self.tensors) + self.more_tensors
        mask = (1 << 64) - 1
        out = bytearray(self.magic)
        out += struct.pack("<IQQ", self.version & 0xFFFFFFFF, n_tensors & mask, n_kv & mask)
        for key, raw in self.kv:
            out += counted(key) + raw
        for t in self.tensors:
            out += counted(t.name) + struct.pack("<I", len(t.dims))
            out += b"".join(struct.pack("<Q", d & mask) for d in t.dims)
            out += struct.pack("<IQ", t.kind & 0xFFFFFFFF, t.offset & mask)
        pad = bytes(-len(out) % self.alignment) if self.padding is None else self.padding
        return bytes(out + pad)

    def write(self, path: Path) -> None:
        head = self.head()
        ends = [t.offset + -(-_bytes(t) // self.alignment) * self.alignment for t in self.tensors]
        tail = max(ends, default=0) if self.tail is None else self.tail
        size = max(len(head) + min(tail, 1 << 26) - self.cut, 0)
        path.write_bytes(head[:size])
        os.truncate(path, size)


def counted(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _bytes(t: Tensor) -> int:
    ggml = type_by_id(t.kind)
    n = prod(t.dims)
    return n // ggml.block_size * ggml.type_size if ggml is not None else n


def parts(path: Path) -> Parts:
    """The header of a file that is right."""
    header = read_header(path)
    tensors = [
        Tensor(t.name.encode(), list(t.shape[::-1]), t.ggml_type, t.offset) for t in header.tensors
    ]
    return Parts([(i.key.encode(), i.raw) for i in header.kv], tensors)
