"""Command with experts (Cohere2-MoE). llama.cpp: `conversion/command_r.py`, Cohere2MoeModel."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    nextn_layers,
    router,
)
from quantkit.architectures.rules import Architecture, Config, Expect, Key, vector
from quantkit.errors import ConfigError


def _dense(config: Config) -> int:
    """How many layers at the beginning have no experts."""
    types = config.find("mlp_layer_types")
    if types is None:
        n: int = config.get("first_k_dense_replace", default=0)
        return n
    dense = next((i for i, kind in enumerate(types) if kind != "dense"), len(types))
    if len(types) != config.layers or "dense" in types[dense:]:
        raise ConfigError(f"{config.where}: 'mlp_layer_types' has dense layers after sparse ones")
    return dense


def _shared(config: Config) -> int:
    n: int = config.get("num_shared_experts", default=0)
    return n


def _shared_ffn(config: Config) -> int:
    n: int = _shared(config) * config.get("intermediate_size")
    return n


def _windows(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config.find("layer_types")]


COHERE2_MOE = Architecture(
    hf_names=("Cohere2MoeForCausalLM",),
    gguf_arch="cohere2moe",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.logit_scale", "logit_scale", "FLOAT32"),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", _windows, "BOOL"),
        VOCAB_SIZE,
        Key("{arch}.expert_feed_forward_length", "intermediate_size"),
        Key("{arch}.leading_dense_block_count", _dense),
        Key("{arch}.expert_weights_norm", "norm_topk_prob", "BOOL"),
        Key("{arch}.expert_shared_count", lambda c: _shared(c) or None),
        Key("{arch}.expert_shared_feed_forward_length", lambda c: _shared_ffn(c) or None),
        NEXTN_KEY_IF_ANY,
        Key("{arch}.rope.dimension_count", "head_dim"),
        Key("{arch}.rope.scaling.type", lambda c: "none", "STRING"),
    ),
    expects=(
        SILU,
        Expect("layer_types", required=True),
        Expect("shared_expert_combination_strategy", ("average",)),
        Expect("attention_bias", (False,)),
    ),
    dims={
        **DIMS,
        **expert_dims("intermediate_size"),
        "ffn": lambda c: c.get("prefix_dense_intermediate_size", "intermediate_size"),
        "shared_ffn": _shared_ffn,
    },
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        *attention(),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "shared experts"),
        *(replace(m, optional="shared_head" in m.source or m.optional) for m in NEXTN_MAPS),
    ),
    layers={
        **MTP_LAYERS,
        "experts": lambda c, bid: bid >= _dense(c),
        "shared experts": lambda c, bid: bool(_shared(c)) and bid >= _dense(c),
        "dense MLP": lambda c, bid: bid < _dense(c),
    },
    expert_order=DOWN_GATE_UP,
    mtp=nextn_layers,
    keeps_mtp=True,
    defaults={
        "rope_theta": 10000.0, "layer_norm_eps": 1e-5, "norm_topk_prob": True,
        "expert_selection_fn": "softmax", "tie_word_embeddings": True,
    },
)  # fmt: skip

FAMILY = (COHERE2_MOE,)
