"""What will be written, to the byte, before a byte is written. Pure: no I/O, no weights.

A `Plan` is a frozen value: every file with its header, every tensor with its format and offset,
and the segments of source rows that fill it. `check` proves that it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

from quantkit import recipes
from quantkit.checkpoint import BANDS, SourceTensor
from quantkit.errors import PlanError, RecipeError
from quantkit.ggml_types import type_by_name
from quantkit.gguf_file import KeyValue, TensorInfo, align, header_bytes, replaced, uint32
from quantkit.inputs import AT_ONCE, File
from quantkit.mixtures import Facts
from quantkit.model import Model, ModelTensor
from quantkit.recipes import NO_OVERRIDES, Choice, Overrides, Recipe
from quantkit.segments import Segment, uncovered
from quantkit.splits import NO_SPLITS, Splits, split_keys, split_path

CHUNK_WEIGHTS = 1 << 20  # what a worker takes at once, if a row is not longer


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
    header: bytes
    tensors: tuple[PlannedTensor, ...]

    @property
    def size(self) -> int:
        """The file's exact size in bytes."""
        if not self.tensors:
            return len(self.header)
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

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Every file of every output."""
        return tuple(f for output in self.outputs for f in output.files)

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
                unit = max(len(s.order), 1)
                most = self.chunk_weights // (s.row_length(self.sources[s.source]) * unit) * unit
                start = 0
                while start < s.count:
                    in_matrix = matrix - (s.first_row + start) % matrix
                    count = min(max(most, unit), s.count - start, in_matrix)
                    yield Chunk(name, s, start, count)
                    start += count

    def chunk_bytes(self, chunk: Chunk) -> int:
        """Memory that a worker needs for a chunk: the rows as read, put in order or decoded, and in
        the widest of the outputs (they are made and written one after another)."""
        segment = chunk.segment
        source = self.sources[segment.source]
        weights = segment.row_length(source) * chunk.count
        read = segment.source_bytes(source, chunk.count)
        decoded = 0 if source.ggml.is_float and not segment.edits else 4 * weights
        moved = read if segment.order or segment.height or segment.step > 1 else 0
        held = [o.by_name[chunk.tensor] for o in self.outputs if chunk.tensor in o.by_name]
        formats = {type_by_name(t.format) for t in held}
        return read * segment.step + moved + decoded + max(f.row_bytes(weights) for f in formats)

    def memory(self, threads: int) -> int:
        """The most bytes of weights that a run on `threads` cores holds at once."""
        each = max(map(self.chunk_bytes, self.chunks()), default=0)
        return self.workers(threads) * each + BANDS * self._band

    def workers(self, threads: int) -> int:
        """Threads that keep `threads` cores busy: more where rows come from a server."""
        return threads + AT_ONCE * any(t.is_remote for t in self.sources.values())

    @property
    def _band(self) -> int:
        """Bytes of the largest matrix that is fetched whole because its columns are wanted."""
        wanted = [(s.height, self.sources[s.source]) for r in self.segments.values() for s in r]
        return max((height * t.row_bytes for height, t in wanted if t.is_remote), default=0)


@dataclass(frozen=True)
class Request:
    """What a person asks for beside the types; llama-quantize's options of the same names.

    `kv` are keys that a person sets (facts of the model follow them), `late_kv` keys that follow
    from other options. `strict` refuses an output that differs from its label.
    """

    overrides: Overrides = NO_OVERRIDES
    kv: tuple[KeyValue, ...] = ()
    late_kv: tuple[KeyValue, ...] = ()
    splits: Splits = NO_SPLITS
    only_splits: tuple[int, ...] = ()
    keep_split: bool = False
    allow_requantize: bool = False
    has_imatrix: bool = False
    strict: bool = False


PLAIN = Request()


def plan_conversion(model: Model, label: str, path: Path, splits: Splits = NO_SPLITS) -> Plan:
    """The model as a converter writes it: each tensor as `stored`, in the model's order."""
    choices = [Choice(t.stored) for t in model.tensors]
    sizes = [_nbytes(t.shape, t.stored) for t in model.tensors]
    groups = splits.groups(sizes)
    return _checked(model, [_output(label, path, model.kv, model.tensors, choices, groups)])


def plan_copy(model: Model, path: Path, splits: Splits = NO_SPLITS) -> Plan:
    """A GGUF model's own bytes, split in another way or not at all."""
    kv = tuple(item for item in model.kv if not item.key.startswith("split."))
    plan = plan_conversion(replace(model, kv=kv), "", path, splits)
    return replace(plan, verbatim=True)


def plan_quantization(
    model: Model, outputs: Sequence[tuple[Recipe, Path]], request: Request = PLAIN
) -> Plan:
    """The model in one output a recipe, in llama-quantize's order. Raises RecipeError."""
    tensors = sorted(model.tensors, key=lambda t: _quantize_order(t.name))
    if request.keep_split:
        shards = sorted({_shard(model, t) for t in tensors}, key=str)
        tensors = sorted(model.tensors, key=lambda t: shards.index(_shard(model, t)))
    facts = model_facts(model, request)
    stored = [(t.name, t.shape, t.stored) for t in tensors]
    planned = []
    for recipe, path in outputs:
        choices = recipes.choose(recipe, facts, stored, request.overrides)
        formats = [choice.format for choice in choices]
        if not request.allow_requantize:
            _check_requantization(model, tensors, formats)
        kv = replaced(
            (item for item in model.kv if not item.key.startswith("split.")),
            uint32("general.quantization_version", 2),
            uint32("general.file_type", _file_type(recipe, model.kv, formats)),
        )
        kv = replaced(replaced(kv, *request.kv), *request.late_kv)
        if request.keep_split:
            groups = _runs([_shard(model, t) for t in tensors])
        else:
            sizes = [_nbytes(t.shape, f) for t, f in zip(tensors, formats, strict=True)]
            groups = request.splits.groups([align(size) for size in sizes])
        output = _output(recipe.name, path, kv, tensors, choices, groups)
        if request.strict:
            _check_honest(output)
        planned.append(output)
    plan = _checked(model, planned)
    return only(plan, request.only_splits) if request.only_splits else plan


