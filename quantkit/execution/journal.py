"""What of an output is on disk already, so that a run that died resumes where it stopped.

A journal stands beside the `.partial` file that it speaks of. Its first line identifies the file
to be made; every line after that, `tensor row count`, names rows that have reached the disk (data
is synced before its line is written). A last line cut short by a crash does not count.

The run that writes a file has its journal locked, from before the file is opened until it has its
name: the file itself has to be closed then, since Windows renames nothing that is open.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import JournalMismatch
from quantkit.model.model import Model
from quantkit.planning.plan import Plan, PlannedFile
from quantkit.source.segments import Segment
from quantkit.storage import os_files
from quantkit.storage.inputs import fingerprint

RowRange = tuple[int, int, int]  # index of the tensor in its file, first row, count

DIGEST_VERSION = 2  # of `plan_digest`; 1 hashed Python's repr, and its digests bear no number
_COMPLETE = "complete"


@dataclass(frozen=True)
class Identity:
    """What a file is going to be: everything that its bytes depend on. `plan` is a `plan_digest`,
    `source` and `importance` are SHA-256 of the source files' fingerprints and of the matrix."""

    quantkit: str
    plan: str
    source: str
    importance: str


_DIFFERENCES = {
    "quantkit": "another version of quantkit",
    "plan": "other options or another type",
    "source": "another source, or one that changed since",
    "importance": "another importance matrix",
}


def identities(plan: Plan, importance: Mapping[str, Any]) -> dict[Path, Identity]:
    """The identity of each file of a plan, by its path."""
    source = source_digest(plan)
    weights = hashlib.sha256()
    for name in sorted(importance):
        weights.update(name.encode() + importance[name].tobytes())
    return {
        f.path: Identity(__version__, plan_digest(plan, f), source, weights.hexdigest())
        for f in plan.files
    }


def source_digest(plan: Plan) -> str:
    """SHA-256 of the fingerprints of the source's files, as they are now."""
    source = hashlib.sha256()
    for file in sorted(plan.inputs, key=str):
        source.update(f"{file.name}\0{fingerprint(file)}\0".encode("utf-8", "surrogateescape"))
    return source.hexdigest()


def plan_digest(plan: Plan, f: PlannedFile) -> str:
    """`VERSION:SHA-256` of all that a file's bytes depend on beside the source's bytes and the
    importance matrix: its header, then a line of JSON for each tensor with its segments.

    Names, shapes, formats and offsets of tensors are in the header. The fields are listed one by
    one so that a new field of `Segment` changes no digest: if bytes depend on it, list it here and
    count DIGEST_VERSION up.
    """
    digest = hashlib.sha256(f.header)
    for t in f.tensors:
        digest.update(_line_of(t.name, plan.segments[t.name]))
    return f"{DIGEST_VERSION}:{digest.hexdigest()}"


def model_digest(model: Model) -> str:
    """The same of what every type has in common: the keys of a model, and the shapes and segments
    of its tensors."""
    digest = hashlib.sha256()
    for item in model.kv:
        digest.update(item.key.encode("utf-8", "surrogateescape") + b"\0" + item.raw)
    for t in model.tensors:
        digest.update(f"{t.shape}".encode() + _line_of(t.name, t.segments))
    return f"{DIGEST_VERSION}:{digest.hexdigest()}"


def _line_of(name: str, segments: Iterable[Segment]) -> bytes:
    """A tensor with its segments as a line of JSON."""
    fields = [
        [
            s.source,
            s.source_row,
            s.first_row,
            s.count,
            s.order,
            s.step,
            s.height,
            s.column,
            s.edits,
        ]
        for s in segments
    ]
    return json.dumps([name, fields], separators=(",", ":")).encode() + b"\n"


def other_version(digest: str) -> str | None:
    """`an older version of quantkit`, or `a newer` one, if that is what took a plan's digest: it
    cannot be compared with those taken here."""
    number, colon, _ = digest.partition(":")
    version = int(number) if colon and number.isdigit() else 1
    if version == DIGEST_VERSION:
        return None
    return f"{'an older' if version < DIGEST_VERSION else 'a newer'} version of quantkit"


