"""What will be written, to the byte, before a byte is written: a frozen value, no I/O, no weights.

Every file with its header, every tensor with its format and offset, and the segments of source rows
that fill it. `check` proves that it is whole; `planner.py` is where plans come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

from quantkit.checkpoint import BANDS, SourceTensor
from quantkit.errors import PlanError
from quantkit.ggml_types import type_by_name
from quantkit.gguf_file import KeyValue, TensorInfo, align, header_bytes
from quantkit.inputs import AT_ONCE, File
from quantkit.segments import Segment, uncovered

CHUNK_WEIGHTS = 1 << 21  # what a worker takes at once, if a row is not longer


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of one file: `offset` and `nbytes` in the file, `shape` in NumPy order.

    `fallback_from`: the format that its rows do not divide into. `overridden`: chosen by a person.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int
    fallback_from: str | None = None
    overridden: bool = False

    @property
    def weights(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class PlannedFile:
    """One file."""

    path: Path
    kv: tuple[KeyValue, ...]
    tensors: tuple[PlannedTensor, ...]
    header_size: int

    @property
    def header(self) -> bytes:
        """The file's bytes up to the tensor data: made when they are asked for, since a vocabulary
        in the header of every output is much to hold."""
        infos = [
            TensorInfo(t.name, t.shape, type_by_name(t.format).id, t.offset - self.header_size)
            for t in self.tensors
        ]
        return header_bytes(self.kv, infos)

    @property
    def size(self) -> int:
        """The file's exact size in bytes."""
        if not self.tensors:
            return self.header_size
        return align(self.tensors[-1].offset + self.tensors[-1].nbytes)


