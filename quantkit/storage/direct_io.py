"""Reads and writes that go past the system's cache: nothing is copied, and nothing that others keep
in memory is pushed out for files that are read once, or not soon.

They come in whole pages, of the file and of memory alike; `rooms` are memory that fits.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantkit.storage import os_files

PAGE = 4096  # bytes; no common disk wants larger ones
Block = np.ndarray[Any, np.dtype[np.uint8]]


def open_direct(path: Path, mode: int = os.O_WRONLY) -> int | None:
    """A descriptor for such writes to a file that exists, or (`os.O_RDONLY`) reads; None where the
    system has none (only Linux and its file systems on disks do)."""
    if sys.platform != "linux" or not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, mode | os.O_DIRECT)
    except OSError:
        return None


class BlockPool:
    """Blocks of memory that are used again: new ones would have to be cleared for every chunk.

    Each has room for `block` bytes, and those of them that nobody has used yet cost nothing; `most`
    bytes have been used in all, unless more are in use at once. Any number of threads may take.
    """

    def __init__(self, most: int, block: int) -> None:
        self._most, self._block, self._held = most, block, 0
        self._free: list[tuple[Block, int]] = []  # and how much of each was used
        self._lock = threading.Lock()

    def take(self, size: int) -> Block:
        """At least `size` bytes, as they are; they are free again when the last array that looks
        at them is gone. A large block is in huge pages, if the system has them."""
        if not self._block // 4 <= size <= self._block:
            return np.empty(size, np.uint8)
        with self._lock:
            block, used = self._free.pop() if self._free else (np.empty(self._block, np.uint8), 0)
            self._held += max(size - used, 0)
            while self._free and self._held > self._most:  # the one that has waited longest
                self._held -= self._free.pop(0)[1]
        return np.asarray(_Lease(block, max(size, used), self._free))


class _Lease:
    """What an array holds on to as long as it looks at a block."""

    def __init__(self, block: Block, used: int, free: list[tuple[Block, int]]) -> None:
        self._block, self._used, self._free = block, used, free
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._free.append((self._block, self._used))


def rooms(places: Sequence[tuple[int, int]], memory: BlockPool | None = None) -> list[Block]:
    """Memory for pieces of `size` bytes that will be written at `offset`, as it is: all in one
    block (of `memory`)."""
    size = sum(size + PAGE for size, _ in places)
    block = memory.take(size) if memory else np.empty(size, np.uint8)
    at, blocks = block.ctypes.data, []
    end = at
    for size, offset in places:
        start = end + (offset - end) % PAGE
        end = start + size
        blocks.append(block[start - at : end - at])
    return blocks


def has_pages(offset: int, size: int) -> bool:
    """Whether any page lies whole in a piece of a file."""
    return -offset % PAGE + PAGE <= size


class End(NamedTuple):
    """What a piece of a file fills of a page that its neighbour fills the rest of."""

    owner: Any
    page: memoryview
    data: memoryview  # in the page
    offset: int  # in the file


class Pages(NamedTuple):
    """Whole pages for `offset`, part after part, and where they met ends that waited."""

    offset: int
    parts: list[memoryview]
    met: list[int]


class SharedPages:
    """Pages of a file in which two pieces meet: what the first fills waits for the other, and they
    are written once and whole. (The two ends written as they come are two small writes, through
    the cache, for every piece: many small ones cost a disk more than a few large ones.)

    Each piece is `join`ed with what waits on its sides, its pages are written, then they are
    `settle`d. What still waits is to be written as it is, now and then (`leave`). Calls are the
    caller's to serialise, the writes between them are not.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, End] = {}  # by where the pieces meet
        self._met: dict[int, End] = {}  # on their way to the disk, with what they met
        self._free: list[memoryview] = []  # pages

    def join(self, owner: Any, data: memoryview, offset: int) -> Pages:
        """The whole pages of a piece (`has_pages`), and those that it makes whole; its other ends
        wait."""
        begin, stop = -offset % PAGE, offset + len(data)
        end = len(data) - stop % PAGE
        parts, met, first = [_fitting(data[begin:end])], [], offset + begin
        if begin and (page := self._meet(owner, data[:begin], offset, offset)):
            parts.insert(0, page)
            met.append(offset)
            first -= PAGE
        if end < len(data) and (page := self._meet(owner, data[end:], offset + end, stop)):
            parts.append(page)
            met.append(stop)
        return Pages(first, parts, met)

    def _meet(self, owner: Any, data: memoryview, offset: int, where: int) -> memoryview | None:
        """The page of an end, if it is whole now."""
        at = offset % PAGE
        other = self._waiting.pop(where, None)
        if other is not None:
            other.page[at : at + len(data)] = data
            self._met[where] = other
            return other.page
        page = self._free.pop() if self._free else rooms([(PAGE, 0)])[0].data
        part = page[at : at + len(data)]
        part[:] = data
        self._waiting[where] = End(owner, page, part, offset)
        return None

    def settle(self, pages: Pages) -> None:
        """These were written."""
        for where in pages.met:
            self._free.append(self._met.pop(where).page)

    def leave(self) -> tuple[list[End], set[Any]]:
        """The ends that wait, to be written as they are: what they meet will be, too. And the
        owners of those that are on their way with what they met."""
        left, self._waiting = list(self._waiting.values()), {}
        return left, {end.owner for end in self._met.values()}


def _fitting(pages: memoryview) -> memoryview:
    """Pages at an address that is one of a page: a copy, if theirs is not."""
    data = np.frombuffer(pages, np.uint8)
    if data.__array_interface__["data"][0] % PAGE == 0:
        return pages
    [room] = rooms([(len(pages), 0)])
    room[:] = data
    return room.data


def write(direct: int, fd: int, pages: Pages) -> None:
    """Write pages by `direct`; by `fd` where the file turns out to want larger ones. Raises
    OSError."""
    try:
        wrote = os.pwritev(direct, pages.parts, pages.offset)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        wrote = 0
    offset = pages.offset
    for part in pages.parts:
        if wrote < len(part):  # the rest of it
            os_files.pwrite(fd, part[wrote:], offset + wrote)
        wrote, offset = max(wrote - len(part), 0), offset + len(part)


def read(direct: int, fd: int, size: int, offset: int) -> bytes | memoryview:
    """Up to `size` bytes at `offset`, shorter only at the end of the file: by `direct`, or by `fd`
    where the file turns out to want larger pages. Raises OSError."""
    begin, end = offset // PAGE * PAGE, -(-(offset + size) // PAGE) * PAGE
    [memory], there = rooms([(end - begin, 0)]), 0
    try:
        while there < end - begin:
            got = os.preadv(direct, [memory[there:].data], begin + there)
            there += got
            if got == 0 or there % PAGE:  # the end of the file
                break
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return os_files.pread(fd, size, offset)
    return memory[offset - begin : there][:size].data
