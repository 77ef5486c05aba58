"""Llama, Mistral and Mixtral: one GGUF architecture (`llama`), dense or with experts.

llama.cpp: `conversion/llama.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import TEXT_KEYS
from quantkit.errors import ConfigError
from quantkit.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    halves,
    linear,
    rotary,
    stack,
    stacked,
    whole,
)  # fmt: skip

L = "model.layers.{bid}"
OLD = f"{L}.block_sparse_moe"


def _head_dim(config: Config) -> int:
    heads = config.get("num_attention_heads")
    value: int = config.get("head_dim", default=config.get("hidden_size") // max(heads, 1))
    if value < 2 or value % 2:
        raise ConfigError(f"{config.where}: heads of {value} channels cannot be rotated")
    return value


def _kv_heads(config: Config) -> int:
    value: int = config.get("num_key_value_heads", "num_attention_heads")
    return value


def _rope_freqs(config: Config) -> Any:
    """Llama 3.1's frequency factors, float32 `[head_dim / 2]`, or None for other models.

    llama.cpp's `generate_extra_tensors`, with torch's float32 steps: a number divided by a tensor
    is the tensor's reciprocal times the number.
    """
    import numpy as np

    rope = config.rope
    if str(rope.get("rope_type")).lower() != "llama3":
        return None
    f32, one = np.float32, np.float32(1)
    dim, base = _head_dim(config), rope.get("rope_theta", 10000.0)
    factor = f32(rope.get("factor", 8.0))
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    length = rope.get("original_max_position_embeddings", 8192)

    exponents = np.arange(0, dim, 2, dtype=f32) / f32(dim)
    freqs = one / np.power(float(base), exponents.astype(np.float64)).astype(f32)
    wavelengths = (one / freqs) * f32(2 * math.pi)
    smooth = ((one / wavelengths) * f32(length) - f32(low)) / f32(high - low)
    blended = one / ((one - smooth) / factor + smooth)
    return np.where(
        wavelengths < length / high, one, np.where(wavelengths > length / low, factor, blended)
    )


_ATTENTION = (
    Map("model.embed_tokens.weight", ("vocab", "hidden"), whole("token_embd.weight", "vocab")),
    Map("model.norm.weight", ("hidden",), whole("output_norm.weight", "hidden")),
    Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight", "vocab")),
    Map(f"{L}.input_layernorm.weight", ("hidden",), whole("attn_norm.weight", "hidden")),
    Map(f"{L}.post_attention_layernorm.weight", ("hidden",), whole("ffn_norm.weight", "hidden")),
    *linear(f"{L}.self_attn.q_proj", ("q", "hidden"), rotary, "attn_q", "q", "heads"),
    *linear(f"{L}.self_attn.k_proj", ("kv", "hidden"), rotary, "attn_k", "kv", "kv_heads"),
    *linear(f"{L}.self_attn.v_proj", ("kv", "hidden"), whole, "attn_v", "kv"),
    *linear(f"{L}.self_attn.o_proj", ("hidden", "q"), whole, "attn_output", "hidden"),
)

_FFN = (
    *linear(f"{L}.mlp.gate_proj", ("ffn", "hidden"), whole, "ffn_gate", "ffn"),
    *linear(f"{L}.mlp.up_proj", ("ffn", "hidden"), whole, "ffn_up", "ffn"),
    *linear(f"{L}.mlp.down_proj", ("hidden", "ffn"), whole, "ffn_down", "hidden"),
)

_EXPERTS = (  # one tensor an expert, as on the hub
    Map(f"{OLD}.gate.weight", ("experts", "hidden"), whole("ffn_gate_inp.weight", "experts")),
    Map(f"{OLD}.experts.{{xid}}.w1.weight", ("ffn", "hidden"),
        stack("ffn_gate_exps.weight", "ffn")),
    Map(f"{OLD}.experts.{{xid}}.w2.weight", ("hidden", "ffn"),
        stack("ffn_down_exps.weight", "hidden")),
    Map(f"{OLD}.experts.{{xid}}.w3.weight", ("ffn", "hidden"), stack("ffn_up_exps.weight", "ffn")),
)  # fmt: skip

_FUSED_EXPERTS = (  # as transformers 5, and mergekit with it, keep them
    Map(f"{L}.mlp.gate.weight", ("experts", "hidden"), whole("ffn_gate_inp.weight", "experts"),
        like=f"{OLD}.gate.weight"),
    Map(f"{L}.mlp.experts.gate_up_proj", ("experts", "2ffn", "hidden"),
        halves("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn"), like=f"{OLD}.experts.w1"),
    Map(f"{L}.mlp.experts.down_proj", ("experts", "hidden", "ffn"),
        stacked("ffn_down_exps.weight", "hidden"), like=f"{OLD}.experts.w2"),
)  # fmt: skip

LLAMA = Architecture(
    hf_names=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf_arch="llama",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.vocab_size", "vocab_size"),
        Key("{arch}.rope.dimension_count", _head_dim),
    ),
    expects=(Expect("hidden_act", ("silu", "swish")),),
    dims={
        "vocab": lambda c: c.get("vocab_size"),
        "hidden": lambda c: c.get("hidden_size"),
        "ffn": lambda c: c.get("intermediate_size"),
        "heads": lambda c: c.get("num_attention_heads"),
        "kv_heads": _kv_heads,
        "q": lambda c: c.get("num_attention_heads") * _head_dim(c),
        "kv": lambda c: _kv_heads(c) * _head_dim(c),
    },
    maps=(*_ATTENTION, *_FFN),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    computed={"rope_freqs.weight": _rope_freqs},
)

MIXTRAL = replace(
    LLAMA,
    hf_names=("MixtralForCausalLM",),
    dims={
        **LLAMA.dims,
        "experts": lambda c: c.get("num_local_experts"),
        "2ffn": lambda c: 2 * c.get("intermediate_size"),
    },
    maps=(*_ATTENTION, *_EXPERTS, *_FUSED_EXPERTS),
    expects=(*LLAMA.expects, Expect("num_experts_per_tok", required=True)),
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    expert_order=("ffn_gate_exps", "ffn_down_exps", "ffn_up_exps"),
)

FAMILY = (LLAMA, MIXTRAL)
