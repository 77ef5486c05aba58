"""What a person changes in a model before it is made: experts left out, metadata set."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod

from quantkit.calibration.imatrix import Imatrix
from quantkit.errors import RecipeError, UsageError
from quantkit.gguf import tensor_names
from quantkit.gguf.container import ALIGNMENT, KeyValue, string, uint32
from quantkit.loading.keys import KEYS
from quantkit.loading.patterns import UNNORMED
from quantkit.model.metadata import count_and_label
from quantkit.model.model import Model, ModelTensor
from quantkit.plain_text import first_of
from quantkit.source.segments import Segment

# GGUF type -> the TYPE of KEY=TYPE:VALUE
KINDS = {"UINT8": "int", "INT8": "int", "UINT16": "int", "INT16": "int", "UINT32": "int",
         "INT32": "int", "UINT64": "int", "INT64": "int", "FLOAT32": "float", "FLOAT64": "float",
         "BOOL": "bool", "STRING": "str"}  # fmt: skip

_OF_MODEL = ("general.architecture", "tokenizer.ggml.model")  # another one has other tensors


def keep_experts(model: Model, keep: Sequence[int]) -> Model:
    """The model with some of its experts, in the order given: their weights, the router's rows,
    the counts in the metadata. Raises RecipeError."""
    count = _expert_count(model)
    if not keep or len(set(keep)) != len(keep) or not all(0 <= x < count for x in keep):
        named = first_of([str(x) for x in keep if not 0 <= x < count] or [*map(str, keep)])
        raise RecipeError(f"experts {named} cannot be kept; the model has 0 to {count - 1}")
    if model.arch == "llama4" and (count == UNNORMED) != (len(keep) == UNNORMED):
        raise RecipeError(
            f"{len(keep)} of {count} experts cannot be kept: llama.cpp norms the queries and keys "
            f"of llama4, but not with {UNNORMED} experts"
        )
    groups = _number(model, "expert_group_count") or 0
    if groups and len(keep) % groups:
        raise RecipeError(f"{len(keep)} experts do not divide into the model's {groups} groups")
    if groups and len(keep) == groups:
        raise RecipeError(
            f"{len(keep)} experts in {groups} groups are one in each; llama.cpp wants two or more"
        )
    used = _number(model, "expert_used_count") or 1
    if len(keep) < used:
        raise RecipeError(
            f"{len(keep)} experts are fewer than the {used} that a token uses; give --experts-used"
        )
    shared = _whole_groups(keep, _number(model, "experts_per_group") or 1)
    tensors, partial, known = [], set(model.partial), dict(model.sources)
    for t in model.tensors:
        role = tensor_names.parse(t.name).role
        if "tid2eid" in role:
            raise RecipeError(f"experts cannot be left out: {t.name} names them, token by token")
        wanted = shared if role.endswith("_chexps") else keep
        if wanted is not None and _is_of_experts(t, role, count):
            if t.shape[0] == 1 < count:  # a bias, `[1, n]`: its values one by one
                (s,) = t.segments
                known[s.source] = replace(known[s.source], flat=True)
                t = replace(t, segments=(Segment(s.source, 0, 0, count),))
            axis = len(t.shape) - 1 if role == "exp_probs_b" else 0
            rows = prod(t.shape[axis + 1 : -1])
            segments = tuple(
                s for j, x in enumerate(wanted) for s in _cut(t.segments, x * rows, rows, j * rows)
            )
            partial |= {s.source for s in t.segments}
            shape = (*t.shape[:axis], len(wanted), *t.shape[axis + 1 :])
            t = replace(t, shape=shape, segments=segments)
        elif role.endswith("_chexps"):
            raise RecipeError(f"{t.name} serves groups of experts; keep or leave whole groups")
        tensors.append(t)
    sources = {s.source for t in tensors for s in t.segments}
    labels = {_size_label(model.tensors): _size_label(tensors)}
    kv = tuple(
        string(item.key, labels.get(item.value, item.value))
        if item.key == "general.size_label"
        else item
        for item in model.kv
    )
    model = replace(
        model,
        tensors=tuple(tensors),
        kv=kv,
        partial=frozenset(partial & sources),
        sources={name: t for name, t in known.items() if name in sources},
    )
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
    stacked = {t.name for t in model.tensors if len(t.shape) > 2 and t.shape[0] == count}
    values = {
        name: data.reshape(count, -1)[list(keep)].reshape(-1)
        if name in stacked and _is_stacked(name) and data.size % count == 0
        else data
        for name, data in imatrix.values.items()
    }
    return replace(imatrix, values=values)


def _is_of_experts(t: ModelTensor, role: str, count: int) -> bool:
    """Stacked experts (or what groups of them share), and the router's rows and biases."""
    if role.endswith("_chexps"):
        return True
    if role == "exp_probs_b":
        return t.shape[-1] == count
    return t.shape[0] == count and (_is_stacked(role) or role == "ffn_gate_inp")


