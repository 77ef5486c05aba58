"""Importance matrices that are none: damaged, cut off, or of other files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.calibration.imatrix import check_coverage, coverage, read_imatrix
from quantkit.errors import ImatrixError, QuantkitError, SourceNotFound
from quantkit.gguf.container import TensorInfo, header_bytes
from tests.calibration.imatrix_bytes import F32, KEYS, entry, gguf, legacy, read, string

GOOD = gguf({**entry("x", [[1.0, 2.0], [3.0, 4.0]], [1, 2]), **entry("y", [[1.0]], [1])})


OLD = legacy([(b"x", 1, [1.0, 2.0]), (b"y", 2, [4.0])], struct.pack("<ii", 9, 7) + b"new.txt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an importance matrix"),
        (b"some text that is no matrix at all", "not an importance matrix"),
        (legacy([]), "no entries"),
        (legacy([(b"x", 1, [])]), "x has 0 values"),
        (struct.pack("<ii", 1, -1), "-1 bytes expected"),
        (OLD[:-1], "7 bytes expected"),
        (gguf({"blk.0.attn_q.weight": [[1.0]]}), "it has no .in_sum2 tensors"),
        (gguf({"x.in_sum2": [[1.0]]}), "x.counts is missing"),
        (gguf({"x.counts": [[1.0]]}), "x.in_sum2 is missing"),
        (gguf(entry("x", [[1.0, 2.0, 3.0]], [1, 1])), "3 sums and 2 counts for x"),
        (gguf(entry("x", [[1.0]], [float("nan")])), "1 sums and 1 counts for x"),
        (gguf(entry("x", [[1.0]], [1e19])), "1 sums and 1 counts for x"),
        (gguf(entry("x", [[1.0]], [1]), KEYS[:2]), "chunk_count is missing"),
        (gguf(entry("x", [[1.0]], [1]), KEYS[:3]), "chunk_size is missing"),
        (gguf(entry("x", [[1.0]], [1]), KEYS[2:]), "datasets is missing; not a matrix"),
        (
            gguf(entry("x", [[1.0]], [1]), (*KEYS[:2], string(KEYS[2].key, b"5"), KEYS[3])),
            "chunk_count is STRING, not UINT32",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ImatrixError, match=message):
        read(tmp_path, data)


def test_sums_must_be_float32(tmp_path: Path) -> None:
    info = [TensorInfo("x.in_sum2", (1, 2), 1, 0), TensorInfo("x.counts", (1, 1), F32, 32)]
    with pytest.raises(ImatrixError, match=r"x.in_sum2 is missing, or not F32"):
        read(tmp_path, header_bytes(KEYS, info) + bytes(64))


@pytest.mark.parametrize("make", [lambda p: None, os.mkdir])
def test_no_such_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m.gguf")
    with pytest.raises(SourceNotFound, match=r"m\.gguf"):
        read_imatrix(tmp_path / "m.gguf")


@settings(max_examples=400, deadline=None)
@given(
    good=st.sampled_from([GOOD, OLD]),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=8)), max_size=4),
    keep=st.none() | st.integers(0, 1 << 16),
)
def test_any_bytes_are_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory,
    good: bytes,
    edits: list[tuple[int, bytes]],
    keep: int | None,
) -> None:
    data = bytearray(good)
    for at, new in edits:
        at %= len(good)
        data[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(data[: None if keep is None else keep % len(good)])
    try:
        matrix = read_imatrix(path)
        check_coverage(matrix, coverage(matrix, [("x", (2, 3, 2), "Q4_K")]))
    except QuantkitError:
        return
    assert all(v.dtype == np.float32 and v.ndim == 1 for v in matrix.values.values())
    assert matrix.key_values
