"""Llama 4: every so many layers have experts, and one that all tokens share.

llama.cpp: `conversion/llama.py`, Llama4Model.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    EXPERT_COUNT,
    NORMS,
    ROPE_DIMENSION,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    router,
    transposed_experts,
    with_head_dim,
)
from quantkit.architectures.llama import LLAMA
from quantkit.architectures.rules import Config, Expect, Key, reading
from quantkit.loading.patterns import UNNORMED

FF = f"{L}.feed_forward"


def _sparse(config: Config, bid: int) -> bool:
    """Every `interleave_moe_layer_step`th layer of Llama 4 has experts; none, if it is zero."""
    step = config.get("interleave_moe_layer_step")
    return bool(step and (bid + 1) % step == 0)


def _no_window(config: Config) -> int | None:
    """No layer has a chunked window, where `layer_types` says so."""
    types = config.find("layer_types")
    return 0 if types is not None and {*types} == {"full_attention"} else None


def _norms_heads(config: Config) -> tuple[bool]:
    """llama.cpp norms queries and keys, but for the model of 128 experts."""
    return (config.get(*EXPERT_COUNT, default=0) != UNNORMED,)


def _slides(config: Config) -> bool:
    return _no_window(config) is None


def _unturned(config: Config) -> tuple[list[int], ...]:
    """Every fourth layer has no rotary positions, if layers have windows; the list may be empty."""
    all_turn = not _slides(config)
    return [int(all_turn or (bid + 1) % 4 != 0) for bid in range(config.layers)], []


LLAMA4 = replace(
    LLAMA,
    hf_names=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    gguf_arch="llama4",
    keys=reading(with_head_dim(TEXT_KEYS), ".feed_forward_length", config="intermediate_size_mlp"),
    late_keys=(
        VOCAB_SIZE,
        ROPE_DIMENSION,
        Key("{arch}.interleave_moe_layer_step", "interleave_moe_layer_step"),
        Key("{arch}.expert_feed_forward_length", "intermediate_size"),
        Key("{arch}.attention.sliding_window", _no_window),
    ),
    assumes=(
        Expect("use_qk_norm", _norms_heads),
        Expect("no_rope_layers", _unturned),
        Expect("attn_temperature_tuning", lambda c: (True, 4) if _slides(c) else (False,)),
        Expect("floor_scale", lambda c: (8192,) if _slides(c) else ()),
        Expect("attn_scale", lambda c: (0.1,) if _slides(c) else ()),
        Expect("attention_chunk_size", lambda c: (8192,) if _slides(c) else ()),
    ),
    dims={
        **DIMS,
        **expert_dims("intermediate_size"),
        "ffn": lambda c: c.get("intermediate_size_mlp"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *gated_mlp(FF, layers="dense MLP"),
        router(f"{FF}.router", "experts"),
        *transposed_experts(f"{FF}.experts", "experts"),
        *experts(f"{FF}.experts", layers="experts")[:3],  # as quantizers take them apart
        *gated_mlp(f"{FF}.shared_expert", "_shexp", "expert_ffn", "experts"),
    ),
    layers={"experts": _sparse, "dense MLP": lambda c, bid: not _sparse(c, bid)},
    defaults={"rope_theta": 500000.0, "rms_norm_eps": 1e-5},
)

FAMILY = (LLAMA4,)
