"""From a model and what is asked of it to a plan. Pure: the same question has the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.errors import NotLoadable, RecipeError
from quantkit.gguf.container import KeyValue, align, header_size, replaced, uint32
from quantkit.gguf.splits import NO_SPLITS, Splits, split_keys, split_number, split_path
from quantkit.gguf.types import tensor_bytes, type_by_name
from quantkit.loading.kinds import kind_of
from quantkit.loading.model import container_faults, faults, is_known
from quantkit.loading.values import Info
from quantkit.model.model import Model, ModelTensor
from quantkit.planning.plan import Output, Plan, PlannedFile, PlannedTensor, check
from quantkit.recipes.choose import NO_OVERRIDES, Choice, Overrides, choose
from quantkit.recipes.facts import ModelFacts
from quantkit.recipes.file_types import Recipe, guessed_file_type
from quantkit.storage.inputs import File


@dataclass(frozen=True)
class Request:
    """What a person asks for beside the types; llama-quantize's options of the same names.

    `kv` are keys that a person sets (facts of the model follow them), `late_kv` keys that follow
    from other options. `strict` refuses an output that differs from its label. `importances` are
    the tensors that an importance matrix has data for, if there is a matrix.
    """

    overrides: Overrides = NO_OVERRIDES
    kv: tuple[KeyValue, ...] = ()
    late_kv: tuple[KeyValue, ...] = ()
    splits: Splits = NO_SPLITS
    only_splits: tuple[int, ...] = ()
    keep_split: bool = False
    allow_requantize: bool = False
    importances: frozenset[str] | None = None
    strict: bool = False


PLAIN = Request()


def plan_conversion(model: Model, label: str, path: Path, splits: Splits = NO_SPLITS) -> Plan:
    """The model as a converter writes it: each tensor as `stored`, in the model's order. Raises
    NotLoadable."""
    plan = laid_out(model, label, path, splits)
    _check_loads(plan.outputs[0], faults)
    return plan


def laid_out(
    model: Model, label: str, path: Path, splits: Splits = NO_SPLITS, *, keep_split: bool = False
) -> Plan:
    """As `plan_conversion`, whether llama.cpp would load it or not."""
    choices = [Choice(t.stored) for t in model.tensors]
    sizes = [tensor_bytes(t.shape, t.stored) for t in model.tensors]
    groups = _source_splits(model, model.tensors) if keep_split else splits.groups(sizes)
    return _checked(model, [_output(label, path, model.kv, model.tensors, choices, groups)])


def plan_copy(
    model: Model, path: Path, splits: Splits = NO_SPLITS, *, keep_split: bool = False
) -> Plan:
    """A GGUF model's own bytes, split in another way, as it is or not at all. Raises NotLoadable; a
    model of an architecture that llama.cpp does not have need only be a GGUF file."""
    kv = tuple(item for item in model.kv if not item.key.startswith("split."))
    plan = laid_out(replace(model, kv=kv), "", path, splits, keep_split=keep_split)
    _check_loads(plan.outputs[0], faults if is_known(model.arch) else container_faults)
    return replace(plan, verbatim=True)


def plan_quantization(
    model: Model, outputs: Sequence[tuple[Recipe, Path]], request: Request = PLAIN
) -> Plan:
    """The model in one output a recipe, in llama-quantize's order. Raises RecipeError,
    NotLoadable."""
    plan, refused = plan_possible(model, outputs, request)
    for error in refused.values():
        raise error
    return plan


def plan_possible(
    model: Model, outputs: Sequence[tuple[Recipe, Path]], request: Request = PLAIN
) -> tuple[Plan, dict[str, RecipeError]]:
    """The model in those of the recipes that can be made of it, and why the others cannot, by
    name. Raises RecipeError where none can, NotLoadable."""
    _check_kind(model)
    tensors = sorted(model.tensors, key=lambda t: _quantize_order(t.name))
    if request.keep_split:
        shards = sorted({_shard(model, t) for t in tensors}, key=str)
        tensors = sorted(model.tensors, key=lambda t: shards.index(_shard(model, t)))
    tensors = [replace(t, shape=_ggml_shape(t.shape)) for t in tensors]
    facts, already = model_facts(model, request), _quantized_already(model, tensors)
    planned, refused = [], {}
    for recipe, path in outputs:
        try:
            planned.append(_quantized(model, tensors, already, facts, recipe, path, request))
        except RecipeError as e:
            refused[recipe.name] = e
    if not planned:
        raise next(iter(refused.values()))
    for output in planned:
        _check_loads(output, faults)
    plan = _checked(model, planned)
    return (only(plan, request.only_splits) if request.only_splits else plan), refused


def _check_kind(model: Model) -> None:
    """Other types are made of models, and of what is run like one. Raises RecipeError."""
    kind = kind_of(model.kv, [t.name for t in model.tensors])
    if not kind.is_quantized:
        raise RecipeError(f"{model.name} is {kind.words}, of which no type is made; {kind.use}")


def _quantized(
    model: Model,
    tensors: Sequence[ModelTensor],
    already: Mapping[str, str],
    facts: ModelFacts,
    recipe: Recipe,
    path: Path,
    request: Request,
) -> Output:
    """One output of a plan. Raises RecipeError."""
    stored = [(t.name, t.shape, t.stored) for t in tensors]
    choices = choose(recipe, facts, stored, request.overrides)
    formats = [choice.format for choice in choices]
    _check_numbers(already, tensors, formats)
    if not request.allow_requantize:
        _check_requantization(already, tensors, formats)
    kv = replaced(
        (item for item in model.kv if not item.key.startswith("split.")),
        uint32("general.quantization_version", 2),
        uint32("general.file_type", _file_type(recipe, model.kv, formats)),
    )
    kv = replaced(replaced(kv, *request.kv), *request.late_kv)
    if request.keep_split:
        groups = _source_splits(model, tensors)
    else:
        sizes = [tensor_bytes(t.shape, f) for t, f in zip(tensors, formats, strict=True)]
        groups = request.splits.groups([align(size) for size in sizes])
    output = _output(recipe.name, path, kv, tensors, choices, groups)
    if request.strict:
        _check_honest(output)
    return output


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


def model_facts(model: Model, request: Request = PLAIN) -> ModelFacts:
    """What the recipes ask, from the model's metadata and what a person sets in it."""
    values = {item.key: item for item in (*model.kv, *request.kv)}

    def number(name: str, default: int = 0) -> int:
        item = values.get(f"{model.arch}.{name}")
        value = default if item is None else item.value
        return int(value[0] if isinstance(value, list) else value)

    heads = number("attention.head_count")
    return ModelFacts(
        arch=model.arch,
        # llama.cpp counts the layer without weights that finds a Granite's adapters
        n_layers=number("block_count") + (model.arch == "graniteswitch"),
        n_experts=number("expert_count"),
        n_heads=heads,
        n_kv_heads=number("attention.head_count_kv", heads),
        tied=all(t.name != "output.weight" for t in model.tensors),
        has_imatrix=request.importances is not None,
        importances=request.importances or frozenset(),
    )


