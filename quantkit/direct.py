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
from typing import Any

import numpy as np

from quantkit import disk

PAGE = 4096  # bytes; no common disk wants larger ones
_UNIT = 1 << 18  # bytes of which blocks are multiples, so that rows of about a length share them
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


class Memory:
    """Blocks of memory that are used again, so that the system need not clear new ones for every
    chunk: `most` bytes of them, unless more are in use at once. Any number of threads may take."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._free: dict[int, list[Block]] = {}
        self._lock = threading.Lock()

    def take(self, size: int) -> Block:
        """At least `size` bytes, as they are; they are free again when the last array that looks
        at them is gone. A large block is in huge pages, if the system has them."""
        if size < _UNIT:
            return np.empty(size, np.uint8)
        size = -(-size // _UNIT) * _UNIT
        with self._lock:
            alike = self._free.setdefault(size, [])
            if alike:
                block = alike.pop()
            else:
                self._let_go(size)
                block = np.empty(size, np.uint8)
        return np.asarray(_Lease(block, alike))

    def _let_go(self, size: int) -> None:
        """Free blocks of other sizes, as far as there is no room for them beside a new one."""
        self._held += size
        for blocks in self._free.values():
            while blocks and self._held > self._most:
                self._held -= blocks.pop().size


class _Lease:
    """What an array holds on to as long as it looks at a block."""

    def __init__(self, block: Block, free: list[Block]) -> None:
        self._block, self._free = block, free
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._block)


def rooms(places: Sequence[tuple[int, int]], memory: Memory | None = None) -> list[Block]:
    """Memory for pieces of `size` bytes that will be written at `offset`, as it is: all in one
    block (of `memory`)."""
    size = sum(size + PAGE for size, _ in places)
    block = memory.take(size) if memory else np.empty(size, np.uint8)
    at, found = block.ctypes.data, []
    end = at
    for size, offset in places:
        start = end + (offset - end) % PAGE
        end = start + size
        found.append(block[start - at : end - at])
    return found


def write(direct: int, fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`: its whole pages by `direct`, its ends by `fd`; all of it by
    `fd` where the file turns out to want larger pages. Raises OSError."""
    begin, end = -offset % PAGE, (offset + len(data)) // PAGE * PAGE - offset
    if begin >= end:
        disk.pwrite(fd, data, offset)
        return
    pages = np.frombuffer(data[begin:end], np.uint8)
    if pages.ctypes.data % PAGE:
        [fitting] = rooms([(len(pages), 0)])
        fitting[:] = pages
        pages = fitting
    try:
        disk.pwrite(direct, pages.data, offset + begin)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        disk.pwrite(fd, data[begin:end], offset + begin)
    disk.pwrite(fd, data[:begin], offset)
    disk.pwrite(fd, data[end:], offset + end)


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
        return disk.pread(fd, size, offset)
    return memory[offset - begin : there][:size].data
