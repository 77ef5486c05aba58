"""Writes past the system's cache: the same bytes, whatever is aligned to what."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit import direct, disk

linux = pytest.mark.skipif(sys.platform != "linux", reason="direct writes are Linux's")
HERE = Path(__file__).parent  # on a disk, where /tmp may be memory


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[int, int, Path]]:
    """A file, and its descriptors: direct, and by the cache."""
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        path = Path(folder) / "f"
        fd = disk.open_new(path)
        past = direct.open_direct(path)
        if past is None:
            pytest.skip("this file system has none")
        yield past, fd, path
        os.close(past)
        os.close(fd)


@linux
@given(
    offset=st.integers(0, 3 * direct.PAGE), size=st.integers(0, 5 * direct.PAGE),
    shift=st.none() | st.integers(0, direct.PAGE),
)  # fmt: skip
def test_any_bytes_at_any_offset(
    offset: int, size: int, shift: int | None, opened: tuple[int, int, Path]
) -> None:
    """From memory that fits, and (with a shift) from memory that does not."""
    past, fd, path = opened
    old = np.random.default_rng(1).integers(0, 256, 9 * direct.PAGE, np.uint8)
    disk.pwrite(fd, old.data, 0)
    [room] = direct.rooms([(size, offset + (shift or 0))])
    room[:] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    direct.write(past, fd, room.data, offset)
    expected = old.copy()
    expected[offset : offset + size] = room
    assert path.read_bytes() == expected.tobytes()


@linux
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 20)), max_size=9))
def test_rooms_are_aligned_as_the_file_is(places: list[tuple[int, int]]) -> None:
    rooms = direct.rooms(places)
    for n, (room, (size, offset)) in enumerate(zip(rooms, places, strict=True)):
        assert room.size == size
        assert not size or (room.ctypes.data - offset) % direct.PAGE == 0
        room[:] = n
    for n, room in enumerate(rooms):  # none lies in another
        assert (room == n).all()


def test_memory_is_used_again() -> None:
    """As soon as nobody looks at it, slices and views included."""
    memory = direct.Memory(10 << 20)
    first = memory.take(3 << 20)
    where, view = first.ctypes.data, first[100:200].data
    del first
    assert memory.take(3 << 20).ctypes.data != where
    del view
    again = {memory.take((3 << 20) - 1000).ctypes.data for _ in range(5)}
    assert where in again
    assert memory.take(1000).size == 1000


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60))
def test_no_more_memory_is_kept_than_may_be(steps: list[tuple[int, bool]]) -> None:
    """Blocks of several sizes, taken and given back in any order; none is given out twice."""
    unit, most = 1 << 18, 50 << 18
    memory, held = direct.Memory(most), list[direct.Block]()

    def kept() -> int:
        return sum(b.size for blocks in memory._free.values() for b in blocks)

    for size, keep in steps:
        is_new = not memory._free.get(size * unit)
        block = memory.take(size * unit)
        block[:] = len(held) % 251
        held.append(block)
        del block
        in_use = sum(b.size for b in held)
        assert memory._held == in_use + kept()
        if is_new:
            assert in_use + kept() <= most or not kept()
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
    whole = disk.pwrite

    def noted(to: int, data: memoryview, at: int) -> None:
        written.append((to, at, len(data)))
        whole(to, data, at)

    monkeypatch.setattr(disk, "pwrite", noted)
    direct.write(past, fd, memoryview(bytes(10_000)), 100)
    assert sorted(written) == sorted([(past, 4096, 4096), (fd, 100, 3996), (fd, 8192, 1908)])
    written.clear()
    direct.write(past, fd, memoryview(bytes(4000)), 50)
    assert written == [(fd, 50, 4000)]


@linux
def test_a_disk_with_larger_pages(
    opened: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses ours; other errors are not hidden."""
    past, fd, path = opened
    whole, code = disk.pwrite, errno.EINVAL

    def refused(to: int, data: memoryview, at: int) -> None:
        if to == past:
            raise OSError(code, os.strerror(code))
        whole(to, data, at)

    monkeypatch.setattr(disk, "pwrite", refused)
    data = np.random.default_rng(2).integers(0, 256, 30_000, np.uint8)
    direct.write(past, fd, data.data, 77)
    assert path.read_bytes()[77:30_077] == data.tobytes()
    code = errno.ENOSPC
    with pytest.raises(OSError, match="space"):
        direct.write(past, fd, data.data, 77)


@linux
@given(offset=st.integers(0, 5 * direct.PAGE), size=st.integers(0, 5 * direct.PAGE))
def test_any_bytes_are_read(offset: int, size: int, source: tuple[int, int, bytes]) -> None:
    """Beyond the end of the file too, which is not that of a page."""
    past, fd, data = source
    assert bytes(direct.read(past, fd, size, offset)) == data[offset : offset + size]


@pytest.fixture(scope="module")
def source() -> Iterator[tuple[int, int, bytes]]:
    """A file's descriptors for reading, direct and by the cache, and what is in it."""
    data = np.random.default_rng(4).integers(0, 256, 3 * direct.PAGE + 1234, np.uint8).tobytes()
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        path = Path(folder) / "f"
        path.write_bytes(data)
        past, fd = direct.open_direct(path, os.O_RDONLY), disk.open_read(path)
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
        return whole(fd, [buffers[0][: direct.PAGE]], at)

    monkeypatch.setattr(os, "preadv", one_page)
    assert bytes(direct.read(past, fd, 10_000, 100)) == data[100:10_100]
    code = errno.EINVAL

    def refused(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", refused)
    assert bytes(direct.read(past, fd, 10_000, 100)) == data[100:10_100]
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        direct.read(past, fd, 10_000, 100)


def test_where_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert direct.open_direct(tmp_path / "not there") is None
    (tmp_path / "f").write_bytes(b"")
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    assert direct.open_direct(tmp_path / "f") is None