def only(plan: Plan, splits: Sequence[int]) -> Plan:
    """The part of a plan that makes these splits of every output, counted from 1.

    The files are those of the whole plan, byte for byte: splits are independent jobs. Raises
    RecipeError.
    """
    for output in plan.outputs:
        if beyond := [n for n in splits if not 1 <= n <= len(output.files)]:
            raise RecipeError(
                f"{output.type} has {len(output.files)} splits; there is no split {beyond[0]}"
            )
    outputs = tuple(
        replace(o, files=tuple(o.files[n - 1] for n in sorted(set(splits)))) for o in plan.outputs
    )
    held = {name for output in outputs for name in output.by_name}
    segments = {name: s for name, s in plan.segments.items() if name in held}
    used = {s.source for rows in segments.values() for s in rows}
    sources = {name: t for name, t in plan.sources.items() if name in used}
    return replace(plan, outputs=outputs, segments=segments, sources=sources)


def model_facts(model: Model, request: Request = PLAIN) -> Facts:
    """What the recipes ask, from the model's metadata and what a person sets in it."""
    values = {item.key: item for item in (*model.kv, *request.kv)}

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
        has_imatrix=request.has_imatrix,
    )


def _file_type(recipe: Recipe, kv: Sequence[KeyValue], formats: Sequence[str]) -> int:
    if recipe.base:
        return recipe.file_type
    stated = next((int(item.value) for item in kv if item.key == "general.file_type"), None)
    return recipes.guessed_file_type(formats) if stated is None else stated


def _shard(model: Model, t: ModelTensor) -> File:
    return model.sources[t.segments[0].source].path


def _runs(shards: Sequence[File]) -> list[range]:
    """The runs of tensors that lie in one shard of the source."""
    starts = [i for i, shard in enumerate(shards) if i == 0 or shard != shards[i - 1]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(shards)], strict=True)]


def _quantize_order(name: str) -> tuple[int, str]:
    """llama.cpp sorts by layer, then by name; what is in no layer comes first."""
    parts = name.split(".", 2)
    in_block = len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal()
    return (int(parts[1]) if in_block else -1), name


def _check_requantization(
    model: Model, tensors: Sequence[ModelTensor], formats: Sequence[str]
) -> None:
    for t, wanted in zip(tensors, formats, strict=True):
        for s in t.segments:
            source = model.sources[s.source]
            if source.ggml.name != wanted and not source.ggml.is_float:
                raise RecipeError(
                    f"tensor {t.name} is {source.ggml.name} already and would become {wanted}; "
                    "quantize from a 16- or 32-bit source, or give --allow-requantize"
                )


def _check_honest(output: Output) -> None:
    for t in output.by_name.values():
        if t.fallback_from or t.overridden:
            why = f"fell back from {t.fallback_from}" if t.fallback_from else "was chosen by hand"
            raise RecipeError(
                f"{output.type} would differ from its label: {t.name} is {t.format}, which {why}; "
                "--strict refuses that"
            )


def _nbytes(shape: Sequence[int], fmt: str) -> int:
    return type_by_name(fmt).row_bytes(prod(shape))


def _output(
    label: str, path: Path, kv: Sequence[KeyValue], tensors: Sequence[ModelTensor],
    choices: Sequence[Choice], groups: Sequence[range],
) -> Output:  # fmt: skip
    count = len(groups)
    files = []
    for i, group in enumerate(groups):
        keys = tuple(kv) if i == 0 else ()
        if count > 1:
            keys = (*keys, *split_keys(i, count, len(tensors)))
        name = split_path(path, i, count) if count > 1 else path
        files.append(_file(name, keys, [(tensors[j], choices[j]) for j in group]))
    return Output(label, tuple(files))


def _file(
    path: Path, kv: Sequence[KeyValue], tensors: Sequence[tuple[ModelTensor, Choice]]
) -> PlannedFile:
    planned, infos, offset = [], [], 0
    for t, choice in tensors:
        nbytes = _nbytes(t.shape, choice.format)
        planned.append(PlannedTensor(t.name, t.shape, choice.format, offset, nbytes,
                                     choice.fallback_from, choice.overridden))  # fmt: skip
        infos.append(TensorInfo(t.name, t.shape, type_by_name(choice.format).id, offset))
        offset += align(nbytes)
    header = header_bytes(kv, infos)
    moved = tuple(replace(t, offset=len(header) + t.offset) for t in planned)
    return PlannedFile(path, header, moved)


def _checked(model: Model, outputs: Sequence[Output]) -> Plan:
    made = {t.name: t.segments for t in model.tensors}
    segments = {name: made[name] for name in outputs[0].by_name}
    plan = Plan(tuple(outputs), segments, model.sources)
    check(plan)
    return plan


def check(plan: Plan) -> None:
    """Prove that segments tile every tensor once, that tensors tile every file, and that every row
    of every source is used once. Raises PlanError."""
    for f in plan.files:
        end = len(f.header)
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
        if found := uncovered(segments, plan.sources[name]):
            raise PlanError(f"source tensor {name}: {found}")
