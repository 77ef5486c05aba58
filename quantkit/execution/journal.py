"""What of an output is on disk already, so that a run that died goes on where it stopped.

A journal stands beside the `.partial` file that it speaks of. Its first line says what the file is
going to be; every line after that, `tensor row count`, names rows that have reached the disk (the
data is synced first, the line written after). A last line cut short by a crash is not a line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import JournalMismatch
from quantkit.planning.plan import Plan, PlannedFile
from quantkit.storage import os_files
from quantkit.storage.inputs import fingerprint

RowRange = tuple[int, int, int]  # index of the tensor in its file, first row, count
Identity = dict[str, str]

_WORDS = {
    "quantkit": "another version of quantkit",
    "plan": "other options or another type",
    "source": "another source, or one that changed since",
    "importance": "another importance matrix",
}
_COMPLETE = "complete"


def identities(plan: Plan, importance: Mapping[str, Any]) -> dict[Path, Identity]:
    """What each file of a plan is going to be, by its path: everything that its bytes depend on."""
    source = hashlib.sha256()
    for file in sorted(plan.inputs, key=str):
        source.update(f"{file.name}\0{fingerprint(file)}\0".encode())
    weights = hashlib.sha256()
    for name in sorted(importance):
        weights.update(name.encode() + importance[name].tobytes())
    return {
        f.path: {
            "quantkit": __version__,
            "plan": _plan_digest(plan, f),
            "source": source.hexdigest(),
            "importance": weights.hexdigest(),
        }
        for f in plan.files
    }


def _plan_digest(plan: Plan, f: PlannedFile) -> str:
    digest = hashlib.sha256(f.header)
    for t in f.tensors:
        digest.update(repr((t, plan.segments[t.name])).encode())
    return digest.hexdigest()


class Journal:
    """The rows of one file that are on disk. Appending is the caller's to serialise."""

    def __init__(self, path: Path, fd: int, done: Iterable[RowRange] = (), complete: bool = False):
        self.path, self._fd = path, fd
        self.complete = complete
        self._done: dict[int, list[tuple[int, int]]] = {}
        for rows in done:
            self._note(rows)

    @classmethod
    def create(cls, path: Path, identity: Identity) -> Journal:
        """A new journal, on disk when this returns: nobody finds an older one beside new data."""
        fd = os_files.open_new(path)
        os.write(fd, (json.dumps(identity) + "\n").encode())
        os.fsync(fd)
        return cls(path, fd)

    @classmethod
    def resume(cls, path: Path, identity: Identity) -> Journal | None:
        """The journal that a run left at `path`, or None if it left none that can be read.

        Raises JournalMismatch if it speaks of another file than `identity` does.
        """
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
            found = json.loads(lines[0])
        except (OSError, IndexError, ValueError):
            return None
        differ = [words for key, words in _WORDS.items() if found.get(key) != identity[key]]
        if differ:
            raise JournalMismatch(
                f"{path.name.removesuffix('.journal')} was begun with {' and '.join(differ)}; "
                "--force begins anew"
            )
        done = []
        for line in lines[1:]:
            with contextlib.suppress(ValueError):
                tensor, row, count = map(int, line.split())
                done.append((tensor, row, count))
        fd = os_files.open_append(path)
        return cls(path, fd, done, complete=_COMPLETE.encode() in lines)

    def has(self, tensor: int, row: int, count: int) -> bool:
        """Whether all these rows are on disk."""
        runs = self._done.get(tensor, ())
        return any(start <= row and row + count <= end for start, end in runs)

    def append(self, rows: Iterable[RowRange]) -> None:
        """Note rows whose data has been synced; on disk when this returns."""
        rows = list(rows)
        for r in rows:
            self._note(r)
        self._write("".join(f"{t} {row} {n}\n" for t, row, n in rows))

    def finish(self) -> None:
        """Note that every row is there, and the file may take its name."""
        self._write(f"{_COMPLETE}\n")
        self.complete = True

    def close(self) -> None:
        """Close, and leave it where it is."""
        os.close(self._fd)

    def _write(self, text: str) -> None:
        os.write(self._fd, text.encode())
        os_files.sync(self._fd)

    def _note(self, rows: RowRange) -> None:
        """Keep the rows of a tensor as sorted runs, neighbours joined."""
        tensor, start, count = rows
        runs: list[tuple[int, int]] = []
        for a, b in sorted([*self._done.get(tensor, ()), (start, start + count)]):
            if runs and a <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(runs[-1][1], b))
            else:
                runs.append((a, b))
        self._done[tensor] = runs
