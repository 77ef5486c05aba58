"""Sums that are taken of pieces are those of the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quantkit.execution.sums import FileSums, Sums, SumsInPassing
from quantkit.planning.plan import PlannedFile, PlannedTensor


def planned(sizes: list[int]) -> PlannedFile:
    """A file of float32 rows, as many as `sizes` says of each tensor."""
    f = PlannedFile(Path("m.gguf"), (), (), 0)
    names = [f"t{i}" for i in range(len(sizes))]
    drafts = tuple(
        PlannedTensor(name, (n,), "F32", 0, 4 * n) for name, n in zip(names, sizes, strict=True)
    )
    begin = len(PlannedFile(f.path, (), drafts, 0).header)
    tensors = []
    for t in drafts:
        tensors.append(PlannedTensor(t.name, t.shape, t.format, begin, t.nbytes))
        begin += -(-t.nbytes // 32) * 32
    size = tensors[0].offset if tensors else len(f.header)
    return PlannedFile(f.path, (), tuple(tensors), size)


def expected(f: PlannedFile, data: bytes) -> FileSums:
    def digest(part: bytes) -> str:
        return hashlib.sha256(part).hexdigest()

    return FileSums(
        digest(data), tuple(digest(data[t.offset : t.offset + t.nbytes]) for t in f.tensors)
    )


def contents(f: PlannedFile) -> bytes:
    data = bytearray(f.size)
    header = f.header
    data[: len(header)] = header
    for i, t in enumerate(f.tensors):
        data[t.offset : t.offset + t.nbytes] = bytes((7 * i + j) % 251 + 1 for j in range(t.nbytes))
    return bytes(data)


@given(st.lists(st.integers(1, 40), max_size=6), st.integers(1, 7))
def test_of_pieces(sizes: list[int], rows: int) -> None:
    f = planned(sizes)
    data = contents(f)
    sums = SumsInPassing(f)
    for t in f.tensors:
        for start in range(t.offset, t.offset + t.nbytes, 4 * rows):
            assert sums.digests() is None
            end = min(start + 4 * rows, t.offset + t.nbytes)
            sums.add(start, memoryview(data)[start:end])
    assert sums.digests() == expected(f, data)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 200))
def test_of_a_file_in_blocks(sizes: list[int], block: int) -> None:
    f = planned(sizes)
    data = contents(f)
    sums = Sums([(t.offset, t.offset + t.nbytes) for t in f.tensors])
    for start in range(0, len(data), block):
        sums.update(data[start : start + block])
    assert sums.digests() == expected(f, data)


def test_of_pieces_of_which_one_is_missing() -> None:
    f = planned([8, 8, 8])
    data = memoryview(contents(f))
    sums = SumsInPassing(f)
    for t in (f.tensors[0], f.tensors[2]):
        sums.add(t.offset, data[t.offset : t.offset + t.nbytes])
    assert sums.digests() is None
