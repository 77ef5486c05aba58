"""SmallThinker: the router looks at a layer's input. llama.cpp: `conversion/smallthinker.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    GATING,
    NORMS,
    RMS_NORM,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    experts,
    no_key,
    router,
)
from quantkit.architectures.rules import Architecture, Config, Expect, Key

MOE = f"{L}.block_sparse_moe"
FFN = "moe_ffn_hidden_size"


def _gating(config: Config) -> int:
    soft = config.get("moe_primary_router_apply_softmax", kind="BOOL", default=False)
    return GATING["softmax" if soft else "sigmoid"]


def _window(config: Config) -> int | None:
    n: int | None = config.get("sliding_window_size", default=None)
    return n or None if any(config.find("sliding_window_layout") or ()) else None


def _turned(config: Config) -> tuple[list[int]]:
    """Layers with rotary positions are those with a window, or all."""
    return ([int(_window(config) is None or bid % 4 != 0) for bid in range(config.layers)],)


def _windows(config: Config) -> tuple[list[int], ...]:
    """Every fourth layer sees all, the first among them."""
    return () if _window(config) is None else _turned(config)


SMALLTHINKER = Architecture(
    hf_names=("SmallThinkerForCausalLM",),
    gguf_arch="smallthinker",
    keys=no_key(TEXT_KEYS, ".expert_count", ".expert_used_count"),
    late_keys=(
        Key("{arch}.expert_count", "num_experts"),
        Key("{arch}.expert_used_count", "num_experts_per_tok"),
        Key("{arch}.expert_feed_forward_length", FFN),
        Key("{arch}.feed_forward_length", FFN),
        Key("{arch}.expert_gating_func", _gating),
        Key("{arch}.attention.sliding_window", _window),
    ),
    expects=(RMS_NORM,),
    assumes=(
        Expect("rope_layout", _turned),
        Expect("sliding_window_layout", _windows),
        Expect("sliding_window_size", lambda c: (4096,) if _window(c) else ()),
    ),
    aliases={
        "num_experts": "moe_num_primary_experts",
        "num_experts_per_tok": "moe_num_active_primary_experts",
    },
    dims={**DIMS, **expert_dims(FFN)},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        router(f"{MOE}.primary_router"),
        *experts(f"{MOE}.experts", ("gate", "up", "down")),
    ),
    expert_order=DOWN_GATE_UP,
    fuses=("qkv",),
)

FAMILY = (SMALLTHINKER,)
