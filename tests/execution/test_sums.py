"""Sums that are taken of pieces are those of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quantkit.execution.sums import FileSums, Piece, Sums, SumsInPassing, add
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


def pieces(sums: SumsInPassing, files: list[PlannedFile], name: str, rows: int) -> Iterator[Piece]:
    """The tensor of that name, of each kind once, for all the files that have it."""
    there = [(f, t) for f in files for t in f.tensors if t.name == name]
    for kind in sorted({t.format for _, t in there}):
        same = [(f, t) for f, t in there if t.format == kind]
        f, t = same[0]
        data = memoryview(contents(f))[t.offset : t.offset + t.nbytes]
        for at in range(0, t.nbytes, 4 * rows):
            offsets = {f.path: t.offset + at for f, t in same}
            yield sums.takers(name, kind, at, offsets), data[at : at + 4 * rows]


@given(st.lists(st.integers(1, 40), max_size=6), st.integers(1, 7), st.integers(1, 5))
def test_of_pieces(sizes: list[int], rows: int, threads: int) -> None:
    f = planned(sizes)
    sums = SumsInPassing([f])
    shares = sums.shares(threads)
    for t in f.tensors:
        for piece in pieces(sums, [f], t.name, rows):
            assert not list(sums.digests())
            left: tuple[Piece, ...] = (piece,)
            for share in shares:
                left = add(share, left)
            assert not left
    assert list(sums.digests()) == [(f.path, expected(f, contents(f)))]


@given(
    st.lists(st.lists(st.sampled_from(["F32", "I32"]), min_size=3, max_size=3), max_size=4),
    st.integers(1, 9),
)
def test_of_files_that_share_tensors(kinds: list[list[str]], threads: int) -> None:
    files = []
    for i, chosen in enumerate(kinds):
        f = planned([5, 12, 8])
        tensors = [replace(t, format=k) for t, k in zip(f.tensors, chosen, strict=True)]
        files.append(replace(f, path=Path(f"{i}.gguf"), tensors=tuple(tensors)))
    sums = SumsInPassing(files)
    shares = sums.shares(threads)
    assert sum(map(len, shares)) == len(frozenset().union(*shares))  # each sum is in one
    for name in ("t0", "t1", "t2"):
        for piece in pieces(sums, files, name, 3):
            left: tuple[Piece, ...] = (piece,)
            for share in shares:
                left = add(share, left)
            assert not left
    assert list(sums.digests()) == [(f.path, expected(f, contents(f))) for f in files]


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
    sums = SumsInPassing([f])
    (share,) = sums.shares(1)
    for name in ("t0", "t2"):
        assert not add(share, pieces(sums, [f], name, 8))
    assert not list(sums.digests())


def test_of_a_file_that_is_not_asked_for() -> None:
    f = planned([8])
    sums = SumsInPassing([])
    assert sums.shares(2) == []
    assert [into for into, _ in pieces(sums, [f], "t0", 8)] == [[]]
