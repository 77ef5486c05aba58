"""Sums that are taken of pieces in any order are those of the file."""

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
        data[t.offset : t.offset + t.nbytes] = bytes(
            (7 * i + j) % 251 + 1 for j in range(t.nbytes)
        )
    return bytes(data)


@given(st.lists(st.integers(1, 40), max_size=6), st.randoms(use_true_random=False))
def test_of_pieces_in_any_order(sizes: list[int], random: object) -> None:
    f = planned(sizes)
    data = contents(f)
    pieces = [
        (offset, offset + 4)
        for t in f.tensors
        for offset in range(t.offset, t.offset + t.nbytes, 4)
    ]
    random.shuffle(pieces)  # type: ignore[attr-defined]
    sums = SumsInPassing(f, most=1 << 20)
    for start, end in pieces:
        assert sums.digests() is None
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


def test_pieces_that_would_take_too_much_memory_do_not_wait() -> None:
    f = planned([8, 8])
    data = memoryview(contents(f))
    first, second = ((t.offset, data[t.offset : t.offset + t.nbytes]) for t in f.tensors)
    sums = SumsInPassing(f, most=31)
    sums.add(*second)
    sums.add(*first)
    assert sums.digests() is None
    sums = SumsInPassing(f, most=32)
    sums.add(*second)
    sums.add(*first)
    assert sums.digests() == expected(f, bytes(data))