def is_complete(fd: int) -> bool:
    """Whether the journal in the file `fd` says that every row is there."""
    return f"\n{_COMPLETE}\n".encode() in os_files.pread(fd, os.fstat(fd).st_size, 0)


class Journal:
    """The rows of one file that are on disk. Callers must not append from two threads at once."""

    def __init__(self, path: Path, fd: int, done: Iterable[RowRange] = (), complete: bool = False):
        self.path, self._fd = path, fd
        self.complete = complete
        self._done: dict[int, list[tuple[int, int]]] = {}
        for rows in done:
            self._note(rows)

    @classmethod
    def create(cls, path: Path, fd: int, identity: Identity) -> Journal:
        """A new journal in the file `fd`, synced before this returns: no older one can be found
        beside new data."""
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, (json.dumps(asdict(identity)) + "\n").encode())
        os.fsync(fd)
        return cls(path, fd)

    @classmethod
    def resume(cls, path: Path, fd: int, identity: Identity) -> Journal | None:
        """The journal that a run left in the file `fd`, or None if there is none that can be read.

        Raises JournalMismatch if it identifies another file than `identity` does.
        """
        try:
            text = os_files.pread(fd, os.fstat(fd).st_size, 0)
            whole = text.rfind(b"\n") + 1
            lines = text[:whole].split(b"\n")[:-1]
            begun = json.loads(lines[0])
            plan = str(begun["plan"])
            begun.items()
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        name = path.name.removesuffix(".journal")
        if version := other_version(plan):
            raise JournalMismatch(
                f"{name} was begun by {version}; finish it with that one, or begin anew with "
                "--force"
            )
        differences = [
            words for key, words in _DIFFERENCES.items() if begun.get(key) != getattr(identity, key)
        ]
        if differences:
            raise JournalMismatch(
                f"{name} was begun with {' and '.join(differences)}; --force begins anew"
            )
        done = []
        for line in lines[1:]:
            with contextlib.suppress(ValueError):
                tensor, row, count = map(int, line.split())
                if min(tensor, row, count) >= 0:
                    done.append((tensor, row, count))
        os.ftruncate(fd, whole)  # what is noted next is no end of a line that was cut short
        os.lseek(fd, 0, os.SEEK_END)
        return cls(path, fd, done, complete=_COMPLETE.encode() in lines)

    def has(self, tensor: int, row: int, count: int) -> bool:
        """Whether all these rows are on disk."""
        runs = self._done.get(tensor, ())
        return any(start <= row and row + count <= end for start, end in runs)

    def append(self, rows: Iterable[RowRange]) -> None:
        """Note rows whose data has been synced. The note is synced before this returns."""
        rows = list(rows)
        for r in rows:
            self._note(r)
        self._write("".join(f"{t} {row} {n}\n" for t, row, n in rows))

    def finish(self) -> None:
        """Note that every row is there, and the file may be renamed."""
        self._write(f"{_COMPLETE}\n")
        self.complete = True

    def close(self) -> None:
        """Close the journal; it stays on disk, and is locked no longer."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def remove(self) -> None:
        """Close the journal and remove it."""
        os_files.remove_open(self.path, self.close)

    def _write(self, text: str) -> None:
        rest = text.encode()
        while rest:  # as a disk fills up, less than all is written at first
            rest = rest[os.write(self._fd, rest) :]
        os_files.sync(self._fd)

    def _note(self, rows: RowRange) -> None:
        """Add rows to a tensor's sorted runs, joining neighbours."""
        tensor, start, count = rows
        runs: list[tuple[int, int]] = []
        for a, b in sorted([*self._done.get(tensor, ()), (start, start + count)]):
            if runs and a <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(runs[-1][1], b))
            else:
                runs.append((a, b))
        self._done[tensor] = runs
