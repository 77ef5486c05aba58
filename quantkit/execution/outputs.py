"""The files that a run writes: `.partial` until whole, journalled, locked against a second run."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from quantkit.errors import (
    CorruptFile,
    DiskFull,
    ModelError,
    OutputError,
    OutputExists,
    OutputInUse,
    SourceChanged,
)
from quantkit.execution.journal import (
    Identity,
    Journal,
    RowRange,
    identities,
    is_complete,
    source_digest,
)
from quantkit.planning.plan import Plan, PlannedFile
from quantkit.storage import direct_io, os_files
from quantkit.storage.whole import check_name, output_error

SYNC_SECONDS = 5.0  # how much work a power cut may cost
HELD_BYTES = 1 << 24  # of a file, before the disk is set to work on it


def partial_path(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(path.name + ".partial")


def journal_path(path: Path) -> Path:
    """What of it is on disk."""
    return path.with_name(path.name + ".journal")


class OutputFile:
    """One file in the making. Threads may `write`; one thread at a time may `sync`."""

    def __init__(
        self, planned: PlannedFile, fd: int, journal: Journal, resumed: bool = False
    ) -> None:
        self.planned, self._fd, self.journal, self.resumed = planned, fd, journal, resumed
        self._direct: int | None = None
        self.tensors = {t.name: (i, t) for i, t in enumerate(planned.tensors)}
        self._written: list[RowRange] = []
        self._shared = direct_io.SharedPages()
        self._synced = False  # the header, at least
        self._held = 0  # bytes that the system may not have begun to write
        self._lock = threading.Lock()

    def has(self, tensor: str, row: int, count: int) -> bool:
        """Whether an earlier run wrote these rows."""
        return self.resumed and self.journal.has(self.tensors[tensor][0], row, count)

    def offset(self, tensor: str, row: int, row_bytes: int) -> int:
        """Where in the file a row of a tensor begins."""
        return self.tensors[tensor][1].offset + row * row_bytes

    def write(self, tensor: str, row: int, count: int, data: memoryview) -> None:
        """Rows of a tensor, at their place. Raises DiskFull, OutputError."""
        rows, offset = self._rows(tensor, row, count), self.offset(tensor, row, len(data) // count)
        if self._direct is None or not direct_io.has_pages(offset, len(data)):
            self._ask(os_files.pwrite, self._fd, data, offset)
            self._note(rows, len(data))
            return
        with self._lock:
            pages = self._shared.join(rows, data, offset)
        self._ask(direct_io.write, self._direct, self._fd, pages)
        with self._lock:
            self._shared.settle(pages)
            self._written.append(rows)

    def copy(self, tensor: str, row: int, count: int, fd: int, offset: int, size: int) -> None:
        """Rows of a tensor from another file, as they are there. Raises DiskFull, OutputError."""
        to = self.offset(tensor, row, size // count)
        self._ask(os_files.copy_range, fd, self._fd, offset, to, size)
        self._note(self._rows(tensor, row, count), size)

    def begin(self) -> None:
        """Give the file its size and its header (again, if an earlier run did)."""
        self._ask(os_files.reserve, self._fd, self.planned.size)
        self._ask(os_files.pwrite, self._fd, memoryview(self.planned.header), 0)
        self._direct = direct_io.open_direct(partial_path(self.planned.path))

    def sync(self) -> None:
        """Bring what was written to the disk, then say so in the journal."""
        with self._lock:
            ends, under_way = self._shared.leave()
            written = [rows for rows in self._written if rows not in under_way]
            self._written = [rows for rows in self._written if rows in under_way]
        for end in ends:
            self._ask(os_files.pwrite, self._fd, end.data, end.offset)
        if written or not self._synced:
            self._ask(os_files.sync, self._fd)
            self._synced = True
            self.journal.append(written)

    def discard(self) -> None:
        """Remove what there is of the file."""
        self._close_file()
        partial_path(self.planned.path).unlink(missing_ok=True)
        self.journal.remove()

    def rename(self) -> None:
        """Give the file its name. Raises OutputError."""
        self._close_file()
        self._ask(os.replace, partial_path(self.planned.path), self.planned.path)

    def close(self) -> None:
        """Let go of the file and its journal, and of the lock with them."""
        self._close_file()
        self.journal.close()

    def _close_file(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
        if self._fd >= 0:
            os.close(self._fd)
        self._direct, self._fd = None, -1

    def _rows(self, tensor: str, row: int, count: int) -> RowRange:
        return self.tensors[tensor][0], row, count

    def _ask(self, call: Callable[..., None], *arguments: Any) -> None:
        """Something of the system. Raises DiskFull, OutputError."""
        try:
            call(*arguments)
        except OSError as e:
            raise output_error(e, self.planned.path) from None

    def _note(self, rows: RowRange, cached: int) -> None:
        """Rows that were written, and how many bytes of them the system holds."""
        with self._lock:
            self._written.append(rows)
            self._held += cached
            if full := self._held >= HELD_BYTES:
                self._held = 0
        if full:
            os_files.start_writing(self._fd)


def check_outputs(plan: Plan, force: bool) -> None:
    """Everything about the outputs that can be known before the first byte.

    Raises OutputExists, DiskFull, OutputError (no directory; an input would be overwritten).
    """
    inputs = {os_files.real(path) for path in plan.inputs if isinstance(path, Path)}
    needed: dict[Path, int] = {}
    check_names(plan)
    for f in plan.files:
        parent = os_files.real(f.path.parent)  # a link is replaced, not followed
        there = os_files.nearest(parent)
        if not there.is_dir():
            raise OutputError(f"{there} is a file, and no directory; name another output with -o")
        if f.path.is_dir():
            raise OutputError(f"{f.path} is a directory; name the file with -o")
        if os_files.real(f.path) in inputs:
            raise OutputError(f"{f.path} is the input; name another output with -o")
        if not force and is_whole(f.path):
            _remove_journals(plan)
            raise OutputExists(f"{f.path} exists already; --force overwrites it")
        begun = os_files.allocated(partial_path(f.path))
        needed[there] = needed.get(there, 0) + max(f.size - begun, 0)
    for parent, size in needed.items():
        if size > (free := os_files.free_bytes(parent)):
            raise DiskFull(
                f"{parent}: {_amount(size)} needed, {_amount(free)} free; "
                "make room, or name another disk with -o"
            )


def check_names(plan: Plan) -> None:
    """Raises OutputError where a file's name is too long."""
    for f in plan.files:
        check_name(f.path)


