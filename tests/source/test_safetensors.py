"""Headers of safetensors files: what the safetensors library says of a file, quantkit says too."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from quantkit.errors import CorruptFile, SourceNotFound, UnsupportedSource
from quantkit.source.safetensors import GUESS, read_entries
from tests.checkpoints import write_safetensors

GOOD = {
    "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "a": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
    "empty": {"dtype": "F16", "shape": [0, 7], "data_offsets": [16, 16]},
    "c": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [16, 24]},
}


def write(path: Path, header: Any, data: int = 24, size: int | None = None) -> Path:
    """A file of a header (text, or what becomes JSON) and `data` bytes of weights."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + bytes(data))
    return path


def changed(name: str, **to: Any) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **to}}


def test_a_good_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f", {"__metadata__": {"format": "pt"}, **GOOD})
    begin = path.stat().st_size - 24
    entries = [
        (e.name, e.dtype, e.shape, e.start - begin, e.end - begin) for e in read_entries(path)
    ]
    assert entries == [
        ("a", "F32", (), 12, 16),
        ("b", "BF16", (2, 3), 0, 12),
        ("c", "F8_E4M3", (8,), 16, 24),
        ("empty", "F16", (0, 7), 16, 16),
    ]


def test_a_header_longer_than_the_first_read(tmp_path: Path) -> None:
    tensors = {f"tensor.{i:060}": ("F32", [1], b"abcd") for i in range(5000)}
    write_safetensors(tmp_path / "f", tensors)
    assert (tmp_path / "f").stat().st_size > 2 * GUESS
    assert [e.name for e in read_entries(tmp_path / "f")] == list(tensors)


@pytest.mark.parametrize(
    "header",
    [
        changed("b", data_offsets=[0, 11]),
        changed("b", data_offsets=[1, 13]),
        changed("b", data_offsets=[12, 0]),
        changed("b", data_offsets=[0, 12, 24]),
        changed("b", data_offsets=[-12, 0]),
        changed("b", data_offsets=[0, "12"]),
        changed("b", data_offsets=None),
        changed("b", shape=[2, 4]),
        changed("b", shape=[2, -3]),
        changed("b", shape=[1 << 40, 1 << 40]),
        changed("b", shape=[2.0, 3]),
        changed("b", shape=6),
        changed("b", dtype=None),
        changed("b", dtype=16),
        changed("a", data_offsets=[8, 12]),  # overlaps
        changed("a", data_offsets=[14, 18]),  # a gap before it
        changed("c", data_offsets=[16, 23], shape=[7]),  # bytes that belong to nothing
        changed("c", data_offsets=[16, 25], shape=[9]),
        {**GOOD, "__metadata__": {"format": 1}},
        {**GOOD, "__metadata__": ["pt"]},
        {**GOOD, "d": 7},
        [],
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a":' * 100_000,
        {},
    ],
)
def test_headers_that_both_refuse(header: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "f", header)
    with pytest.raises(SafetensorError), safe_open(path, framework="numpy"):
        pass
    with pytest.raises(CorruptFile, match="not a whole safetensors file"):
        read_entries(path)


@pytest.mark.parametrize(("data", "size"), [(23, None), (25, None), (0, None), (24, 1 << 62)])
def test_sizes_that_both_refuse(data: int, size: int | None, tmp_path: Path) -> None:
    path = write(tmp_path / "f", GOOD, data, size)
    with pytest.raises(SafetensorError), safe_open(path, framework="numpy"):
        pass
    with pytest.raises(CorruptFile):
        read_entries(path)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 250), to=st.integers(0, 255), keep=st.integers(0, 400))
def test_a_byte_that_changed_or_an_end_that_is_missing(
    at: int, to: int, keep: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the library refuses is refused; what quantkit reads, it reads as the library does."""
    path = write(tmp_path_factory.getbasetemp() / "changed", GOOD)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = to
    path.write_bytes(data[: max(len(data) - keep // 8, 0)] if keep > 300 else data)
    try:
        with safe_open(path, framework="numpy") as f:
            theirs = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118
    except SafetensorError:
        with pytest.raises((CorruptFile, UnsupportedSource)):
            read_entries(path)
        return
    assert {e.name: e.shape for e in read_entries(path)} == theirs


def test_a_name_listed_twice(tmp_path: Path) -> None:
    entry = json.dumps(GOOD["b"])
    path = write(tmp_path / "f", f'{{"b": {entry}, "b": {entry}}}'.encode(), 12)
    with pytest.raises(CorruptFile, match="b is listed twice"):
        read_entries(path)


def test_a_dtype_to_come(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSource, match="F5"):
        read_entries(write(tmp_path / "f", changed("c", dtype="F5")))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such file"):
        read_entries(tmp_path / "f")
