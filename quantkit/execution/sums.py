"""SHA-256 of files and of the tensors in them, of bytes as they follow each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from quantkit.planning.plan import PlannedFile


class FileSums(NamedTuple):
    """Digests in hexadecimal: of a file, and of its tensors in their order."""

    whole: str
    tensors: tuple[str, ...]


NoteSums = Callable[[Path, FileSums], None]


class Sums:
    """SHA-256 of a file, and of spans of bytes (start, end) in it, in order and apart from each
    other, of bytes as they follow. `at`: how many there were."""

    def __init__(self, spans: Sequence[tuple[int, int]] = ()) -> None:
        self._whole, self._spans = hashlib.sha256(), spans
        self._parts = [hashlib.sha256() for _ in spans]
        self._first = 0  # of the spans that have not ended
        self.at = 0

    def update(self, data: memoryview | bytes) -> None:
        """The bytes that follow; hashlib lets other threads run meanwhile."""
        self._whole.update(data)
        view, begin, end = memoryview(data), self.at, self.at + len(data)
        while self._first < len(self._spans):
            start, stop = self._spans[self._first]
            self._parts[self._first].update(view[max(start - begin, 0) : max(stop - begin, 0)])
            if stop > end:
                break
            self._first += 1
        self.at = end

    def digests(self) -> FileSums:
        """The sums of what was given."""
        return FileSums(self._whole.hexdigest(), tuple(part.hexdigest() for part in self._parts))


class SumsInPassing:
    """The sums of a file in the making, of its pieces in their order."""

    def __init__(self, planned: PlannedFile) -> None:
        spans = [(t.offset, t.offset + t.nbytes) for t in planned.tensors]
        starts = [*(start for start, _ in spans[1:]), planned.size][: len(spans)]
        self._padding = {
            end: start - end for (_, end), start in zip(spans, starts, strict=True) if start > end
        }
        self._sums, self._size = Sums(spans), planned.size
        self._sums.update(planned.header)

    def add(self, offset: int, data: memoryview) -> None:
        """A piece of a tensor. One that is not the next is no longer added up."""
        if offset == self._sums.at:
            self._sums.update(data)
            self._sums.update(bytes(self._padding.get(self._sums.at, 0)))

    def digests(self) -> FileSums | None:
        """The sums, if every piece was added."""
        return self._sums.digests() if self._sums.at == self._size else None
