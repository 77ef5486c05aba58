"""Layers left out of a model: the rest numbered anew, and what metadata say of layers mended."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.errors import RecipeError, UsageError
from quantkit.gguf import tensor_names
from quantkit.gguf.container import KeyValue, array, uint32
from quantkit.loading.keys import KEYS
from quantkit.loading.patterns import (
    LED_BY_FIRST,
    PATTERNS,
    STEPS,
    UNPRUNABLE,
    WIDE_SCALE,
    Pattern,
)
from quantkit.model.model import Model, ModelTensor
from quantkit.model.nvfp4 import by_new_names

# counts of layers: of the first ones, and of the last
_LEADING = ("leading_dense_block_count", "hash_layer_count")
_TRAILING = ("nextn_predict_layers", "attention.shared_kv_layers")
_BY_LAYER = {"per_layer_token_embd", "per_layer_model_proj"}  # hold a part for every layer
_NORMED_LAYERS = 64  # llama.cpp `src/models/command-r.cpp`
_BOOL = 7  # GGUF's value type


def parse_layers(text: str) -> tuple[int, ...]:
    """`3,7,8` as layer numbers. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{text!r} is not a list of layers; for instance 3,7,8")
    return tuple(sorted({int(part) for part in parts}))


def prune(model: Model, layers: Iterable[int]) -> tuple[Model, KeyValue, Mapping[str, str]]:
    """The model without some layers, the rest numbered anew.

    Returns the model, its `block_count`, and the old name of every tensor by its new one. Raises
    RecipeError: a layer that is not there, or one that llama.cpp knows by its number alone.
    """
    gone = set(layers)
    blocks = sorted(
        {bid for t in model.tensors if (bid := tensor_names.parse(t.name).bid) is not None}
    )
    if unknown := sorted(gone - set(blocks)):
        raise RecipeError(
            f"layer {unknown[0]} cannot be pruned; the model has {len(blocks)} layers"
        )
    if gone == set(blocks):
        raise RecipeError("all layers would be pruned; one at least has to stay")
    normed = any(".attn_q_norm." in t.name for t in model.tensors)
    if model.arch == "command-r" and normed and len(blocks) - len(gone) < _NORMED_LAYERS:
        raise RecipeError(
            "layers of this command-r cannot be pruned: llama.cpp looks for its norms of heads in "
            f"models of {_NORMED_LAYERS} layers and more"
        )
    number = {bid: i for i, bid in enumerate(b for b in blocks if b not in gone)}
    kept: list[ModelTensor] = []
    old_names = {}
    for t in model.tensors:
        name = tensor_names.parse(t.name)
        if name.bid in gone:
            continue
        if name.role in _BY_LAYER:
            raise RecipeError(f"no layer can be pruned: {t.name} holds a part of each of them")
        new = t.name if name.bid is None else str(name._replace(bid=number[name.bid]))
        kept.append(replace(t, name=new))
        old_names[new] = t.name
    used = {s.source for t in kept for s in t.segments}
    sources = {name: t for name, t in model.sources.items() if name in used}
    count = uint32(f"{model.arch}.block_count", len(number))
    kv = by_new_names(_Metadata.of(model, blocks[-1] + 1).without(gone), old_names)
    return replace(model, tensors=tuple(kept), sources=sources, kv=kv), count, old_names


