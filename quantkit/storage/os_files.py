"""The few calls to the operating system that differ between platforms, each behind one function."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from quantkit.storage import windows

# what is written is never somebody's link to another file
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
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
    """A descriptor for reading bytes. Raises OSError; EINVAL where they come from a pipe or a
    device, which may never end."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(mode := os.fstat(fd).st_mode) and not stat.S_ISDIR(mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return fd


def read_file(path: Path) -> bytes:
    """All bytes of a file. Raises OSError as `open_read` does."""
    with open(open_read(path), "rb") as file:
        return file.read()


def open_new(path: Path) -> int:
    """A descriptor for a new, empty file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | NO_LINK
    return os.open(path, flags, 0o644)


def open_there(path: Path) -> int:
    """A descriptor for a file as it is, made empty if it is not there."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | NO_LINK
    return os.open(path, flags, 0o644)


def open_locked(path: Path) -> int:
    """A descriptor for a file, made if need be, that no other process can open so until it is
    closed. Raises BlockingIOError if one has."""
    while True:
        fd = open_there(path)
        try:
            _lock(fd)
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except OSError as e:
            os.close(fd)
            if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise BlockingIOError(e.errno, os.strerror(e.errno), str(path)) from None
            raise
        os.close(fd)  # renamed or removed between the two calls: it is another file now


def _lock(fd: int) -> None:
    try:
        import fcntl
    except ImportError:
        windows.lock(fd)
        return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync(fd: int) -> None:
    """Bring a file's data, and its size, to the disk."""
    getattr(os, "fdatasync", os.fsync)(fd)


def start_writing(fd: int) -> None:
    """Have the system begin to write what it holds of a file, and do not wait for it. Left to
    itself it would wait for seconds, and `sync` for all of it at once."""
    if (call := _sync_file_range()) is not None:
        call(fd, 0, 0, 2)  # the whole file; SYNC_FILE_RANGE_WRITE


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function: Callable[[int, int, int, int], int] = call
    return function


def sync_directories(directories: Iterable[Path]) -> None:
    """Bring renames to the disk, where the system can be asked to."""
    for directory in directories:
        try:
            fd = os.open(directory, os.O_RDONLY)
        except OSError:  # Windows cannot open a directory
            continue
        with contextlib.suppress(OSError):
            os.fsync(fd)
        os.close(fd)


def copy_range(source: int, target: int, source_offset: int, offset: int, size: int) -> None:
    """Copy bytes between files, inside the kernel where it can."""
    while size > 0:
        done = 0
        if hasattr(os, "copy_file_range"):
            try:
                done = os.copy_file_range(source, target, size, source_offset, offset)
            except OSError as e:
                if e.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        if done == 0:
            data = pread(source, min(size, 1 << 22), source_offset)
            if not data:
                raise OSError(errno.EIO, "the input ends early")
            pwrite(target, memoryview(data), offset)
            done = len(data)
        size, source_offset, offset = size - done, source_offset + done, offset + done


def allow_open(more: int) -> None:
    """Have so many `more` files allowed to be open, where the system has a limit that may be raised
    (256 at first on macOS; models have hundreds of shards and splits)."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        wanted = len(os.listdir("/dev/fd")) + more + 64
    except OSError:
        wanted = more + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft not in (resource.RLIM_INFINITY, -1) and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # what is refused is named where it fails
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 << 30


def expect(fd: int, offset: int, size: int) -> bool:
    """Have the system fetch bytes of a file that will be read soon, and do not wait for it. False
    where it cannot be asked to."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)
        return True
    return False


def forget(fd: int, offset: int, size: int) -> None:
    """Tell the system that these bytes of a file will not be read again."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def fingerprint(path: Path) -> str:
    """What tells a file from one that was changed since: its size and time."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def allocated(path: Path) -> int:
    """Bytes that a file occupies on the disk; 0 if it is not there."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing that a library itself writes to standard error is seen: a panic in Rust is told
    there, in many lines, before it becomes an exception."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def real(path: Path) -> Path:
    """Where a path leads. Links that lead to themselves are what they are, where `Path.resolve` of
    Python before 3.13 raises a RuntimeError."""
    return Path(os.path.realpath(path))


def nearest(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    return next(p for p in (path, *path.parents) if p.exists())


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
    if sys.platform == "win32":
        windows.extend(fd, size)
    else:
        os.ftruncate(fd, size)


def remove_open(path: Path, close: Callable[[], None]) -> None:
    """Remove a file that this process has open, and `close` it: in that order where the system
    removes open files, so that nobody finds it in between. If another process holds it by then, it
    stays."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:  # Windows
        close()
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)
    else:
        close()
