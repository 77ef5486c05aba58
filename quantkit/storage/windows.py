"""The calls that Python has no name for on Windows; nothing here is reached elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

_SET_SPARSE = 0x900C4  # FSCTL_SET_SPARSE (winioctl.h)
_END_OF_FILE = 6  # FileEndOfFileInfo (minwinbase.h)
_LOCKED_AT = (1 << 31) - 2  # a byte that no journal reaches, and old C runtimes can name


def lock(fd: int) -> None:
    """Lock a file against other processes, until it is closed. Raises OSError (EACCES, EDEADLK) if
    one has locked it.

    Locks are mandatory there, and of bytes: the one that is locked is none of the file's.
    """
    import msvcrt

    runtime: Any = msvcrt
    os.lseek(fd, _LOCKED_AT, os.SEEK_SET)
    try:
        runtime.locking(fd, runtime.LK_NBLCK, 1)
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


def extend(fd: int, size: int) -> None:
    """Give a file its size, as a sparse one: nothing is written. (C's `chsize`, which os.ftruncate
    is, writes zeros up to the new end; and so does the system, before what is written far behind
    the last byte of a file that is not sparse.) Raises OSError."""
    import msvcrt

    runtime: Any = msvcrt
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009
    handle = ctypes.c_void_p(runtime.get_osfhandle(fd))
    got = ctypes.c_uint32()
    # a file system without sparse files refuses; then zeros are written, and all is right
    kernel.DeviceIoControl(handle, _SET_SPARSE, None, 0, None, 0, ctypes.byref(got), None)
    end = ctypes.c_int64(size)
    if not kernel.SetFileInformationByHandle(handle, _END_OF_FILE, ctypes.byref(end), 8):
        code: int = getattr(ctypes, "get_last_error")()  # noqa: B009
        full = code in (39, 112)  # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, f"Windows error {code}")
