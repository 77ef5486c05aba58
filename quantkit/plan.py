"""What will be written, to the byte, before a byte is written. Pure: no I/O, no weights.

A `Plan` is a frozen value: every file with its header, every tensor with its format and offset,
and the segments of source rows that fill it. `check` proves that it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm, prod
from pathlib import Path

from quantkit import recipes
from quantkit.checkpoint import SourceTensor
from quantkit.errors import PlanError, RecipeError
from quantkit.ggml_types import type_by_name
from quantkit.gguf_file import KeyValue, TensorInfo, align, header_bytes, replaced, uint32
from quantkit.mixtures import Facts
from quantkit.model import Model, ModelTensor
from quantkit.placement import Segment
from quantkit.recipes import Recipe

CHUNK_WEIGHTS = 1 << 20  # what a worker takes at once, if a row is not longer


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of one file: `offset` and `nbytes` in the file, `shape` in NumPy order."""

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int

    @property
    def weights(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class PlannedFile:
    """One output. `type` is its label: Q4_K_M, BF16 ..."""

    path: Path
    type: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]

    @cached_property
    def by_name(self) -> Mapping[str, PlannedTensor]:
        """The tensors by name."""
        return {t.name: t for t in self.tensors}

    @property
    def size(self) -> int:
        """The file's exact size in bytes."""
        if not self.tensors:
            return len(self.header)
        return align(self.tensors[-1].offset + self.tensors[-1].nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Tensor bytes over weights."""
        return 8 * sum(t.nbytes for t in self.tensors) / sum(t.weights for t in self.tensors)


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

    @property
    def source_row(self) -> int:
        """The row of the source that the chunk begins at."""
        return self.segment.source_row + self.start


@dataclass(frozen=True)
class Plan:
    """Everything that one run writes. All files hold the same tensors, in formats of their own."""

    files: tuple[PlannedFile, ...]
    segments: Mapping[str, tuple[Segment, ...]]
    sources: Mapping[str, SourceTensor]

    @property
    def source_bytes(self) -> int:
        """Bytes that will be read."""
        return sum(self._row_bytes(s.source) * s.count for t in self.segments.values() for s in t)

    def chunks(self) -> Iterator[Chunk]:
        """The work, in the order of the first file."""
        for t in self.files[0].tensors:
            for s in self.segments[t.name]:
                unit = max(len(s.order), 1)
                step = CHUNK_WEIGHTS // (self.sources[s.source].n_per_row * unit) * unit
                step = max(step, unit)
                for start in range(0, s.count, step):
                    yield Chunk(t.name, s, start, min(step, s.count - start))

    def chunk_bytes(self, chunk: Chunk) -> int:
        """Memory that a worker needs for a chunk: the rows as read, permuted, and in the widest
        of the outputs (they are made and written one after another)."""
        source = chunk.segment.source
        weights = self.sources[source].n_per_row * chunk.count
        read = self._row_bytes(source) * chunk.count
        formats = {type_by_name(f.by_name[chunk.tensor].format) for f in self.files}
        written = max(weights // f.block_size * f.type_size for f in formats)
        return read * (2 if chunk.segment.order else 1) + written

    def memory(self, threads: int) -> int:
        """The most bytes of weights that `threads` workers hold at once."""
        return threads * max(map(self.chunk_bytes, self.chunks()), default=0)

    def _row_bytes(self, source: str) -> int:
        t = self.sources[source]
        return t.ggml.row_bytes(t.n_per_row)


def plan_conversion(model: Model, label: str, path: Path) -> Plan:
    """The model in one file, each tensor as `stored`, in the converter's order."""
    formats = [t.stored for t in model.tensors]
    return _checked(model, [_file(path, label, model.kv, model.tensors, formats)])


def plan_quantization(model: Model, outputs: Sequence[tuple[Recipe, Path]]) -> Plan:
    """The model in one file a recipe, in llama-quantize's order. Raises RecipeError."""
    tensors = sorted(model.tensors, key=lambda t: _quantize_order(t.name))
    facts = model_facts(model)
    files = []
    for recipe, path in outputs:
        stored = [(t.name, t.shape, t.stored) for t in tensors]
        formats = [choice.format for choice in recipes.choose(recipe, facts, stored)]
        for t, wanted in zip(tensors, formats, strict=True):
            _check_source_type(model, t, wanted)
        kv = replaced(
            (item for item in model.kv if not item.key.startswith("split.")),
            uint32("general.quantization_version", 2),
            uint32("general.file_type", _file_type(recipe, model.kv, formats)),
        )
        files.append(_file(path, recipe.name, kv, tensors, formats))
    return _checked(model, files)


def _file_type(recipe: Recipe, kv: Sequence[KeyValue], formats: Sequence[str]) -> int:
    if recipe.base:
        return recipe.file_type
    stated = next((int(item.value) for item in kv if item.key == "general.file_type"), None)
    return recipes.guessed_file_type(formats) if stated is None else stated


def model_facts(model: Model) -> Facts:
    """What the recipes ask, from the model's metadata."""
    values = {item.key: item for item in model.kv}

    def number(name: str, default: int = 0) -> int:
        item = values.get(f"{model.arch}.{name}")
        value = default if item is None else item.value
        return int(value[0] if isinstance(value, list) else value)

    heads = number("attention.head_count")
    return Facts(
        arch=model.arch,
        n_layers=number("block_count"),
        n_experts=number("expert_count"),
        n_heads=heads,
        n_kv_heads=number("attention.head_count_kv", heads),
        tied=all(t.name != "output.weight" for t in model.tensors),
    )


def _quantize_order(name: str) -> tuple[int, str]:
    """llama.cpp sorts by layer, then by name; what is in no layer comes first."""
    parts = name.split(".", 2)
    in_block = len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal()
    return (int(parts[1]) if in_block else -1), name


def _check_source_type(model: Model, t: ModelTensor, wanted: str) -> None:
    for s in t.segments:
        source = model.sources[s.source]
        if source.ggml.name != wanted and not source.ggml.is_float:
            raise RecipeError(
                f"tensor {t.name} is {source.ggml.name} already and cannot become {wanted}; "
                "quantize from a 16- or 32-bit source"
            )


def _file(
    path: Path, label: str, kv: Sequence[KeyValue], tensors: Sequence[ModelTensor],
    formats: Sequence[str],
) -> PlannedFile:  # fmt: skip
    planned, infos, offset = [], [], 0
    for t, name in zip(tensors, formats, strict=True):
        ggml = type_by_name(name)
        nbytes = prod(t.shape) // ggml.block_size * ggml.type_size
        planned.append(PlannedTensor(t.name, t.shape, name, offset, nbytes))
        infos.append(TensorInfo(t.name, t.shape, ggml.id, offset))
        offset += align(nbytes)
    header = header_bytes(kv, infos)
    moved = tuple(replace(t, offset=len(header) + t.offset) for t in planned)
    return PlannedFile(path, label, header, moved)


def _checked(model: Model, files: Sequence[PlannedFile]) -> Plan:
    segments = {t.name: t.segments for t in model.tensors}
    plan = Plan(tuple(files), segments, model.sources)
    check(plan)
    return plan


def check(plan: Plan) -> None:
    """Prove that segments tile every tensor once, that tensors tile every file, and that every row
    of every source is used once. Raises PlanError."""
    for f in plan.files:
        end = len(f.header)
        for t in f.tensors:
            if t.offset != end or t.name not in plan.segments:
                raise PlanError(f"{f.path.name}: {t.name} starts at {t.offset}, not {end}")
            end = align(t.offset + t.nbytes)
        if f.by_name.keys() != plan.segments.keys():
            raise PlanError(f"{f.path.name} does not hold every tensor of the model")
    used: dict[str, list[tuple[int, int]]] = {name: [] for name in plan.sources}
    for t in plan.files[0].tensors:
        row = 0
        for s in plan.segments[t.name]:
            n = plan.sources[s.source].n_per_row
            if s.first_row != row or s.count % lcm(len(s.order) or 1):
                raise PlanError(f"{t.name}: rows {row} to {s.first_row} are filled by nothing")
            used[s.source].append((s.source_row, s.count))
            row += s.count
        if row * n != t.weights:
            raise PlanError(f"{t.name}: {row} rows of {n} weights do not make {t.shape}")
    for name, ranges in used.items():
        row = 0
        for start, count in sorted(ranges):
            if start != row:
                raise PlanError(f"source tensor {name}: row {min(start, row)} is not used once")
            row += count
        if row != plan.sources[name].n_rows:
            raise PlanError(f"source tensor {name}: {row} of {plan.sources[name].n_rows} rows used")