def _is_stacked(name: str) -> bool:
    """Whether experts of the feed-forward part are stacked there; values of attention may have
    some of their own, which stay."""
    return "_exps" in name and "ffn_" in name


def _whole_groups(keep: Sequence[int], size: int) -> list[int] | None:
    """The groups of `size` experts each that are kept whole and in order; None if any is not."""
    firsts = keep[::size]
    whole = [x for first in firsts for x in range(first, first + size)]
    return (
        None
        if whole != list(keep) or any(x % size for x in firsts)
        else [x // size for x in firsts]
    )


def _cut(segments: Iterable[Segment], first: int, count: int, to: int) -> Iterator[Segment]:
    """The part of the segments that makes `count` rows from `first` on, moved to row `to`."""
    for s in segments:
        start, end = max(s.first_row, first), min(s.first_row + s.count, first + count)
        if start >= end:
            continue
        skipped = (start - s.first_row) * s.step
        yield replace(
            s,
            first_row=to + start - first,
            count=end - start,
            source_row=s.source_row + (0 if s.height else skipped),
            column=s.column + (skipped if s.height else 0),
        )


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
    """The most that a count of the model comes to, in whichever layer."""
    item = next((item for item in model.kv if item.key == f"{model.arch}.{name}"), None)
    if item is None:
        return None
    return max(map(int, item.value), default=0) if item.type == "ARRAY" else int(item.value)


def _with_number(model: Model, name: str, value: int) -> Model:
    key = f"{model.arch}.{name}"
    kv = tuple(uint32(key, value) if item.key == key else item for item in model.kv)
    return replace(model, kv=kv)


def _size_label(tensors: Iterable[ModelTensor]) -> str:
    """`4x7B`: what llama.cpp's converter makes of the tensors' shapes."""
    return count_and_label((t.name, t.shape) for t in tensors)[1]


def parse_override(text: str, model: Model) -> KeyValue:
    """One `--override-kv KEY=TYPE:VALUE`, as llama.cpp stores it (integers as UINT32).

    Raises UsageError, and RecipeError where the model's key is of another type, or says what its
    tensors and its file are.
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not (key and equals and colon) or kind not in ("int", "float", "bool", "str"):
        raise UsageError(
            f"{text!r} is not KEY=TYPE:VALUE with TYPE int, float, bool or str; "
            "for instance general.name=str:My Model"
        )
    old = next((item for item in model.kv if item.key == key), None)
    if old is not None and KINDS.get(old.type) != kind:
        raise RecipeError(f"{key} is {old.type} in this model and cannot be set to {kind}:{value}")
    item = _parsed(key, kind, value)
    if why := fixed(model, item):
        raise RecipeError(f"--override-kv {key}={kind}:{value}: {why}")
    return item


def _parsed(key: str, kind: str, value: str) -> KeyValue:
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


def fixed(model: Model, item: KeyValue) -> str | None:
    """Why a key cannot be set to this, of those that no number makes otherwise."""
    name = item.key.removeprefix(f"{model.arch}.")
    old = next((i for i in model.kv if i.key == item.key), None)
    if old is not None and old.raw == item.raw:
        return None
    if item.key == "general.alignment":
        return None if item.value == ALIGNMENT else f"files are written with {ALIGNMENT}"
    if item.key.startswith("split."):
        return "it counts files, and is written where there are several"
    known = KEYS.get(name) if name != item.key else None
    if not (known and known.of_tensors) and item.key not in _OF_MODEL:
        return None
    if old is None:
        return "it says what the tensors are, and this model has no such key"
    return f"it says what the tensors are; it is {old.value} and stays so"
