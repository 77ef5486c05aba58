"""Llama 4: every so many layers have experts, and one that all tokens share.

llama.cpp: `conversion/llama.py`, Llama4Model.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
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
from quantkit.architectures.rules import Config, Key, reading

FF = f"{L}.feed_forward"


def _sparse(config: Config, bid: int) -> bool:
    """Every `interleave_moe_layer_step`th layer of Llama 4 has experts; none, if it is zero."""
    step = config.get("interleave_moe_layer_step")
    return bool(step and (bid + 1) % step == 0)


def _no_window(config: Config) -> int | None:
    """No layer has a chunked window, where `layer_types` says so."""
    types = config.find("layer_types")
    return 0 if types is not None and {*types} == {"full_attention"} else None


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
