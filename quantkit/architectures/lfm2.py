"""LFM2 with experts: short convolutions in most layers. llama.cpp: `conversion/lfm2.py`."""

from __future__ import annotations

from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EXPERT_FFN,
    GATE_DOWN_UP,
    GATING,
    TEXT_KEYS,
    VOCAB_SIZE,
    W123,
    L,
    expert_dims,
    experts,
    gated_mlp,
    router,
    router_bias,
)
from quantkit.architectures.mamba import per_layer
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    vector,
    whole,
)

FF, A, C = f"{L}.feed_forward", f"{L}.self_attn", f"{L}.conv"


def _attends(config: Config, bid: int) -> bool:
    types = config.find("layer_types") or []
    return bid < len(types) and types[bid] == "full_attention"


def _sparse(config: Config, bid: int) -> bool:
    return bool(bid >= config.get("num_dense_layers"))


_ATTENTION: dict[str, Any] = {"layers": "attention", "bias": False}

LFM2_MOE = Architecture(
    hf_names=("Lfm2MoeForCausalLM",),
    gguf_arch="lfm2moe",
    keys=TEXT_KEYS,
    late_keys=(
        per_layer("attention.head_count_kv", "num_key_value_heads", _attends),
        EXPERT_FFN,
        Key("{arch}.leading_dense_block_count", "num_dense_layers"),
        Key("{arch}.expert_gating_func", lambda c: GATING["sigmoid"]),
        VOCAB_SIZE,
        Key("{arch}.shortconv.l_cache", "conv_L_cache"),
    ),
    expects=(
        Expect("layer_types", required=True),
        Expect("norm_eps", required=True),
        Expect("conv_bias", (False,)),
        Expect("use_expert_bias", (True,)),
    ),
    dims={
        **DIMS,
        **expert_dims(),
        "3hidden": lambda c: 3 * c.get("hidden_size"),
        "kernel": lambda c: c.get("conv_L_cache"),
    },
    maps=(
        Map("model.embed_tokens.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("model.embedding_norm", "token_embd_norm"),
        vector(f"{L}.operator_norm", "attn_norm"),
        vector(f"{L}.ffn_norm", "ffn_norm"),
        *linear(f"{A}.q_proj", ("q", "hidden"), "attn_q", **_ATTENTION),
        *linear(f"{A}.k_proj", ("kv", "hidden"), "attn_k", **_ATTENTION),
        *linear(f"{A}.v_proj", ("kv", "hidden"), "attn_v", **_ATTENTION),
        *linear(f"{A}.out_proj", ("hidden", "q"), "attn_output", **_ATTENTION),
        vector(f"{A}.q_layernorm", "attn_q_norm", "head", "attention"),
        vector(f"{A}.k_layernorm", "attn_k_norm", "head", "attention"),
        Map(f"{C}.conv.weight", ("hidden", "one", "kernel"),
            whole("shortconv.conv.weight", "hidden", "kernel"), "convolution"),
        *linear(f"{C}.in_proj", ("3hidden", "hidden"), "shortconv.in_proj", layers="convolution",
                bias=False),
        *linear(f"{C}.out_proj", ("hidden", "hidden"), "shortconv.out_proj", layers="convolution",
                bias=False),
        *gated_mlp(FF, layers="dense MLP", names=W123),
        router(f"{FF}.gate", "experts"),
        router_bias(f"{FF}.expert_bias", "experts"),
        *experts(f"{FF}.experts", W123, "experts"),
    ),
    layers={
        "attention": _attends,
        "convolution": lambda c, bid: not _attends(c, bid),
        "experts": _sparse,
        "dense MLP": lambda c, bid: not _sparse(c, bid),
    },
    expert_order=GATE_DOWN_UP,
    defaults={"rope_theta": 1e6, "norm_eps": 1e-5, "tie_word_embeddings": True},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (LFM2_MOE,)
