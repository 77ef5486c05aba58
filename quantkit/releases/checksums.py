"""SHA-256 of files and of the tensors in them, and files held against those on record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event, Lock
from typing import Any

from quantkit.execution.stages import in_threads
from quantkit.planning.plan import PlannedFile
from quantkit.progress import Progress
from quantkit.releases.manifest import BegunFile, FileRecord, TensorRecord
from quantkit.storage.inputs import LocalInput

BLOCK = 1 << 22  # bytes hashed at once; hashlib lets other threads run meanwhile


def hash_file(
    path: Path,
    spans: Sequence[tuple[int, int]] = (),
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[str, list[str]]:
    """The SHA-256 of a file, and of spans of bytes (start, end) in it, in order and apart from each
    other. The file is read once, from the disk and not from the system's cache.

    `advance` is called with the number of bytes of each block that was hashed.
    """
    whole, parts = hashlib.sha256(), [hashlib.sha256() for _ in spans]
    with closing(LocalInput(path)) as f:
        f.spare_memory()
        at = 0
        for stop, digest in _stretches(spans, parts, f.size):
            while at < stop and (data := f.pread(min(BLOCK, stop - at), at)):
                whole.update(data)
                if digest is not None:
                    digest.update(data)
                at += len(data)
                advance(len(data))
    return whole.hexdigest(), [part.hexdigest() for part in parts]


def _stretches(
    spans: Sequence[tuple[int, int]], parts: Sequence[Any], size: int
) -> Iterator[tuple[int, Any]]:
    """Where each stretch of a file ends, and the digest of the span that it is, if it is one."""
    for (start, end), part in zip(spans, parts, strict=True):
        yield start, None
        yield end, part
    yield size, None


def hash_files(
    files: Mapping[Path, tuple[BegunFile, PlannedFile]],
    threads: int,
    progress: Progress,
    note: Callable[[Path, FileRecord], None],
) -> None:
    """Hash files that were made, given what each is. `note` is called with each record as soon as
    it is there, from one thread at a time."""
    stop, one = Event(), Lock()
    advance = _counter(files, "taking checksums", progress, stop)

    def work(path: Path) -> None:
        begun, planned = files[path]
        spans = [(t.offset, t.offset + t.nbytes) for t in planned.tensors]
        whole, parts = hash_file(path, spans, advance)
        tensors = tuple(
            TensorRecord(t.name, t.format, t.shape, t.offset, t.nbytes, digest)
            for t, digest in zip(planned.tensors, parts, strict=True)
        )
        size = path.stat().st_size
        with one:
            note(path, FileRecord(path.name, begun.type, size, whole, tensors, begun.plan))

    for _ in in_threads(work, files, threads, stop.set):
        pass


def mismatches(
    expected: Mapping[Path, FileRecord], threads: int, progress: Progress
) -> frozenset[Path]:
    """The files that are not what their records say. A file of the right size is read whole."""
    stop, sized = Event(), [p for p, r in expected.items() if p.stat().st_size == r.nbytes]
    advance = _counter(sized, "checking checksums", progress, stop)

    def work(path: Path) -> Path | None:
        return None if hash_file(path, (), advance)[0] == expected[path].sha256 else path

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
