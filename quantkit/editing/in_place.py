"""A header written over the one that is there, so that a power cut leaves the old one or the new.

Both are on the disk in `FILE.header` before the first byte of the file changes. A run that finds
such a record puts the old header back first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from quantkit.errors import OutputError, OutputInUse
from quantkit.gguf.container import MAX_HEADER
from quantkit.storage import os_files
from quantkit.storage.whole import output_error

_MARK = b"quantkit: two headers of a GGUF file\n"
_SUM = 32  # bytes of a SHA-256


def record_path(path: Path) -> Path:
    """Where both headers are while the file's is written."""
    return path.with_name(path.name + ".header")


def is_left(path: Path) -> bool:
    """Whether an edit of the file was interrupted, and its record is there."""
    try:
        with open(os_files.open_read(record_path(path)), "rb") as f:
            return f.read(len(_MARK)) == _MARK
    except OSError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a file that no other run edits meanwhile, whole: what an earlier edit left
    undone is undone. Raises OutputInUse, OutputError (a link; a record of something else)."""
    if path.is_symlink() or path.stat().st_nlink > 1:
        raise OutputError(f"{path} is a link, or has another name; write another file with -o")
    try:
        fd = os_files.open_locked(path)
    except BlockingIOError:
        raise OutputInUse(f"{path}: another run edits it") from None
    except OSError as e:
        raise output_error(e, path) from None
    try:
        _undo(path, fd)
        yield fd
    finally:
        os.close(fd)


def write_header(path: Path, fd: int, header: bytes) -> None:
    """Write a header over the file's, which has as many bytes. Raises OutputError, DiskFull; then
    the old one is there, or `FILE.header` is."""
    old = os_files.pread(fd, len(header), 0)
    both = old + header
    record = record_path(path)
    making = record.with_name(f"{record.name}.partial")
    try:
        try:
            making.unlink(missing_ok=True)
            with open(os_files.open_new(making), "wb") as f:
                f.write(_MARK + hashlib.sha256(both).digest() + both)
                f.flush()
                os.fsync(f.fileno())
            os.replace(making, record)
        finally:
            making.unlink(missing_ok=True)
        os_files.sync_directories([path.parent])
        _settle(path, fd, header)
    except OSError as e:
        raise output_error(e, path) from None


def _undo(path: Path, fd: int) -> None:
    """Put the old header back, if there is a record of an edit. Raises OutputError."""
    record = record_path(path)
    if not os.path.lexists(record):
        return
    if not is_left(path) or record.is_symlink() or record.stat().st_size > 2 * MAX_HEADER + 99:
        raise OutputError(f"{record} is in the way, and of no edit; move it elsewhere")
    data = record.read_bytes()[len(_MARK) :]
    digest, both = data[:_SUM], data[_SUM:]
    old, new = both[: len(both) // 2], both[len(both) // 2 :]
    now = os_files.pread(fd, len(old), 0)
    if hashlib.sha256(both).digest() != digest or not _is_of(now, old, new):
        raise OutputError(
            f"{record} is damaged, or of an edit of another file than {path.name} is now; remove "
            "it if the file is whole"
        )
    try:
        _settle(path, fd, old)
    except OSError as e:
        raise output_error(e, path) from None


def _settle(path: Path, fd: int, header: bytes) -> None:
    """Bring a header to the disk; then there is no need of the record. Raises OSError."""
    os_files.pwrite(fd, memoryview(header), 0)
    os.fsync(fd)
    record_path(path).unlink()
    os_files.sync_directories([path.parent])


def _is_of(now: bytes, old: bytes, new: bytes) -> bool:
    """Whether every byte is of one of the two: what an interrupted write leaves."""
    if not len(now) == len(old) == len(new):
        return False
    is_now, was, will = (np.frombuffer(data, np.uint8) for data in (now, old, new))
    return bool(((is_now == was) | (is_now == will)).all())