def is_whole(path: Path) -> bool:
    """Whether there is something of that name that no run is at."""
    return path.exists() and not journal_path(path).exists()


def _remove_journals(plan: Plan) -> None:
    """Remove those of files that have their names: a run that is killed at its very end leaves
    them, and no other looks at them again if it removed the first."""
    for f in plan.files:
        path = journal_path(f.path)
        if path.is_file() and f.path.is_file() and not partial_path(f.path).exists():
            with suppress(OSError), ExitStack() as held:  # it may be at it right now
                lock = os_files.open_locked(path)
                held.callback(os.close, lock)
                if is_complete(lock):
                    os_files.remove_open(path, held.close)


def _amount(nbytes: int) -> str:
    """Bytes in a unit in which small numbers differ."""
    unit, name = next(
        u for u in ((1e9, "GB"), (1e6, "MB"), (1, "bytes")) if nbytes >= 10 * u[0] or u[0] == 1
    )
    return f"{nbytes / unit:,.{2 if unit > 1 else 0}f} {name}"


@contextmanager
def open_outputs(
    plan: Plan, importance: Mapping[str, Any], force: bool, ready: Callable[[], None]
) -> Iterator[list[OutputFile]]:
    """The files of the plan that are not whole yet, when all else is `ready`. Renamed if the body
    ends well.

    If it does not, what is on disk stays for the next run, but for a model that is wrong, or whose
    files are (nothing could ever come of it). Raises SourceChanged, OutputInUse, OutputExists,
    JournalMismatch, DiskFull and OutputError.
    """
    source = source_digest(plan)
    begun = _open_all(plan, identities(plan, importance), force, ready)
    try:
        with _syncing(begun):
            yield begun
        for output in begun:
            output.sync()
        if source_digest(plan) != source:
            for output in begun:
                output.discard()  # it is of both
            raise SourceChanged("the source changed while it was read; run it again")
        for output in begun:
            output.journal.finish()
        for output in begun:
            output.rename()
        os_files.sync_directories({f.path.parent for f in plan.files})
        for output in begun:
            output.journal.remove()
        for path in {f.path for f in plan.files} - {output.planned.path for output in begun}:
            journal_path(path).unlink(missing_ok=True)
    except (ModelError, CorruptFile):
        for output in begun:
            output.discard()
        raise
    except BaseException:
        for output in begun:
            with suppress(OutputError):
                output.sync()
        raise
    finally:
        for output in begun:
            output.close()


