"""Nemotron 3 and 4, dense: layer norms kept as their distance from one, a network without a gate.
llama.cpp: `conversion/nemotron.py`, NemotronModel."""

from __future__ import annotations

from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    layer_norm,
    plain_mlp,
    shifted,
    with_head_dim,
)
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Map

EPSILON = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


def _factor(config: Config) -> Any:
    return config.find("factor") or config.rope.get("factor")


def _rotated(config: Config) -> int:
    """Channels of a head that are rotated."""
    share = config.rope.get("partial_rotary_factor", 0.5)
    return int(share * config.get("hidden_size")) // int(config.get("num_attention_heads"))


def _norm(source: str, role: str) -> tuple[Map, ...]:
    weight, bias = layer_norm(source, role)
    return (*shifted(weight), bias)


NEMOTRON = Architecture(
    hf_names=("NemotronForCausalLM",),
    gguf_arch="nemotron",
    keys=with_head_dim(TEXT_KEYS),
    late_keys=(
        VOCAB_SIZE,
        Key("{arch}.attention.layer_norm_epsilon", EPSILON, "FLOAT32"),
        Key("{arch}.rope.dimension_count", _rotated),
        Key("{arch}.rope.scaling.type", lambda c: "linear" if _factor(c) else "none", "STRING"),
        Key("{arch}.rope.scaling.factor", _factor, "FLOAT32"),
    ),
    expects=(Expect("hidden_act", ("relu2",)),),
    dims=DIMS,
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *_norm("model.norm", "output_norm"),
        *_norm(f"{L}.input_layernorm", "attn_norm"),
        *_norm(f"{L}.post_attention_layernorm", "ffn_norm"),
        *attention(bias=None, out_bias=None),
        *plain_mlp(bias=None),
    ),
    defaults={"rope_theta": 10000.0, "norm_eps": 1e-5},
    fuses=("qkv",),
)

FAMILY = (NEMOTRON,)
