"""Files to read from, here or on the Hub, behind one `pread`."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from quantkit.hub.repository import Reader, RemoteFile
from quantkit.storage import direct_io, os_files

File = Path | RemoteFile  # both have `name`, `suffix` and `parent`, and print as people know them
LARGE_READ = 1 << 18  # bytes; smaller ones are better read ahead by the system
_T = TypeVar("_T")
AT_ONCE = 16  # requests under way, where the answer takes longer than the bytes


class Input(Protocol):
    """An open file of `size` bytes. Any number of threads may read."""

    @property
    def size(self) -> int: ...

    def pread(self, size: int, offset: int) -> bytes | bytearray | memoryview:
        """`size` bytes at `offset`; shorter only at the end of the file."""

    def close(self) -> None: ...


class LocalInput:
    """A file on this machine, and its descriptor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os_files.open_read(path)
        self._direct: int | None = None
        self._spares = False
        found = os.fstat(self.fd)
        self.size = found.st_size
        if stat.S_ISDIR(found.st_mode):
            os.close(self.fd)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))

    def spare_memory(self) -> None:
        """Have the file read once: what goes through the system's memory for it does not stay."""
        self._direct = direct_io.open_direct(self.path, os.O_RDONLY)
        self._spares = True

    def expect(self, size: int, offset: int) -> bool:
        """Have the system fetch what `pread` will be asked for, so that it will not have to wait.
        False if it has to all the same."""
        return not self._spares and os_files.expect(self.fd, offset, size)

    def pread(self, size: int, offset: int) -> bytes | memoryview:
        """`size` bytes at `offset`; shorter only at the end of the file."""
        if self._direct is not None and size >= LARGE_READ:
            return direct_io.read(self._direct, self.fd, size, offset)
        data = os_files.pread(self.fd, size, offset)
        if self._spares:
            os_files.forget(self.fd, offset, size)
        return data

    def close(self) -> None:
        """Let go of the file."""
        if self._direct is not None:
            os.close(self._direct)
        os.close(self.fd)


def open_input(file: File, stop: threading.Event | None = None) -> Input:
    """Open a file for reading; `stop` ends what waits for a server. Raises OSError."""
    return Reader(file, stop) if isinstance(file, RemoteFile) else LocalInput(file)


def fingerprint(file: File) -> str:
    """What tells a file from one that was changed since."""
    return file.fingerprint if isinstance(file, RemoteFile) else os_files.fingerprint(file)


def map_files(read: Callable[[File], _T], files: Iterable[File]) -> list[_T]:
    """`read` of each file; several at once where they are far away."""
    files = list(files)
    if not any(isinstance(f, RemoteFile) for f in files):
        return [read(f) for f in files]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(read, files))
