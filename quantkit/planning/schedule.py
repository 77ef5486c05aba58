"""How a plan is carried out: in which chunks, by how many threads, in how much memory. Pure.

What is written does not depend on any of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from quantkit.errors import RecipeError
from quantkit.gguf.types import type_by_name
from quantkit.planning.plan import Plan
from quantkit.source.segments import Segment
from quantkit.source.tensors import BANDS
from quantkit.storage.inputs import AT_ONCE

CHUNK_WEIGHTS = 1 << 21  # what a worker takes at once, if a row is not longer
BASE_MEMORY = 250_000_000  # bytes of the interpreter with its libraries and compiled kernels
USUAL_MEMORY = 1_000_000_000  # bytes that a run stays below if it can
ROOM = 1 << 27  # bytes of chunks that wait for a slow disk, if there is so much
_LEAST = 1 << 12  # weights in a chunk


@dataclass(frozen=True)
class Chunk:
    """The rows that a worker takes at once: `count` rows of a segment, from its row `start` on."""

    tensor: str
    segment: Segment
    start: int
    count: int

    @property
    def row(self) -> int:
        """The row of the tensor that the first of them becomes."""
        return self.segment.first_row + self.start


class Stages(NamedTuple):
    """Threads in each stage of a run."""

    read: int
    make: int
    write: int


@dataclass(frozen=True)
class Schedule:
    """A plan in chunks of at most `chunk_weights` weights (or one row), on `threads` cores.

    `room`: bytes of chunks that may be under way at once; at least `least_memory`.
    """

    plan: Plan
    threads: int = 1
    chunk_weights: int = CHUNK_WEIGHTS
    room: int = 0

    def chunks(self) -> Iterator[Chunk]:
        """The work, in the order of the segments. No chunk holds rows of two experts, since each
        has importances of its own."""
        tensors = {name: t for output in self.plan.outputs for name, t in output.by_name.items()}
        for name, segments in self.plan.segments.items():
            t = tensors[name]
            matrix = t.shape[-2] if len(t.shape) == 3 else t.weights
            for s in segments:
                most = self._most_rows(s)
                start = 0
                while start < s.count:
                    in_matrix = matrix - (s.first_row + start) % matrix
                    count = min(most, s.count - start, in_matrix)
                    yield Chunk(name, s, start, count)
                    start += count

    def chunk_bytes(self, chunk: Chunk) -> int:
        """Memory that a chunk takes: as read, put in order or decoded, and in every format."""
        segment = chunk.segment
        source = self.plan.sources[segment.source]
        weights = segment.row_length(source) * chunk.count
        read = segment.source_bytes(source, chunk.count)
        moved = read if segment.order or segment.height or segment.step > 1 else 0
        decoded = 0 if source.ggml.is_float and not segment.edits else 4 * weights
        arriving = read if source.is_remote else 0  # what connections hold, as measured
        return arriving + max(read * segment.step + moved, read + decoded + self.made_bytes(chunk))

    def made_bytes(self, chunk: Chunk) -> int:
        """Memory that a chunk takes in every format."""
        plan = self.plan
        weights = chunk.segment.row_length(plan.sources[chunk.segment.source]) * chunk.count
        held = [o.by_name[chunk.tensor] for o in plan.outputs if chunk.tensor in o.by_name]
        return sum(type_by_name(fmt).row_bytes(weights) for fmt in {t.format for t in held})

    def most_made(self) -> int:
        """Memory that any chunk takes in every format, at most."""
        return max(map(self.made_bytes, self._large_chunks()), default=0)

    @cached_property
    def least_memory(self) -> int:
        """The bytes of weights that a run has to hold to keep its cores busy: a chunk for every
        thread of a stage, and one that waits for each stage but the first."""
        most = max(map(self.chunk_bytes, self._large_chunks()), default=0)
        return (sum(self.stages) + 2) * most + BANDS * self._band

    @property
    def workers(self) -> int:
        """Threads that keep the cores busy where each reads what it works on: more where rows come
        from a server."""
        return self.threads + AT_ONCE * self.plan.is_remote

    @property
    def stages(self) -> Stages:
        """Threads of each stage that keep the cores busy."""
        beside = (self.threads + 1) // 2
        return Stages(AT_ONCE if self.plan.is_remote else beside, self.threads, beside)

    def _most_rows(self, s: Segment) -> int:
        """Rows of a segment that are a chunk: whole groups, of which the order is one."""
        unit = max(len(s.order), 1)
        row_length = s.row_length(self.plan.sources[s.source])
        return max(self.chunk_weights // (row_length * unit), 1) * unit

    def _large_chunks(self) -> Iterator[Chunk]:
        """The largest chunks of each tensor: one of all that are alike, since a mixture has as many
        as it has experts."""
        for name, segments in self.plan.segments.items():
            alike: dict[tuple[object, ...], Segment] = {}
            for s in segments:
                source = self.plan.sources[s.source]
                rows = s.count, s.step, s.height, len(s.order), len(s.edits)
                alike.setdefault((*rows, source.ggml, source.n_per_row), s)
            for s in alike.values():
                yield Chunk(name, s, 0, min(self._most_rows(s), s.count))

    @property
    def _band(self) -> int:
        """Bytes of the largest matrix that is fetched whole because its columns are wanted."""
        sources = self.plan.sources
        wanted = [(s.height, sources[s.source]) for r in self.plan.segments.values() for s in r]
        return max((height * t.row_bytes for height, t in wanted if t.is_remote), default=0)


def schedule(plan: Plan, threads: int, memory: int | None = None) -> Schedule:
    """The plan in chunks so small that `threads` workers stay within `memory` bytes, what the
    interpreter and its libraries take included. Without a number: below a gigabyte, if they can.
    Raises RecipeError if the smallest chunks do not keep within a number that was given."""
    most = (memory or USUAL_MEMORY) - BASE_MEMORY
    candidate = Schedule(plan, threads)
    while (needed := candidate.least_memory) > most:
        if candidate.chunk_weights < _LEAST:
            if memory is None:
                break
            raise RecipeError(
                f"--memory {memory / 1e6:.0f}MB is too little: {threads} threads need at least "
                f"{(BASE_MEMORY + needed) / 1e6:.0f}MB; give more, or fewer --threads"
            )
        candidate = replace(candidate, chunk_weights=candidate.chunk_weights // 2)
    return replace(candidate, room=max(needed, min(ROOM, most)))
