"""MiniCPM 1, 2 and 4, and MiniCPM 3 with latent attention. llama.cpp: `conversion/minicpm.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    gated_mlp,
    optional_key,
    text_keys,
)
from quantkit.architectures.rope import rope_factors
from quantkit.architectures.rules import Architecture, Config, Expect, Key, linear, vector


def _number(config: Config, name: str) -> float:
    x: float = config.get(name, kind="FLOAT32")
    return x


def _factors(name: str, channels: Any) -> Any:
    return lambda config: rope_factors(config, name, channels(config))


def _computed(channels: Any) -> dict[str, Any]:
    return {
        f"rope_factors_{name}.weight": _factors(f"{name}_factor", channels)
        for name in ("long", "short")
    }


MINICPM = Architecture(
    hf_names=("MiniCPMForCausalLM",),
    gguf_arch="minicpm",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.embedding_scale", lambda c: _number(c, "scale_emb"), "FLOAT32"),
        Key("{arch}.residual_scale", lambda c: _number(c, "scale_depth") / c.layers**0.5,
            "FLOAT32"),
        Key("{arch}.logit_scale", lambda c: c.get("hidden_size") / _number(c, "dim_model_base"),
            "FLOAT32"),
    ),
    expects=(RMS_NORM, SILU),
    dims=DIMS,
    maps=(*EMBEDDINGS, *NORMS, *attention(rotated=True), *gated_mlp()),
    computed=_computed(lambda c: c.get("hidden_size") // c.get("num_attention_heads")),
    defaults={"tie_word_embeddings": True},
    fuses=("qkv",),
)  # fmt: skip

A = f"{L}.self_attn"


def _head(config: Config) -> int:
    n: int = config.get("qk_nope_head_dim") + config.get("qk_rope_head_dim")
    return n


def _value(config: Config) -> int:
    """Channels of a head's values; the release does not say how many."""
    n = config.one("v_head_dim", default=0)
    return n or config.one("hidden_size") // config.one("num_attention_heads")


def _value_length(config: Config) -> int | None:
    """llama.cpp's loader takes an equal share of the hidden channels; its converter never says
    otherwise."""
    n = _value(config)
    return None if n == config.get("hidden_size") // config.get("num_attention_heads") else n


MINICPM3 = replace(
    MINICPM,
    hf_names=("MiniCPM3ForCausalLM",),
    gguf_arch="minicpm3",
    keys=(),
    late_keys=(
        *text_keys(
            "context_length",
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "head_count",
            "head_count_kv",
            "layer_norm_rms_epsilon",
        ),
        VOCAB_SIZE,
        optional_key("attention.q_lora_rank", "q_lora_rank"),
        Key("{arch}.attention.kv_lora_rank", "kv_lora_rank"),
        Key("{arch}.attention.key_length", _head),
        Key("{arch}.attention.value_length", _value_length),
        Key("{arch}.rope.dimension_count", "qk_rope_head_dim"),
    ),
    dims={
        **DIMS,
        "q_lora": lambda c: c.get("q_lora_rank"),
        "kv_lora": lambda c: c.get("kv_lora_rank"),
        "q": lambda c: c.get("num_attention_heads") * _head(c),
        "kv_a": lambda c: c.get("kv_lora_rank") + c.get("qk_rope_head_dim"),
        "kv_b": lambda c: c.get("num_attention_heads") * (c.get("qk_nope_head_dim") + _value(c)),
        "values": lambda c: c.get("num_attention_heads") * _value(c),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *linear(f"{A}.q_a_proj", ("q_lora", "hidden"), "attn_q_a", bias=False),
        vector(f"{A}.q_a_layernorm", "attn_q_a_norm", "q_lora"),
        *linear(f"{A}.q_b_proj", ("q", "q_lora"), "attn_q_b", bias=False),
        *linear(f"{A}.kv_a_proj_with_mqa", ("kv_a", "hidden"), "attn_kv_a_mqa", bias=False),
        vector(f"{A}.kv_a_layernorm", "attn_kv_a_norm", "kv_lora"),
        *linear(f"{A}.kv_b_proj", ("kv_b", "kv_lora"), "attn_kv_b", bias=False),
        *linear(f"{A}.o_proj", ("hidden", "values"), "attn_output", bias=False),
        *gated_mlp(),
    ),
    assumes=(
        Expect("scale_emb", (12,)),
        Expect("scale_depth", (1.4,)),
        Expect("dim_model_base", (256,)),
    ),
    computed=_computed(lambda c: c.get("qk_rope_head_dim")),
    fuses=(),
)

FAMILY = (MINICPM, MINICPM3)
