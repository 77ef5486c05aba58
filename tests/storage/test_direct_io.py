"""Writes past the system's cache: the same bytes, whatever is aligned to what."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.storage import direct_io, os_files

linux = pytest.mark.skipif(sys.platform != "linux", reason="direct writes are Linux's")
HERE = Path(__file__).parent  # on a disk, where /tmp may be memory


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[int, int, Path]]:
    """A file, and its descriptors: direct, and by the cache."""
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        path = Path(folder) / "f"
        fd = os_files.open_new(path)
        past = direct_io.open_direct(path)
        if past is None:
            pytest.skip("this file system has none")
        yield past, fd, path
        os.close(past)
        os.close(fd)


def leave(shared: direct_io.SharedPages, fd: int) -> set[object]:
    """Write the ends that wait. Returns the owners of those that are on their way."""
    ends, under_way = shared.leave()
    for end in ends:
        os_files.pwrite(fd, end.data, end.offset)
    return under_way


def put(past: int, fd: int, data: memoryview, offset: int) -> None:
    """One piece, its ends too."""
    shared = direct_io.SharedPages()
    if not direct_io.has_pages(offset, len(data)):
        os_files.pwrite(fd, data, offset)
        return
    pages = shared.join(0, data, offset)
    direct_io.write(past, fd, pages)
    shared.settle(pages)
    leave(shared, fd)


@linux
@given(
    offset=st.integers(0, 3 * direct_io.PAGE), size=st.integers(0, 5 * direct_io.PAGE),
    shift=st.none() | st.integers(0, direct_io.PAGE),
)  # fmt: skip
def test_any_bytes_at_any_offset(
    offset: int, size: int, shift: int | None, opened: tuple[int, int, Path]
) -> None:
    """From memory that fits, and (with a shift) from memory that does not."""
    past, fd, path = opened
    old = np.random.default_rng(1).integers(0, 256, 9 * direct_io.PAGE, np.uint8)
    os_files.pwrite(fd, old.data, 0)
    [room] = direct_io.rooms([(size, offset + (shift or 0))])
    room[:] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    put(past, fd, room.data, offset)
    expected = old.copy()
    expected[offset : offset + size] = room
    assert path.read_bytes() == expected.tobytes()


@linux
@given(
    start=st.integers(0, 2 * direct_io.PAGE),
    sizes=st.lists(st.integers(1, 4 * direct_io.PAGE), min_size=1, max_size=8),
    steps=st.lists(st.tuples(st.sampled_from("jjwwssl"), st.integers(0, 7)), max_size=60),
)
def test_pieces_meet_in_any_order(
    start: int, sizes: list[int], steps: list[tuple[str, int]], opened: tuple[int, int, Path]
) -> None:
    """Joined, written and settled by turns, as threads do, ends written between (l). What is
    settled, and whose ends no other piece has on its way, is in the file; in the end all is."""
    past, fd, path = opened
    whole = np.random.default_rng(len(steps)).integers(1, 256, start + sum(sizes), np.uint8)
    whole[:start] = 0
    os.ftruncate(fd, 0)
    os.ftruncate(fd, len(whole))
    places = [(start + sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    shared = direct_io.SharedPages()
    joined: dict[int, direct_io.Pages] = {}
    written: dict[int, direct_io.Pages] = {}
    settled: set[int] = set()
    new = set(range(len(sizes)))

    def look() -> None:
        under_way = leave(shared, fd)
        found = np.frombuffer(path.read_bytes(), np.uint8)
        for i in settled - under_way:
            at, size = places[i]
            assert (found[at : at + size] == whole[at : at + size]).all()

    def step(kind: str, n: int) -> None:
        among = {"j": new, "w": joined, "s": written}[kind]
        if not among:
            return
        i = sorted(among)[n % len(among)]
        at, size = places[i]
        if kind == "j":
            new.remove(i)
            if direct_io.has_pages(at, size):
                joined[i] = shared.join(i, whole[at : at + size].data, at)
            else:
                os_files.pwrite(fd, whole[at : at + size].data, at)
                settled.add(i)
        elif kind == "w":
            written[i] = joined.pop(i)
            direct_io.write(past, fd, written[i])
        else:
            shared.settle(written.pop(i))
            settled.add(i)

    for kind, n in steps:
        look() if kind == "l" else step(kind, n)
    while new or joined or written:
        for kind in "jws":
            step(kind, 0)
    look()
    assert path.read_bytes() == whole.tobytes()


@linux
def test_a_page_in_which_pieces_meet_is_written_once(opened: tuple[int, int, Path]) -> None:
    """With the second of them, whichever that is; both are on their way until then."""
    past, fd, path = opened
    data = np.random.default_rng(3).integers(0, 256, 20_000, np.uint8)
    for order in ([0, 10_000], [10_000, 0]):
        os.ftruncate(fd, 0)
        shared = direct_io.SharedPages()
        first, second = (shared.join(i, data[i : i + 10_000].data, i) for i in order)
        assert (first.met, second.met) == ([], [10_000])
        assert sum(map(len, first.parts + second.parts)) == 16_384
        [end], under_way = shared.leave()
        assert (end.offset, bytes(end.data)) == (16_384, data[16_384:].tobytes())
        assert under_way == {order[0]}
        for pages in (first, second):
            direct_io.write(past, fd, pages)
            shared.settle(pages)
        assert shared.leave() == ([], set())
        assert path.read_bytes() == data[:16_384].tobytes()


@linux
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 20)), max_size=9))
def test_rooms_are_aligned_as_the_file_is(places: list[tuple[int, int]]) -> None:
    rooms = direct_io.rooms(places)
    for n, (room, (size, offset)) in enumerate(zip(rooms, places, strict=True)):
        assert room.size == size
        assert not size or (room.ctypes.data - offset) % direct_io.PAGE == 0
        room[:] = n
    for n, room in enumerate(rooms):  # none lies in another
        assert (room == n).all()


def test_memory_is_used_again() -> None:
    """As soon as nobody looks at it, slices and views included; for pieces of other sizes too."""
    memory = direct_io.BlockPool(10 << 20, 3 << 20)
    first = memory.take(3 << 20)
    where, view = first.ctypes.data, first[100:200].data
    del first
    assert memory.take(3 << 20).ctypes.data != where
    del view
    again = {memory.take((3 << 20) - n * 100_000).ctypes.data for n in range(5)}
    assert where in again
    assert len(again) <= 2
    assert memory.take(1000).size == 1000  # not worth a block
    assert memory.take(4 << 20).size == 4 << 20


@given(st.lists(st.tuples(st.integers(10, 40), st.booleans()), max_size=60))
def test_no_more_memory_is_kept_than_may_be(steps: list[tuple[int, bool]]) -> None:
    """Of several sizes, taken and given back in any order; none is given out twice."""
    unit, most = 1 << 12, 150 << 12
    memory, held = direct_io.BlockPool(most, 40 << 12), list[direct_io.Block]()
    for size, keep in steps:
        block = memory.take(size * unit)
        block[: size * unit] = len(held) % 251
        held.append(block)
        del block
        in_use = sum(cast(Any, b.base)._used for b in held)
        kept = sum(used for _, used in memory._free)
        assert memory._held == in_use + kept
        assert in_use + kept <= most or not kept
        if not keep:
            held = [b for i, b in enumerate(held) if i % 2]
        for i, b in enumerate(held):
            b[:] = i % 251
    for i, b in enumerate(held):
        assert (b == i % 251).all()


@linux
def test_whole_pages_go_past_the_cache(
    opened: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    past, fd, _ = opened
    written: list[tuple[int, int, int]] = []
    pwrite, pwritev = os.pwrite, os.pwritev

    def noted(to: int, data: memoryview, at: int) -> int:
        written.append((to, at, len(data)))
        return pwrite(to, data, at)

    def noted_pages(to: int, parts: list[memoryview], at: int) -> int:
        written.append((to, at, sum(map(len, parts))))
        return pwritev(to, parts, at)

    monkeypatch.setattr(os, "pwrite", noted)
    monkeypatch.setattr(os, "pwritev", noted_pages)
    put(past, fd, memoryview(bytes(10_000)), 100)
    assert sorted(written) == sorted([(past, 4096, 4096), (fd, 100, 3996), (fd, 8192, 1908)])
    written.clear()
    put(past, fd, memoryview(bytes(4000)), 50)
    assert written == [(fd, 50, 4000)]


@linux
def test_a_disk_with_larger_pages(
    opened: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses ours; other errors are not hidden."""
    past, fd, path = opened
    code = errno.EINVAL

    def refused(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", refused)
    data = np.random.default_rng(2).integers(0, 256, 30_000, np.uint8)
    put(past, fd, data.data, 77)
    assert path.read_bytes()[77:30_077] == data.tobytes()
    code = errno.ENOSPC
    with pytest.raises(OSError, match="space"):
        put(past, fd, data.data, 77)


@linux
@pytest.mark.parametrize("short", [1, 4096, 5000, 9000, 20_000])
def test_pages_that_the_system_writes_in_part(
    short: int, opened: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest goes by the cache, in whichever part it begins."""
    past, fd, path = opened
    data = np.random.default_rng(short).integers(0, 256, 40_000, np.uint8)

    def cut(to: int, parts: list[memoryview], at: int) -> int:
        return os.pwrite(fd, b"".join(parts)[:short], at)

    monkeypatch.setattr(os, "pwritev", cut)
    os.ftruncate(fd, 0)
    shared = direct_io.SharedPages()
    for start, size in ((0, 10_000), (30_000, 10_000), (10_000, 20_000)):  # the last meets both
        pages = shared.join(start, data[start : start + size].data, start)
        direct_io.write(past, fd, pages)
        shared.settle(pages)
    leave(shared, fd)
    assert path.read_bytes() == data.tobytes()


@linux
@given(offset=st.integers(0, 5 * direct_io.PAGE), size=st.integers(0, 5 * direct_io.PAGE))
def test_any_bytes_are_read(offset: int, size: int, source: tuple[int, int, bytes]) -> None:
    """Beyond the end of the file too, which is not that of a page."""
    past, fd, data = source
    assert bytes(direct_io.read(past, fd, size, offset)) == data[offset : offset + size]


@pytest.fixture(scope="module")
def source() -> Iterator[tuple[int, int, bytes]]:
    """A file's descriptors for reading, direct and by the cache, and what is in it."""
    data = np.random.default_rng(4).integers(0, 256, 3 * direct_io.PAGE + 1234, np.uint8).tobytes()
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        path = Path(folder) / "f"
        path.write_bytes(data)
        past, fd = direct_io.open_direct(path, os.O_RDONLY), os_files.open_read(path)
        if past is None:
            pytest.skip("this file system has none")
        yield past, fd, data
        os.close(past)
        os.close(fd)


@linux
def test_reads_that_come_in_pieces_or_are_refused(
    source: tuple[int, int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    past, fd, data = source
    whole = os.preadv

    def one_page(fd: int, buffers: list[memoryview], at: int) -> int:
        return whole(fd, [buffers[0][: direct_io.PAGE]], at)

    monkeypatch.setattr(os, "preadv", one_page)
    assert bytes(direct_io.read(past, fd, 10_000, 100)) == data[100:10_100]
    code = errno.EINVAL

    def refused(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", refused)
    assert bytes(direct_io.read(past, fd, 10_000, 100)) == data[100:10_100]
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        direct_io.read(past, fd, 10_000, 100)


def test_where_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert direct_io.open_direct(tmp_path / "not there") is None
    (tmp_path / "f").write_bytes(b"")
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    assert direct_io.open_direct(tmp_path / "f") is None
