"""SHA-256 of files and of the tensors in them, and files held against those on record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event, Lock

from quantkit.execution.stages import in_threads
from quantkit.execution.sums import FileSums, NoteSums, Sums
from quantkit.planning.plan import PlannedFile
from quantkit.progress import Progress
from quantkit.releases.manifest import BegunFile, FileRecord, TensorRecord
from quantkit.storage.inputs import LocalInput

BLOCK = 1 << 22  # bytes hashed at once; hashlib lets other threads run meanwhile


def hash_file(
    path: Path,
    spans: Sequence[tuple[int, int]] = (),
    advance: Callable[[int], None] = lambda n: None,
) -> FileSums:
    """The SHA-256 of a file, and of spans of bytes (start, end) in it, in order and apart from each
    other. The file is read once, from the disk and not from the system's cache.

    `advance` is called with the number of bytes of each block that was hashed.
    """
    sums = Sums(spans)
    with closing(LocalInput(path)) as f:
        f.spare_memory()
        while data := f.pread(min(BLOCK, f.size - sums.at), sums.at):
            sums.update(data)
            advance(len(data))
    return sums.digests()


def record_of(path: Path, begun: BegunFile, planned: PlannedFile, sums: FileSums) -> FileRecord:
    """The record of a file that was made."""
    size, tensors = path.stat().st_size, tensors_of(planned, sums)
    return FileRecord(path.name, begun.type, size, sums.whole, tensors, begun.plan)


def tensors_of(planned: PlannedFile, sums: FileSums) -> tuple[TensorRecord, ...]:
    """The records of a file's tensors."""
    return tuple(
        TensorRecord(t.name, t.format, t.shape, t.offset, t.nbytes, digest)
        for t, digest in zip(planned.tensors, sums.tensors, strict=True)
    )


def hash_files(
    files: Mapping[Path, PlannedFile],
    threads: int,
    progress: Progress,
    note: NoteSums,
) -> None:
    """Hash files that were made, as they are planned. `note` is called with each one's sums as soon
    as they are there, from one thread at a time."""
    stop, one = Event(), Lock()
    advance = _counter(files, "taking checksums", progress, stop)

    def work(path: Path) -> None:
        spans = [(t.offset, t.offset + t.nbytes) for t in files[path].tensors]
        sums = hash_file(path, spans, advance)
        with one:
            note(path, sums)

    for _ in in_threads(work, files, threads, stop.set):
        pass


def mismatches(
    expected: Mapping[Path, FileRecord], threads: int, progress: Progress
) -> frozenset[Path]:
    """The files that are not what their records say. A file of the right size is read whole."""
    stop, sized = Event(), [p for p, r in expected.items() if p.stat().st_size == r.nbytes]
    advance = _counter(sized, "checking checksums", progress, stop)

    def work(path: Path) -> Path | None:
        return None if hash_file(path, (), advance).whole == expected[path].sha256 else path

    changed = filter(None, in_threads(work, sized, threads, stop.set))
    return frozenset(set(expected) - set(sized)).union(changed)


def _counter(
    paths: Iterable[Path], step: str, progress: Progress, stop: Event
) -> Callable[[int], None]:
    """A function that counts bytes as done, and raises InterruptedError once `stop` is set."""
    total, done = sum(path.stat().st_size for path in paths), 0

    def advance(n: int) -> None:
        nonlocal done
        if stop.is_set():
            raise InterruptedError
        done += n  # a bar may miss a few, where threads meet
        progress.update(step, done, total)

    return advance