@dataclass(frozen=True)
class Output:
    """One model as it will be written: a file, or several splits. `type` is its label."""

    type: str
    files: tuple[PlannedFile, ...]

    @cached_property
    def by_name(self) -> Mapping[str, PlannedTensor]:
        """All tensors by name."""
        return {t.name: t for f in self.files for t in f.tensors}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    @property
    def bits_per_weight(self) -> float:
        """Tensor bytes over weights, as they really are."""
        tensors = self.by_name.values()
        return 8 * sum(t.nbytes for t in tensors) / max(sum(t.weights for t in tensors), 1)

    @property
    def fallback_weights(self) -> int:
        """Weights in another format than the recipe's, because rows do not divide into blocks."""
        return sum(t.weights for t in self.by_name.values() if t.fallback_from)

    @property
    def overridden_weights(self) -> int:
        """Weights in a format that a person chose."""
        return sum(t.weights for t in self.by_name.values() if t.overridden)


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
class Plan:
    """Everything that one run writes. All outputs hold the same tensors, in formats of their own.

    `verbatim`: bytes are copied as they are (split and merge), and not looked at.
    """

    outputs: tuple[Output, ...]
    segments: Mapping[str, tuple[Segment, ...]]
    sources: Mapping[str, SourceTensor]
    verbatim: bool = False
    chunk_weights: int = CHUNK_WEIGHTS
    room: int = 0  # bytes of chunks that may be under way, if more than `memory` is to be had
    partial: frozenset[str] = frozenset()  # sources of which not all rows are wanted

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Every file of every output."""
        return tuple(f for output in self.outputs for f in output.files)

    @property
    def inputs(self) -> set[File]:
        """Every file that is read."""
        read = (t for t in self.sources.values() if t.data is None)
        return {part.path for t in read for part in (t, *t.parts)}

    @property
    def source_bytes(self) -> int:
        """Bytes that will be read."""
        return sum(
            s.source_bytes(self.sources[s.source], s.count)
            for segments in self.segments.values()
            for s in segments
        )

    def chunks(self) -> Iterator[Chunk]:
        """The work, in the order of the segments. No chunk holds rows of two experts, since each
        has importances of its own."""
        tensors = {name: t for output in self.outputs for name, t in output.by_name.items()}
        for name, segments in self.segments.items():
            t = tensors[name]
            matrix = t.shape[-2] if len(t.shape) > 2 else t.weights
            for s in segments:
                most = self._most_rows(s)
                start = 0
                while start < s.count:
                    in_matrix = matrix - (s.first_row + start) % matrix
                    count = min(most, s.count - start, in_matrix)
                    yield Chunk(name, s, start, count)
                    start += count

    def _most_rows(self, s: Segment) -> int:
        """Rows of a segment that are a chunk: whole groups, of which the order is one."""
        unit = max(len(s.order), 1)
        row_length = s.row_length(self.sources[s.source])
        return max(self.chunk_weights // (row_length * unit), 1) * unit

    def chunk_bytes(self, chunk: Chunk) -> int:
        """Memory that a chunk takes: as read, put in order or decoded, and in every format."""
        segment = chunk.segment
        source = self.sources[segment.source]
        weights = segment.row_length(source) * chunk.count
        read = segment.source_bytes(source, chunk.count)
        moved = read if segment.order or segment.height or segment.step > 1 else 0
        decoded = 0 if source.ggml.is_float and not segment.edits else 4 * weights
        made = self.made_bytes(chunk)
        arriving = read if source.is_remote else 0  # what connections hold, as measured
        return arriving + max(read * segment.step + moved, read + decoded + made)

    def made_bytes(self, chunk: Chunk) -> int:
        """Memory that a chunk takes in every format."""
        weights = chunk.segment.row_length(self.sources[chunk.segment.source]) * chunk.count
        held = [o.by_name[chunk.tensor] for o in self.outputs if chunk.tensor in o.by_name]
        return sum(type_by_name(fmt).row_bytes(weights) for fmt in {t.format for t in held})

    def most_made(self) -> int:
        """Memory that any chunk takes in every format, at most."""
        return max(map(self.made_bytes, self._large_chunks()), default=0)

    def memory(self, threads: int) -> int:
        """The bytes of weights that a run on `threads` cores has to hold to keep them busy: a chunk
        for every thread of a stage, and one that waits for each stage but the first."""
        most = max(map(self.chunk_bytes, self._large_chunks()), default=0)
        return (sum(self.stages(threads)) + 2) * most + BANDS * self._band

    def _large_chunks(self) -> Iterator[Chunk]:
        """The largest chunks of each tensor: one of all that are alike, since a mixture has as many
        as it has experts."""
        for name, segments in self.segments.items():
            alike: dict[tuple[object, ...], Segment] = {}
            for s in segments:
                source = self.sources[s.source]
                rows = s.count, s.step, s.height, len(s.order), len(s.edits)
                alike.setdefault((*rows, source.ggml, source.n_per_row), s)
            for s in alike.values():
                yield Chunk(name, s, 0, min(self._most_rows(s), s.count))

    def workers(self, threads: int) -> int:
        """Threads that keep `threads` cores busy where each reads what it works on: more where rows
        come from a server."""
        return threads + AT_ONCE * self._is_remote

    def stages(self, threads: int) -> Stages:
        """Threads of each stage that keep `threads` cores busy."""
        beside = (threads + 1) // 2
        return Stages(AT_ONCE if self._is_remote else beside, threads, beside)

    @property
    def _is_remote(self) -> bool:
        return any(t.is_remote for t in self.sources.values())

    @property
    def _band(self) -> int:
        """Bytes of the largest matrix that is fetched whole because its columns are wanted."""
        wanted = [(s.height, self.sources[s.source]) for r in self.segments.values() for s in r]
        return max((height * t.row_bytes for height, t in wanted if t.is_remote), default=0)


def check(plan: Plan) -> None:
    """Prove that segments tile every tensor once, that tensors tile every file, and that every row
    of every source is used once. Raises PlanError."""
    for f in plan.files:
        end = f.header_size
        for t in f.tensors:
            if t.offset != end:
                raise PlanError(f"{f.path.name}: {t.name} starts at {t.offset}, not {end}")
            end = align(t.offset + t.nbytes)
    for output in plan.outputs:
        held = sum(len(f.tensors) for f in output.files)
        if output.by_name.keys() != plan.segments.keys() or held != len(plan.segments):
            raise PlanError(f"{output.type} does not hold every tensor of the model once")
    used: dict[str, list[Segment]] = {name: [] for name in plan.sources}
    for t in plan.outputs[0].by_name.values():
        row = 0
        for s in plan.segments[t.name]:
            n = s.row_length(plan.sources[s.source])
            if s.first_row != row or s.count % (len(s.order) or 1):
                raise PlanError(f"{t.name}: rows {row} to {s.first_row} are filled by nothing")
            used[s.source].append(s)
            row += s.count
        if row * n != t.weights:
            raise PlanError(f"{t.name}: {row} rows of {n} weights do not make {t.shape}")
    for name, segments in used.items():
        if name in plan.partial:
            continue
        if found := uncovered(segments, plan.sources[name]):
            raise PlanError(f"source tensor {name}: {found}")
