"""What a person changes in a model before it is quantized: layers left out, metadata set."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace

from quantkit import roles
from quantkit.errors import RecipeError
from quantkit.gguf_file import KeyValue, uint32
from quantkit.model import Model, ModelTensor

_SAME = {"UINT8": "int", "INT8": "int", "UINT16": "int", "INT16": "int", "UINT32": "int",
         "INT32": "int", "UINT64": "int", "INT64": "int", "FLOAT32": "float", "FLOAT64": "float",
         "BOOL": "bool", "STRING": "str"}  # fmt: skip


def parse_layers(text: str) -> tuple[int, ...]:
    """`3,7,8` as layer numbers. Raises RecipeError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise RecipeError(f"{text!r} is not a list of layers; for instance 3,7,8")
    return tuple(sorted({int(part) for part in parts}))


def prune(model: Model, layers: Iterable[int]) -> tuple[Model, KeyValue, Mapping[str, str]]:
    """The model without some layers, the rest numbered anew.

    Returns the model, its `block_count`, and the old name of every tensor by its new one. Raises
    RecipeError.
    """
    gone = set(layers)
    blocks = sorted({bid for t in model.tensors if (bid := roles.parse(t.name).bid) is not None})
    if unknown := sorted(gone - set(blocks)):
        raise RecipeError(
            f"layer {unknown[0]} cannot be pruned; the model has {len(blocks)} layers"
        )
    number = {bid: i for i, bid in enumerate(b for b in blocks if b not in gone)}
    kept: list[ModelTensor] = []
    old_names = {}
    for t in model.tensors:
        name = roles.parse(t.name)
        if name.bid in gone:
            continue
        new = t.name if name.bid is None else str(name._replace(bid=number[name.bid]))
        kept.append(replace(t, name=new))
        old_names[new] = t.name
    used = {s.source for t in kept for s in t.segments}
    sources = {name: t for name, t in model.sources.items() if name in used}
    count = uint32(f"{model.arch}.block_count", len(number))
    return replace(model, tensors=tuple(kept), sources=sources), count, old_names


def parse_override(text: str, model: Model) -> KeyValue:
    """One `--override-kv KEY=TYPE:VALUE`, as llama.cpp stores it (integers as UINT32).

    Raises RecipeError, also where the model's key is of another type.
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not (key and equals and colon) or kind not in ("int", "float", "bool", "str"):
        raise RecipeError(
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
        raise RecipeError(f"{key}: {value!r} is not a value of type {kind}") from None
    data = value.encode("utf-8")
    return KeyValue(key, struct.pack("<IQ", 8, len(data)) + data)
