"""How much memory llama.cpp takes for a model, part by part; `docs/memory.md` derives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from quantkit import roles
from quantkit.ggml_types import type_by_name

UBATCH = 512  # tokens that llama.cpp evaluates at once (n_ubatch)


class Weights(NamedTuple):
    """A tensor of a file: `shape` in NumPy order, `format` as ggml names it."""

    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return type_by_name(self.format).row_bytes(prod(self.shape))

    @property
    def is_expert(self) -> bool:
        """Whether it holds routed experts, which `--cpu-moe` keeps in main memory."""
        return roles.parse(self.name).role.endswith("_exps")


@dataclass(frozen=True)
class Memory:
    """Bytes that llama.cpp takes for one model at one context."""

    weights: int  # all tensors
    experts: int  # those of them that are routed experts
    cache: int  # keys and values, and the states of recurrent layers
    compute: int  # the activations of one batch

    @property
    def required(self) -> int:
        """What must be there to run on the CPU."""
        return self.weights + self.cache + self.compute

    @property
    def experts_on_cpu(self) -> tuple[int, int] | None:
        """Main memory and GPU memory where only the experts are on the CPU; None if there are
        none."""
        if not self.experts:
            return None
        return self.experts, self.weights - self.experts + self.cache + self.compute


def memory(values: Mapping[str, Any], tensors: Sequence[Weights], context: int) -> Memory:
    """What a model takes at a context of so many tokens. `values`: its metadata, without the
    architecture's name in the keys."""
    vocab = next((t.shape[0] for t in tensors if t.name == "token_embd.weight"), 0)

    def number(key: str, default: int) -> int:
        value = values.get(key, default)
        return int(value[0] if isinstance(value, list) else value)

    width, heads = number("embedding_length", 0), max(number("attention.head_count", 1), 1)
    head = width // heads
    channels = number("attention.key_length", head) + number("attention.value_length", head)
    kv_heads = number("attention.head_count_kv", heads)
    ffn = number("feed_forward_length", 0) * max(number("expert_used_count", 1), 1)
    widest = max(vocab + width, 3 * ffn + width, heads * context)
    return Memory(
        weights=sum(t.nbytes for t in tensors),
        experts=sum(t.nbytes for t in tensors if t.is_expert),
        cache=number("block_count", 0) * kv_heads * channels * 2 * context,
        compute=4 * UBATCH * widest,
    )