def _ggml_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """ggml does not count an axis of one that no other stands before: `[1, n]` is `[n]` to it."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _file_type(recipe: Recipe, kv: Sequence[KeyValue], formats: Sequence[str]) -> int:
    if recipe.base:
        return recipe.file_type
    stated = next((int(item.value) for item in kv if item.key == "general.file_type"), None)
    return guessed_file_type(formats) if stated is None else stated


def _shard(model: Model, t: ModelTensor) -> File:
    return model.sources[t.segments[0].source].path


def _source_splits(model: Model, tensors: Sequence[ModelTensor]) -> list[range]:
    """The runs of tensors that lie in one file of the source; one of none for a vocabulary."""
    if not tensors:
        return [range(0)]
    shards = [_shard(model, t) for t in tensors]
    starts = [i for i, shard in enumerate(shards) if i == 0 or shard != shards[i - 1]]
    runs = [range(a, b) for a, b in zip(starts, [*starts[1:], len(shards)], strict=True)]
    metadata_first = split_number(shards[0].name) == 2
    return [range(0), *runs] if metadata_first else runs


def _quantize_order(name: str) -> tuple[int, str]:
    """llama.cpp sorts by layer, then by name; what is in no layer comes first."""
    parts = name.split(".", 2)
    in_block = len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal()
    return (int(parts[1]) if in_block else -1), name


def _quantized_already(model: Model, tensors: Sequence[ModelTensor]) -> dict[str, str]:
    """Tensor -> the format of its source, of those that are no floats any more."""
    found = ((t.name, model.sources[s.source].ggml) for t in tensors for s in t.segments)
    return {name: ggml.name for name, ggml in found if not ggml.is_float}


def _check_requantization(
    already: Mapping[str, str], tensors: Sequence[ModelTensor], formats: Sequence[str]
) -> None:
    for t, wanted in zip(tensors, formats, strict=True):
        if already.get(t.name, wanted) != wanted:
            raise RecipeError(
                f"tensor {t.name} is {already[t.name]} already and would become {wanted}; "
                "quantize from a 16- or 32-bit source, or give --allow-requantize"
            )


def _check_numbers(
    already: Mapping[str, str], tensors: Sequence[ModelTensor], formats: Sequence[str]
) -> None:
    for t, wanted in zip(tensors, formats, strict=True):
        kind = type_by_name(already.get(t.name, "F32"))
        if kind.is_number and kind.name != wanted:
            raise RecipeError(
                f"tensor {t.name} is {kind.name}, which is not quantized, and would become "
                f"{wanted}; leave the tensor out of the source, or store it as F32"
            )


def _check_honest(output: Output) -> None:
    for t in output.by_name.values():
        if t.fallback_from or t.overridden:
            why = f"fell back from {t.fallback_from}" if t.fallback_from else "was chosen by hand"
            raise RecipeError(
                f"{output.type} would differ from its label: {t.name} is {t.format}, which {why}; "
                "--strict refuses that"
            )


def _check_loads(
    output: Output, ask: Callable[[Sequence[KeyValue], Sequence[Info]], Iterable[str]]
) -> None:
    """Nothing is written that llama.cpp would not load. Raises NotLoadable."""
    first = output.files[0]
    found = list(ask(first.kv, [Info(t.name, t.shape, t.format) for t in output.by_name.values()]))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise NotLoadable(f"{first.path.name}: llama.cpp would not load it: {found[0]}{more}")


def _output(
    label: str,
    path: Path,
    kv: Sequence[KeyValue],
    tensors: Sequence[ModelTensor],
    choices: Sequence[Choice],
    groups: Sequence[range],
) -> Output:
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
    size = header_size(kv, [(t.name, t.shape) for t, _ in tensors])
    planned, offset = [], size
    for t, choice in tensors:
        nbytes = tensor_bytes(t.shape, choice.format)
        planned.append(
            PlannedTensor(
                t.name,
                t.shape,
                choice.format,
                offset,
                nbytes,
                choice.fallback_from,
                choice.overridden,
            )
        )
        offset += align(nbytes)
    return PlannedFile(path, tuple(kv), tuple(planned), size)


def _checked(model: Model, outputs: Sequence[Output]) -> Plan:
    made = {t.name: t.segments for t in model.tensors}
    segments = {name: made[name] for name in outputs[0].by_name}
    plan = Plan(tuple(outputs), segments, model.sources, partial=model.partial)
    check(plan)
    return plan
