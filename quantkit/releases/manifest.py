"""`manifest.json`: what a release holds, file by file and tensor by tensor, with SHA-256 sums.

Beside the facts of the model it keeps what the files were made from, as digests, so that a later
run knows whether it is the same release. While a release is being made, its record is
`manifest.json.partial`: the files that were begun, and the sums that were taken so far.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event, Lock
from typing import Any

from quantkit.errors import CorruptFile
from quantkit.execution.stages import in_threads
from quantkit.planning.plan import PlannedFile
from quantkit.progress import Progress
from quantkit.storage import os_files
from quantkit.storage.inputs import LocalInput

NAME, SUMS = "manifest.json", "SHA256SUMS"
BLOCK = 1 << 22  # bytes hashed at once; hashlib lets other threads run meanwhile
Manifest = dict[str, Any]
Record = dict[str, Any]  # of one file: its entry in `files`
_INNERMOST = re.compile(r"\{[^{}]*\}")
_FIELDS = {"name": str, "type": str, "bytes": int, "sha256": str, "tensors": list}


def partial_path(directory: Path) -> Path:
    """The record of a release in the making."""
    return directory / f"{NAME}.partial"


def read(path: Path) -> Manifest | None:
    """A manifest, or None if there is none. Raises CorruptFile."""
    try:
        found = json.loads(path.read_bytes())
        files = [*found["files"], *found.get("left", [])]
        typed = all(isinstance(f[key], kind) for f in files for key, kind in _FIELDS.items())
        named = isinstance(found["name"], str) and isinstance(found.get("errors", {}), dict)
        if not (typed and named and all(map(_is_plain, files))):
            raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptFile(f"{path}: not a manifest, or damaged; remove it and run again") from None
    return dict(found)


def _is_plain(record: Mapping[str, Any]) -> bool:
    """Whether the file lies in the release's directory."""
    return bool(record["name"]) and record["name"] == os.path.basename(record["name"])


def write(path: Path, text: str) -> None:
    """Put a text in a file, whole or not at all; a file that says the same is left alone."""
    data, making = text.encode(), path.with_name(f".{path.name}.new")
    try:
        if not path.exists() or path.read_bytes() != data:
            with making.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(making, path)
            os_files.sync_directories([path.parent])
    finally:
        making.unlink(missing_ok=True)  # also what a run that was killed left


def remove(path: Path) -> None:
    """Take away what `write` wrote, or was writing."""
    for gone in (path, path.with_name(f".{path.name}.new")):
        gone.unlink(missing_ok=True)


def as_json(manifest: Manifest) -> str:
    """The manifest's text, a line a tensor."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    return _INNERMOST.sub(lambda found: re.sub(r"\n +", " ", found[0]), text) + "\n"


def as_sums(files: Iterable[Record]) -> str:
    """What `sha256sum -c` reads."""
    return "".join(f"{f['sha256']}  {f['name']}\n" for f in files)


def sums(
    path: Path, spans: Sequence[tuple[int, int]] = (),
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[str, list[str]]:  # fmt: skip
    """The SHA-256 of a file, and of spans of bytes (start, end) in it, in order: one read, of what
    is on the disk and not in the system's cache.

    `advance` is told of every few bytes that are done.
    """
    whole, parts = hashlib.sha256(), [hashlib.sha256() for _ in spans]
    with closing(LocalInput(path)) as f:
        f.spare_memory()
        at = 0
        for stop, digest in _stops(spans, parts, f.size):
            while at < stop and (data := f.pread(min(BLOCK, stop - at), at)):
                whole.update(data)
                if digest is not None:
                    digest.update(data)
                at += len(data)
                advance(len(data))
    return whole.hexdigest(), [part.hexdigest() for part in parts]


def _stops(
    spans: Sequence[tuple[int, int]], parts: Sequence[Any], size: int
) -> Iterator[tuple[int, Any]]:
    """Where each stretch of a file ends, and the digest of the span that it is, if it is one."""
    for (start, end), part in zip(spans, parts, strict=True):
        yield start, None
        yield end, part
    yield size, None


def take(
    files: Mapping[Path, tuple[str, PlannedFile]], threads: int, progress: Progress,
    note: Callable[[Path, Record], None],
) -> None:  # fmt: skip
    """Take the sums of files, given the type and the plan of each. `note` is told of each record as
    soon as it is there, one at a time."""
    stop, one = Event(), Lock()
    advance = _counting(files, "taking checksums", progress, stop)

    def work(path: Path) -> None:
        kind, planned = files[path]
        spans = [(t.offset, t.offset + t.nbytes) for t in planned.tensors]
        whole, parts = sums(path, spans, advance)
        tensors = [
            {"name": t.name, "format": t.format, "shape": list(t.shape), "offset": t.offset,
             "bytes": t.nbytes, "sha256": digest}
            for t, digest in zip(planned.tensors, parts, strict=True)
        ]  # fmt: skip
        record = {"name": path.name, "type": kind, "bytes": path.stat().st_size, "sha256": whole}
        with one:
            note(path, {**record, "tensors": tensors})

    for _ in in_threads(work, files, threads, stop.set):
        pass


def wrong(expected: Mapping[Path, Record], threads: int, progress: Progress) -> set[Path]:
    """The files that are not what their records say. Every byte is read, if the size is right."""
    stop, sized = Event(), [p for p, r in expected.items() if p.stat().st_size == r["bytes"]]
    advance = _counting(sized, "checking checksums", progress, stop)

    def work(path: Path) -> Path | None:
        return None if sums(path, (), advance)[0] == expected[path]["sha256"] else path

    found = set(expected) - set(sized)
    return found.union(filter(None, in_threads(work, sized, threads, stop.set)))


def _counting(
    paths: Iterable[Path], step: str, progress: Progress, stop: Event
) -> Callable[[int], None]:
    """What counts bytes that are done, and ends the work after `stop`."""
    total, done = sum(path.stat().st_size for path in paths), 0

    def advance(n: int) -> None:
        nonlocal done
        if stop.is_set():
            raise InterruptedError
        done += n  # a bar may miss a few, where threads meet
        progress.update(step, done, total)

    return advance
