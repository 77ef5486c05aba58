"""SHA-256 of files and of the tensors in them, of bytes as they follow each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from quantkit.planning.plan import PlannedFile


class FileSums(NamedTuple):
    """Digests in hexadecimal: of a file, and of its tensors in their order."""

    whole: str
    tensors: tuple[str, ...]


NoteSums = Callable[[Path, FileSums], None]
_NONE: Mapping[int, int] = MappingProxyType({})


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


class Stream:
    """The SHA-256 of `size` bytes, of pieces in their order. One that is not the next is not added,
    nor is any after it. `gaps`: how many zeros follow where a piece may end."""

    def __init__(self, size: int, start: bytes = b"", gaps: Mapping[int, int] = _NONE) -> None:
        self._sum, self._at = hashlib.sha256(start), len(start)
        self._size, self._gaps = size, gaps

    def add(self, at: int, data: memoryview) -> None:
        """The bytes from `at` on; hashlib lets other threads run meanwhile."""
        if at != self._at:
            return
        self._sum.update(data)
        self._at += len(data)
        if gap := self._gaps.get(self._at):
            self._sum.update(bytes(gap))
            self._at += gap

    def digest(self) -> str | None:
        """The sum in hexadecimal, if every piece was added."""
        return self._sum.hexdigest() if self._at == self._size else None


Piece = tuple[list[tuple[Stream, int]], memoryview]  # sums that it goes into, and where; its bytes


class SumsInPassing:
    """The sums of files in the making. A tensor that several of them hold in one format, which is
    made once for all, is added up once."""

    def __init__(self, files: Sequence[PlannedFile]) -> None:
        self._wholes = {f.path: _of_file(f) for f in files}
        self._parts = {
            (t.name, t.format): (Stream(t.nbytes), i)  # and the first file that holds it
            for i, f in reversed(list(enumerate(files)))
            for t in f.tensors
        }
        self._tensors = {f.path: [(t.name, t.format) for t in f.tensors] for f in files}

    def takers(
        self, tensor: str, kind: str, at: int, offsets: Mapping[Path, int]
    ) -> list[tuple[Stream, int]]:
        """What bytes of a tensor, from `at` on, are added to, and where. `offsets`: where they are
        in each file that has them; files whose sums are not taken are passed over."""
        files = [(self._wholes[p], offset) for p, offset in offsets.items() if p in self._wholes]
        return [(self._parts[tensor, kind][0], at), *files] if files else []

    def shares(self, threads: int) -> list[frozenset[Stream]]:
        """The sums divided among threads. Those of tensors and of their file are in two shares."""
        n = min(threads, 2 * len(self._wholes))
        of_files = list(self._wholes.values())
        return [
            frozenset(of_files[k::n]).union(
                part for part, i in self._parts.values() if (i + 1) % n == k
            )
            for k in range(n)
        ]

    def digests(self) -> Iterator[tuple[Path, FileSums]]:
        """The sums of each file of which every piece was added."""
        for path, stream in self._wholes.items():
            if whole := stream.digest():
                parts = [self._parts[key][0].digest() for key in self._tensors[path]]
                yield path, FileSums(whole, tuple(part for part in parts if part))


def add(mine: Container[Stream], pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Pieces into those sums that are `mine`, and what is left of them for others."""
    left = []
    for into, data in pieces:
        for stream, at in into:
            if stream in mine:
                stream.add(at, data)
        if others := [(stream, at) for stream, at in into if stream not in mine]:
            left.append((others, data))
    return tuple(left)


def _of_file(planned: PlannedFile) -> Stream:
    ends = [t.offset + t.nbytes for t in planned.tensors]
    starts = [*(t.offset for t in planned.tensors[1:]), planned.size]
    gaps = {end: start - end for end, start in zip(ends, starts, strict=False) if start > end}
    return Stream(planned.size, planned.header, gaps)
