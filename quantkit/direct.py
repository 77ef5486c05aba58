"""Reads and writes that go past the system's cache: nothing is copied, and nothing that others keep
in memory is pushed out for files that are read once, or not soon.

They come in whole pages, of the file and of memory alike; `rooms` are memory that fits.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import disk

PAGE = 4096  # bytes; no common disk wants larger ones


def open_direct(path: Path, mode: int = os.O_WRONLY) -> int | None:
    """A descriptor for such writes to a file that exists, or (`os.O_RDONLY`) reads; None where the
    system has none (only Linux and its file systems on disks do)."""
    if sys.platform != "linux" or not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, mode | os.O_DIRECT)
    except OSError:
        return None


def rooms(places: Sequence[tuple[int, int]]) -> list[np.ndarray[Any, Any]]:
    """Memory for pieces of `size` bytes that will be written at `offset`: uint8 `[size]` each, as
    it is. All of it is one array: a large one is in huge pages, if the system has them."""
    memory = np.empty(sum(size + PAGE for size, _ in places), np.uint8)
    at, found = memory.ctypes.data, []
    end = at
    for size, offset in places:
        start = end + (offset - end) % PAGE
        end = start + size
        found.append(memory[start - at : end - at])
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
