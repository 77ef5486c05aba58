"""What a person changes in a model before it is made: layers or experts left out, metadata set."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from quantkit.calibration.imatrix import Imatrix
from quantkit.errors import RecipeError, UsageError
from quantkit.gguf import tensor_names
from quantkit.gguf.container import KeyValue, string, uint32
from quantkit.model.metadata import count_and_label
from quantkit.model.model import Model, ModelTensor
from quantkit.source.segments import Segment

_SAME = {"UINT8": "int", "INT8": "int", "UINT16": "int", "INT16": "int", "UINT32": "int",
         "INT32": "int", "UINT64": "int", "INT64": "int", "FLOAT32": "float", "FLOAT64": "float",
         "BOOL": "bool", "STRING": "str"}  # fmt: skip


def parse_layers(text: str) -> tuple[int, ...]:
    """`3,7,8` as layer numbers. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{text!r} is not a list of layers; for instance 3,7,8")
    return tuple(sorted({int(part) for part in parts}))


def prune(model: Model, layers: Iterable[int]) -> tuple[Model, KeyValue, Mapping[str, str]]:
    """The model without some layers, the rest numbered anew.

    Returns the model, its `block_count`, and the old name of every tensor by its new one. Raises
    RecipeError.
    """
    gone = set(layers)
    blocks = sorted(
        {bid for t in model.tensors if (bid := tensor_names.parse(t.name).bid) is not None}
    )
    if unknown := sorted(gone - set(blocks)):
        raise RecipeError(
            f"layer {unknown[0]} cannot be pruned; the model has {len(blocks)} layers"
        )
    number = {bid: i for i, bid in enumerate(b for b in blocks if b not in gone)}
    kept: list[ModelTensor] = []
    old_names = {}
    for t in model.tensors:
        name = tensor_names.parse(t.name)
        if name.bid in gone:
            continue
        new = t.name if name.bid is None else str(name._replace(bid=number[name.bid]))
        kept.append(replace(t, name=new))
        old_names[new] = t.name
    used = {s.source for t in kept for s in t.segments}
    sources = {name: t for name, t in model.sources.items() if name in used}
    count = uint32(f"{model.arch}.block_count", len(number))
    return replace(model, tensors=tuple(kept), sources=sources), count, old_names


def keep_experts(model: Model, keep: Sequence[int]) -> Model:
    """The model with some of its experts, in the order given: their weights, the router's rows,
    the counts in the metadata. Raises RecipeError."""
    count = _expert_count(model)
    if not keep or len(set(keep)) != len(keep) or not all(0 <= x < count for x in keep):
        raise RecipeError(f"experts {list(keep)} cannot be kept; the model has 0 to {count - 1}")
    groups = _number(model, "expert_group_count") or 1
    if len(keep) % groups:
        raise RecipeError(f"{len(keep)} experts do not divide into the model's {groups} groups")
    used = _number(model, "expert_used_count") or 1
    if len(keep) < used:
        raise RecipeError(
            f"{len(keep)} experts are fewer than the {used} that a token uses; give --experts-used"
        )
    tensors, partial = [], set(model.partial)
    for t in model.tensors:
        if _is_of_experts(t, count):
            rows = prod(t.shape[1:-1]) if len(t.shape) > 1 else 1
            segments = tuple(
                s for j, x in enumerate(keep) for s in _cut(t.segments, x * rows, rows, j * rows)
            )
            partial |= {s.source for s in t.segments}
            t = replace(t, shape=(len(keep), *t.shape[1:]), segments=segments)
        tensors.append(t)
    sources = {s.source for t in tensors for s in t.segments}
    labels = {_size_label(model.tensors): _size_label(tensors)}
    kv = tuple(
        string(item.key, labels.get(item.value, item.value))
        if item.key == "general.size_label" else item for item in model.kv
    )  # fmt: skip
    model = replace(
        model, tensors=tuple(tensors), kv=kv, partial=frozenset(partial & sources),
        sources={name: t for name, t in model.sources.items() if name in sources},
    )  # fmt: skip
    return _with_number(model, "expert_count", len(keep))


