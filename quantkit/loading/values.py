"""What is asked: the key-values of an architecture, and what is known of each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from quantkit.gguf.container import KeyValue
from quantkit.loading.keys import UNPREFIXED


class Info(NamedTuple):
    """A tensor of a file: `shape` in NumPy order, `format` ggml's name of its type."""

    name: str
    shape: tuple[int, ...]
    format: str


Values = Mapping[str, KeyValue]  # of the architecture, by key without it


def of_architecture(arch: str, kv: Sequence[KeyValue]) -> Values:
    """The key-values of an architecture."""
    return {
        item.key.removeprefix(f"{arch}."): item
        for item in kv
        if item.key.startswith(f"{arch}.") or item.key in UNPREFIXED
    }


def number(values: Values, name: str, default: int = 0) -> int:
    """A count of the model; the default where it is not there, or no number."""
    item = values.get(name)
    return int(item.value) if item is not None and item.type == "UINT32" else default


def trunk_of(values: Values) -> int:
    """How many layers there are before those that predict further tokens."""
    return number(values, "block_count") - number(values, "nextn_predict_layers")


def of_layers(values: Values, name: str, count: int) -> list[int]:
    """One value a layer, whether they are given as one or as an array."""
    item = values.get(name)
    if item is None:
        return [0] * count
    found = item.value if item.type == "ARRAY" else [item.value] * count
    return [int(n) for n in [*found, *[0] * count][:count]]


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - 1
    return names[0] if not more else f"{names[0]} and {more} more tensor{'s' if more > 1 else ''}"


def is_lite(arch: str, values: Values) -> bool:
    """Whether llama.cpp takes it for a DeepSeek V2 Lite, whose queries are not compressed: by the
    number of its layers (deepseek2.cpp)."""
    if arch not in ("deepseek2", "mistral4"):
        return False
    trunk = trunk_of(values)
    return trunk in (26, 27) or (trunk == 48 and number(values, "vocab_size") == 128256)


def texts(tokens: KeyValue) -> Iterator[bytes]:
    """The elements of an array of strings, as they are stored."""
    raw, at = tokens.raw, 16  # after the types and the count
    for _ in range(tokens.length):
        start = at + 8
        at = start + int.from_bytes(raw[at:start], "little")
        yield raw[start:at]