@dataclass(frozen=True)
class _Metadata:
    """The key-values of a model, and what they say of its layers."""

    kv: tuple[KeyValue, ...]
    arch: str
    values: Mapping[str, KeyValue]  # by key without the architecture
    layers: int
    ahead: int  # layers that predict further tokens, the last ones

    @classmethod
    def of(cls, model: Model, at_least: int) -> _Metadata:
        prefix = f"{model.arch}."
        values = {i.key.removeprefix(prefix): i for i in model.kv if i.key.startswith(prefix)}
        layers = max(_number(values, "block_count", 0), at_least)
        ahead = _number(values, "nextn_predict_layers", 0)
        return cls(model.kv, model.arch, values, layers, ahead)

    def without(self, gone: set[int]) -> tuple[KeyValue, ...]:
        """The key-values of the layers that stay. Raises RecipeError."""
        reason = UNPRUNABLE.get(self.arch)
        if self.arch == "deepseek2" and "attention.q_lora_rank" not in self.values:
            reason = "without q_lora_rank llama.cpp knows it by its number of layers"
        if "decision.block_count" in self.values:
            reason = "a head that decides is trained on all of them"
        if reason:
            raise RecipeError(f"layers of {self.arch} cannot be pruned: {reason}")
        kept = [i for i in range(self.layers) if i not in gone]
        self._check_steps(kept)
        changed = {item.key: item for item in (*self._counts(gone), *self._arrays(kept))}
        pattern = PATTERNS.get(self.arch)
        if pattern is not None and (item := self._spelled_out(pattern, kept)) is not None:
            changed[item.key] = item
        there = {item.key for item in self.kv}
        return (
            *(changed.get(item.key, item) for item in self.kv),
            *(item for key, item in changed.items() if key not in there),
        )

    def _counts(self, gone: set[int]) -> Iterator[KeyValue]:
        for name in (*_LEADING, *_TRAILING):
            count = _number(self.values, name, 0)
            first = 0 if name in _LEADING else self.layers - count
            lost = len(gone & set(range(first, first + count)))
            if lost:
                yield uint32(f"{self.arch}.{name}", count - lost)

    def _arrays(self, kept: Sequence[int]) -> Iterator[KeyValue]:
        """Arrays of one value a layer, of the layers that stay."""
        for name, item in self.values.items():
            key = KEYS.get(name)
            if key is None or not key.layers or item.type != "ARRAY":
                continue
            values: list[Any] = item.value
            element = struct.unpack_from("<I", item.raw, 4)[0]
            yield array(item.key, [values[i] for i in kept if i < len(values)], element)

    def _spelled_out(self, pattern: Pattern, kept: Sequence[int]) -> KeyValue | None:
        """What a layer is, of each one that stays, where its number would not say it any more."""
        item = self.values.get(pattern.key)
        if item is not None and item.type == "ARRAY":
            return None
        if pattern.window is not None and not self._window(pattern.window):
            return None
        period = _number(self.values, pattern.period_key, pattern.period)
        trunk = self.layers - self.ahead
        if period < 1:
            return None
        is_so = [i < trunk and pattern.of_layer(i, period) for i in kept]
        left = sum(i < trunk for i in kept)
        if is_so == [i < left and pattern.of_layer(i, period) for i in range(len(kept))]:
            return None
        return array(f"{self.arch}.{pattern.key}", is_so, _BOOL)

    def _window(self, default: int) -> int:
        return _number(self.values, "attention.sliding_window", default)

    def _scaled_otherwise(self) -> bool:
        """Whether it is the width of a head or that of the model that scales makes a difference."""
        heads = _number(self.values, "attention.head_count", 8)
        width = _number(self.values, "embedding_length", 0) // max(heads, 1)
        return width != _number(self.values, "attention.key_length", width)

    def _check_steps(self, kept: Sequence[int]) -> None:
        if self.arch == "exaone4" and self.layers == 64:
            raise RecipeError("layers of exaone4 cannot be pruned: only 64 slide in llama.cpp")
        wide = WIDE_SCALE.get(self.arch)
        if wide in (self.layers, len(kept)) and self._scaled_otherwise():
            raise RecipeError(
                f"layers of {self.arch} cannot be pruned: llama.cpp scales attention in another "
                f"way with {wide} layers than with any other number"
            )
        if self.arch in LED_BY_FIRST and kept[:1] != [0]:
            raise RecipeError(
                f"layer 0 of {self.arch} cannot be pruned: it gives all others its values"
            )
        for step in STEPS.get(self.arch, ()):
            n = step.step if step.key is None else _number(self.values, step.key, step.step)
            default = PATTERNS[self.arch].window if self.arch in PATTERNS else None
            if n < 2 or (step.sliding and not self._window(default or 0)):
                continue
            for now, i in enumerate(kept):
                if step.kind(i, n) != step.kind(now, n):
                    raise RecipeError(
                        f"layer {i} would become layer {now}, and llama.cpp goes by the number: "
                        f"every {n} layers one {step.words}; prune {n} in a row"
                    )


def _number(values: Mapping[str, KeyValue], name: str, default: int) -> int:
    item = values.get(name)
    return int(item.value) if item is not None and item.type == "UINT32" else default
