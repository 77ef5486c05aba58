"""The few calls to the operating system that differ between platforms, each behind one function."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

_seek_lock = threading.Lock()


def pread(fd: int, size: int, offset: int) -> bytes:
    """Read up to `size` bytes at `offset`; shorter only at the end of the file."""
    parts: list[bytes] = []
    while size > 0:
        part = _pread_once(fd, size, offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pwrite(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError as the system does (ENOSPC and others)."""
    while len(data):
        done = _pwrite_once(fd, data, offset)
        data, offset = data[done:], offset + done


def _pread_once(fd: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    with _seek_lock:  # Windows: one file position a descriptor
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


def _pwrite_once(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def open_read(path: Path) -> int:
    """A descriptor for reading bytes."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def open_write(path: Path) -> int:
    """A descriptor for a new, empty file that is read and written at offsets."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o644)


def free_bytes(directory: Path) -> int:
    """Bytes that an ordinary user can still write below `directory`."""
    return shutil.disk_usage(directory).free


def reserve(fd: int, size: int) -> None:
    """Give a new file its size, in blocks that are really there where the system can promise them.

    What is not written afterwards reads as zeros. Raises OSError (ENOSPC among others).
    """
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(fd, size)
