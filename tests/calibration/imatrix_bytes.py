"""Files of importance matrices, as bytes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibration.imatrix import Imatrix, read_imatrix
from quantkit.gguf.container import KeyValue, TensorInfo, align, header_bytes, uint32

F32 = 0


def string(key: str, text: bytes) -> KeyValue:
    return KeyValue(key, struct.pack("<IQ", 8, len(text)) + text)


def strings(key: str, *texts: bytes) -> KeyValue:
    raw = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    return KeyValue(key, struct.pack("<IIQ", 9, 8, len(texts)) + raw)


KEYS = (
    string("general.type", b"imatrix"),
    strings("imatrix.datasets", b"a.txt", b"b.txt"),
    uint32("imatrix.chunk_count", 5),
    uint32("imatrix.chunk_size", 512),
)


def gguf(tensors: dict[str, list[Any]], keys: tuple[KeyValue, ...] = KEYS) -> bytes:
    """A GGUF file of float32 tensors."""
    infos, data = [], b""
    for name, values in tensors.items():
        array = np.array(values, "<f4")
        infos.append(TensorInfo(name, array.shape, F32, len(data)))
        data += array.tobytes().ljust(align(array.nbytes), b"\0")
    return header_bytes(keys, infos) + data


def entry(name: str, sums: list[Any], counts: list[float]) -> dict[str, list[Any]]:
    return {f"{name}.in_sum2": sums, f"{name}.counts": [[c] for c in counts]}


def legacy(entries: list[tuple[bytes, int, list[float]]], tail: bytes = b"") -> bytes:
    """A `.dat` file of (name, calls, values)."""
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        out += np.array(values, "<f4").tobytes()
    return out + tail


def read(tmp_path: Path, data: bytes) -> Imatrix:
    path = tmp_path / "imatrix"
    path.write_bytes(data)
    return read_imatrix(path)