def _open_all(
    plan: Plan, names: Mapping[Path, Identity], force: bool, ready: Callable[[], None]
) -> list[OutputFile]:
    begun: list[OutputFile] = []
    os_files.allow_open(3 * len(plan.files))  # the file itself, past the page cache, its journal
    try:
        for f in plan.files:
            if (output := _open(f, names[f.path], force)) is not None:
                begun.append(output)
        ready()
    except BaseException:
        for output in begun:
            if not output.resumed:
                output.discard()
            output.close()
        raise
    return begun


def _open(f: PlannedFile, identity: Identity, force: bool) -> OutputFile | None:
    """A file to be written, begun anew or gone on with; None if an earlier run finished it."""
    partial, journal = partial_path(f.path), journal_path(f.path)
    output, fds = None, ExitStack()
    try:
        lock = os_files.open_locked(journal)
        fds.callback(os.close, lock)
        found = None if force else Journal.resume(journal, lock, identity)
        if found is not None and found.complete and f.path.is_file() and not partial.exists():
            return None  # the run died after the file had taken its name
        fd = os_files.open_there(partial)
        fds.callback(os.close, fd)
        if found is not None and os.fstat(fd).st_size == f.size:
            output = OutputFile(f, fd, found, resumed=True)
        elif f.path.exists() and not force:
            raise OutputExists(f"{f.path} exists already; --force overwrites it")
        else:
            os.ftruncate(fd, 0)
            output = OutputFile(f, fd, Journal.create(journal, lock, identity))
        fds.pop_all()  # they are the output's now
        output.begin()
        return output
    except BlockingIOError:
        raise OutputInUse(f"{f.path} is being written by another run; wait for it") from None
    except OutputError:
        if output is None:
            _remove_empty(fds, partial, journal)
        elif output.resumed:
            output.close()
        else:
            output.discard()
        raise
    except OSError as e:
        _remove_empty(fds, partial, journal)
        raise output_error(e, f.path) from None
    finally:
        fds.close()


def _remove_empty(fds: ExitStack, *paths: Path) -> None:
    """Remove what was only just made, and close it."""
    for path in paths:
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode) and os.lstat(path).st_size == 0:
                os_files.remove_open(path, fds.close)


@contextmanager
def _syncing(outputs: list[OutputFile]) -> Iterator[None]:
    """Sync every few seconds, beside the work. What goes wrong there is raised at the end."""
    stop = threading.Event()
    failed: list[OutputError] = []

    def run() -> None:
        while not stop.wait(SYNC_SECONDS):
            try:
                for output in outputs:
                    output.sync()
            except OutputError as e:
                failed.append(e)
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
