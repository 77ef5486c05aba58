"""What will be written, to the byte, before a byte is written: a frozen value, no I/O, no weights.

Every file with its header, every tensor with its format and offset, and the segments of source rows
that fill it. `check` proves that it is whole; `planner.py` is where plans come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from quantkit.errors import PlanError
from quantkit.gguf.container import KeyValue, TensorInfo, align, header_bytes
from quantkit.gguf.types import type_by_name
from quantkit.source.codings import kept_as
from quantkit.source.segments import Segment, uncovered
from quantkit.source.tensors import SourceTensor
from quantkit.storage.inputs import File


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
class Plan:
    """Everything that one run writes. All outputs hold the same tensors, in formats of their own.

    `verbatim`: bytes are copied as they are (split and merge), and not looked at.
    """

    outputs: tuple[Output, ...]
    segments: Mapping[str, tuple[Segment, ...]]
    sources: Mapping[str, SourceTensor]
    verbatim: bool = False
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
    def is_remote(self) -> bool:
        """Whether any of its rows come from a server."""
        return any(t.is_remote for t in self.sources.values())

    @property
    def quantized_before(self) -> tuple[str, ...]:
        """What the weights are quantized in before the run (`Q4_0`, `FP8`), that of most weights
        first; nothing of a source of floats."""
        held: Counter[str] = Counter()
        for name in {s.source for segments in self.segments.values() for s in segments}:
            t = self.sources[name]
            held[kept_as(t)] += t.n_rows * t.n_per_row
        ordered = sorted(held, key=lambda kept: (-held[kept], kept))
        return tuple(kept for kept in ordered if kept)

    @property
    def source_bytes(self) -> int:
        """Bytes that will be read."""
        return sum(
            s.source_bytes(self.sources[s.source], s.count)
            for segments in self.segments.values()
            for s in segments
        )


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
