"""Nemotron-H Puzzle: layers of different widths, which use different numbers of experts.

llama.cpp: `conversion/nemotron.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantkit.architectures.common import no_key
from quantkit.architectures.nemotron_h import (
    NEMOTRON_H,
    NEMOTRON_H_KEYS,
    NEMOTRON_H_MOE,
    PREDICTING,
)
from quantkit.architectures.rules import Config, Expect, Key


def _of_blocks(name: str) -> Callable[[Config], list[int]]:
    """A value that Puzzle keeps for each layer, zero where there is none."""
    return lambda c: [block.get(name) or 0 for block in c.find("block_configs")]


def _puzzle_keys() -> tuple[Key, ...]:
    read = {
        "{arch}.feed_forward_length": _of_blocks("moe_intermediate_size"),
        "{arch}.expert_feed_forward_length": _of_blocks("moe_intermediate_size"),
        "{arch}.expert_used_count": _of_blocks("num_experts_per_tok"),
    }
    names = ("feed_forward_length", "expert_feed_forward_length", "expert_used_count")
    first = tuple(Key("{arch}." + name, read["{arch}." + name]) for name in names)
    rest = (k for k in NEMOTRON_H_MOE.late_keys[len(NEMOTRON_H_KEYS) :] if k.name not in read)
    return (*NEMOTRON_H_KEYS, *first, *rest)


NEMOTRON_H_PUZZLE = replace(
    NEMOTRON_H_MOE,
    hf_names=("NemotronHPuzzleForCausalLM",),
    keys=no_key(NEMOTRON_H_MOE.keys, ".expert_used_count"),
    late_keys=_puzzle_keys(),
    expects=(*NEMOTRON_H.expects, Expect("block_configs", required=True)),
    aliases={
        **NEMOTRON_H.aliases,
        "layers_block_type": lambda c: [b.get("block_type") for b in c.find("block_configs") or ()],
        "num_hidden_layers": lambda c: len(c.find("block_configs") or ()),
    },
    dims={
        **NEMOTRON_H_MOE.dims,
        "used": lambda c: max(_of_blocks("num_experts_per_tok")(c)),
        "expert_ffn": _of_blocks("moe_intermediate_size"),
        "2expert_ffn": lambda c: [2 * n for n in _of_blocks("moe_intermediate_size")(c)],
    },
    maps=NEMOTRON_H_MOE.maps[: -len(PREDICTING)],
    drops=(r"mtp\..*",),  # llama.cpp does not run it
    mtp=lambda c: 0,
)

FAMILY = (NEMOTRON_H_PUZZLE,)