def use_experts(model: Model, used: int) -> Model:
    """The model with another number of experts a token. Raises RecipeError."""
    count = _expert_count(model)
    if not 1 <= used <= count:
        raise RecipeError(f"{used} experts cannot be used; the model has {count}")
    return _with_number(model, "expert_used_count", used)


def kept_importance(imatrix: Imatrix, model: Model, keep: Sequence[int]) -> Imatrix:
    """An importance matrix of the whole model, for the experts that are kept."""
    count = _expert_count(model)
    stacked = {t.name for t in model.tensors if len(t.shape) > 2 and _is_of_experts(t, count)}
    values = {
        name: data.reshape(count, -1)[list(keep)].reshape(-1)
        if name in stacked and data.size % count == 0 else data
        for name, data in imatrix.values.items()
    }  # fmt: skip
    return replace(imatrix, values=values)


def _is_of_experts(t: ModelTensor, count: int) -> bool:
    """Stacked experts, and the router's rows and biases."""
    role = tensor_names.parse(t.name).role
    return t.shape[0] == count and ("_exps" in role or role in ("ffn_gate_inp", "exp_probs_b"))


def _cut(segments: Iterable[Segment], first: int, count: int, to: int) -> Iterator[Segment]:
    """The part of the segments that makes `count` rows from `first` on, moved to row `to`."""
    for s in segments:
        start, end = max(s.first_row, first), min(s.first_row + s.count, first + count)
        if start >= end:
            continue
        skipped = (start - s.first_row) * s.step
        yield replace(
            s, first_row=to + start - first, count=end - start,
            source_row=s.source_row + (0 if s.height else skipped),
            column=s.column + (skipped if s.height else 0),
        )  # fmt: skip


def _expert_count(model: Model) -> int:
    count = _number(model, "expert_count")
    if not count:
        raise RecipeError(f"{model.name} has no experts")
    for t in model.tensors:
        if "tid2eid" in t.name:
            raise RecipeError(
                f"experts of {model.name} cannot be left out or used otherwise: {t.name} lists "
                "them, token by token"
            )
    return count


def _number(model: Model, name: str) -> int | None:
    key = f"{model.arch}.{name}"
    return next((int(item.value) for item in model.kv if item.key == key), None)


def _with_number(model: Model, name: str, value: int) -> Model:
    key = f"{model.arch}.{name}"
    kv = tuple(uint32(key, value) if item.key == key else item for item in model.kv)
    return replace(model, kv=kv)


def _size_label(tensors: Iterable[ModelTensor]) -> str:
    """`4x7B`: what llama.cpp's converter makes of the tensors' shapes."""
    return count_and_label((t.name, t.shape) for t in tensors)[1]


def parse_override(text: str, model: Model) -> KeyValue:
    """One `--override-kv KEY=TYPE:VALUE`, as llama.cpp stores it (integers as UINT32).

    Raises UsageError, and RecipeError where the model's key is of another type.
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not (key and equals and colon) or kind not in ("int", "float", "bool", "str"):
        raise UsageError(
            f"{text!r} is not KEY=TYPE:VALUE with TYPE int, float, bool or str; "
            "for instance general.name=str:My Model"
        )
    old = next((item for item in model.kv if item.key == key), None)
    if old is not None and _SAME.get(old.type) != kind:
        raise RecipeError(f"{key} is {old.type} in this model and cannot be set to {kind}:{value}")
    try:
        if kind == "int":
            return KeyValue(key, struct.pack("<II", 4, abs(int(value))))
        if kind == "float":
            return KeyValue(key, struct.pack("<If", 6, float(value)))
        if kind == "bool":
            return KeyValue(key, struct.pack("<I?", 7, {"true": True, "false": False}[value]))
    except (ValueError, KeyError, struct.error, OverflowError):
        raise UsageError(f"{key}: {value!r} is not a value of type {kind}") from None
    return string(key, value)
