"""Small files, written whole or not at all, and directories; what the system says of a write, by
name."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantkit.errors import DiskFull, OutputError, OutputExists
from quantkit.storage import os_files

_NO_FILES = "/proc/", "/sys/"
_BEGINNING = 4096  # bytes of a file, among which one of zero is of no text
_LONGEST = 255  # bytes of a name, or 16-bit units on Windows


def output_error(e: OSError, path: Path) -> OutputError:
    """What the system says of a write, as an error with a name."""
    if e.errno == errno.ELOOP:
        return OutputError(f"{e.filename or path} is a link to another file; remove it")
    if e.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DiskFull(f"{path}: the disk is full ({e.strerror}); make room and run it again")
    if e.errno in (errno.EMFILE, errno.ENFILE):
        return OutputError(f"{path}: {e.strerror}; allow more (`ulimit -n 4096`) and run it again")
    if e.errno == errno.ENAMETOOLONG:
        return OutputError(f"{path}: its name is too long; give a shorter one with -o")
    if e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return OutputError(f"{path}: cannot be written ({e.strerror}); name another place with -o")
    return OutputError(f"{path}: cannot be written ({e.strerror}); mend that and run it again")


def check_name(path: Path, most: int = len(".partial")) -> None:
    """A file of this name, and one whose name is by up to `most` bytes longer while it is made, can
    be there. Raises OutputError."""
    if (n := len(os.fsencode(path.name)) + most) > _LONGEST:
        raise OutputError(
            f"{path.name}: {n} bytes, {most} of them for its name while it is made, and a name has "
            f"{_LONGEST} at most; give a shorter one with -o (files of a release are called after "
            "the source: rename that)"
        )


def check_place(path: Path, force: bool = True) -> None:
    """A small file can be put there: in place of another if `force` says so, never of a directory,
    a device or a pipe. Raises OutputError, OutputExists."""
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file")
    where = os.path.realpath(path.parent)  # /dev/stdout may lead to a file, and is none
    if (path.exists() and not path.is_file()) or where == "/dev" or where.startswith(_NO_FILES):
        raise OutputError(f"{path} is no place for a file; name another")
    if path.exists() and not force:
        raise OutputExists(f"{path} exists; give --force to overwrite it")


def check_text_place(path: Path, force: bool) -> None:
    """As `check_place`, for a text, which comes in place of another text alone. Raises OutputError,
    OutputExists."""
    check_place(path, force)
    if path.exists():
        with path.open("rb") as file:
            if b"\0" in file.read(_BEGINNING):
                raise OutputExists(
                    f"{path} exists, and is no text; name another file, or remove it"
                )


def making(path: Path) -> Path:
    """Where a small file is until it is whole."""
    return path.with_name(f".{path.name}.new")


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """A file of these bytes in place of one that may be there; synced before this returns. Raises
    DiskFull, OutputError; what was there is there still."""
    check_place(path)
    beside = making(path)
    try:
        beside.unlink(missing_ok=True)  # what a killed run left, or a link of somebody's
        fd = os_files.open_new(beside)
        try:
            at = 0
            for part in parts:
                os_files.pwrite(fd, memoryview(part), at)
                at += len(part)
            os_files.sync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
        os_files.sync_directories([path.parent])
    except OSError as e:
        raise output_error(e, path) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file in place of one that may be there; one that holds the same is left alone.
    Bytes of names that are no UTF-8 are written as JSON escapes them. Raises DiskFull,
    OutputError."""
    data = text.encode(errors="backslashreplace")
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, [data])
    else:
        making(path).unlink(missing_ok=True)  # what a killed run left


def remove(path: Path) -> None:
    """Remove what was written so, or was being written."""
    for each in (path, making(path)):
        each.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """A directory and those above it, if they are not there. Raises DiskFull, OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise output_error(e, path) from None


@contextlib.contextmanager
def made_directories(directories: Iterable[Path]) -> Iterator[None]:
    """Make directories that are not there, and those above them; those that are still empty are
    removed if the body fails. Raises DiskFull, OutputError."""
    new = {p for d in directories for p in (d, *d.parents) if not p.exists()}
    try:
        for path in sorted(new):
            make_directory(path)
        yield
    except BaseException:
        for path in sorted(new, reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
