"""Phi-2, Phi-3, and Phi-3.5-MoE with its layer norms with biases. llama.cpp:
`conversion/phi.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    GATE_DOWN_UP,
    NORMS,
    RMS_NORM,
    SILU,
    W123,
    L,
    attention,
    expert_dims,
    experts,
    kv_heads,
    layer_norm,
    plain_mlp,
    router,
    text_keys,
)
from quantkit.architectures.rope import rope_factors, rope_of
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    reading,
    whole,
)
from quantkit.errors import ConfigError

OLD = f"{L}.block_sparse_moe"


LENGTH = ("n_positions", "max_position_embeddings")


def _original_length(config: Config) -> int:
    name = "original_max_position_embeddings"
    found = config.rope.get(name, config.find(name))
    n: int = config.get(*LENGTH) if found is None else found
    return n


def _rotated(config: Config) -> int:
    """Channels of a head that are rotated."""
    share = config.rope.get("partial_rotary_factor", 1.0)
    return int(share * config.get("hidden_size")) // int(config.get("num_attention_heads"))


def attn_factor(config: Config) -> float | None:
    """How much attention is sharpened over a context longer than the original one."""
    rope = config.rope
    if not rope.get("long_factor"):
        return None
    length = _original_length(config)
    scale = config.get(*LENGTH) / length
    if rope.get("rope_type") not in ("su", "longrope"):
        raise ConfigError(f"{config.where}: rope_type must be longrope, as there are factors")
    return math.sqrt(1 + math.log(scale) / math.log(length)) if scale > 1 else 1.0


def _factor_of_phi3(config: Config) -> float | None:
    """`attn_factor`; `type: yarn` beside factors is the first Phi-3's, which its class in
    transformers reads as longrope."""
    old = config.rope.get("type") == "yarn"
    rope = {**config.rope, "rope_type": "longrope"} if old else config.rope
    return attn_factor(replace(config, values={**config.values, "rope_parameters": rope}))


def _factors(name: str) -> Callable[[Config], Any]:
    """One of the two lists of factors: both are there, or those of a longer context are not."""

    def read(config: Config) -> Any:
        if not config.rope.get("long_factor"):
            return None
        if not config.rope.get("short_factor"):
            raise ConfigError(f"{config.where}: 'long_factor' stands without 'short_factor'")
        return rope_factors(config, name, _rotated(config))

    return read


_AFTER_LENGTH = (
    *text_keys("embedding_length", "feed_forward_length", "block_count", "head_count",
               "head_count_kv", "layer_norm_rms_epsilon"),
    Key("{arch}.rope.dimension_count", _rotated),
    Key("{arch}.rope.freq_base", lambda c: rope_of(c).get("rope_theta"), "FLOAT32"),
)  # fmt: skip


def _half_rotated(config: Config) -> int:
    share = config.rope.get("partial_rotary_factor", 0.5)
    return int(share * config.get("hidden_size")) // int(config.get("num_attention_heads"))


PHI2 = Architecture(
    hf_names=("PhiForCausalLM",),
    gguf_arch="phi2",
    keys=(
        Key("{arch}.context_length", LENGTH),
        *text_keys("embedding_length"),
        Key("{arch}.feed_forward_length", lambda c: 4 * c.get("hidden_size")),
        *text_keys("block_count", "head_count"),
        Key("{arch}.attention.head_count_kv", "num_attention_heads"),
        Key("{arch}.attention.layer_norm_epsilon", ("layer_norm_epsilon", "layer_norm_eps"),
            "FLOAT32"),
        Key("{arch}.rope.dimension_count", _half_rotated),
    ),
    late_keys=(Key("tokenizer.ggml.add_bos_token", lambda c: False, "BOOL"),),
    expects=(
        Expect("hidden_act", ("gelu_new",)), Expect("qk_layernorm", (False,)),
    ),
    dims={**DIMS, "ffn": lambda c: 4 * c.get("hidden_size")},
    maps=(
        EMBEDDINGS[0],
        *layer_norm("model.final_layernorm", "output_norm"),
        *linear("lm_head", ("vocab", "hidden"), "output", bias=True),
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        *attention(bias=True, out_bias=True, out="dense"),
        *plain_mlp(names=("fc1", "fc2"), bias=True),
    ),
    defaults={"layer_norm_eps": 1e-5},
    fuses=("qkv",),
)  # fmt: skip

PHIMOE = Architecture(
    hf_names=("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    gguf_arch="phimoe",
    first_keys=(Key("{arch}.rope.scaling.attn_factor", attn_factor, "FLOAT32"),),
    keys=(
        Key("{arch}.context_length", LENGTH),
        Key("{arch}.rope.scaling.original_context_length", _original_length),
        *_AFTER_LENGTH,
    ),
    late_keys=(
        # zero where there is none
        Key("{arch}.attention.sliding_window", lambda c: c.get("sliding_window", default=0)),
        *text_keys("expert_used_count", "expert_count"),
    ),
    expects=(RMS_NORM, SILU),
    dims={**DIMS, **expert_dims("intermediate_size")},
    maps=(
        *EMBEDDINGS[:1],
        *layer_norm("model.norm", "output_norm"),
        *linear("lm_head", ("vocab", "hidden"), "output"),
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        *layer_norm(f"{L}.post_attention_layernorm", "ffn_norm"),
        *attention(bias=None, out_bias=None),
        router(f"{OLD}.gate"),
        router(f"{L}.mlp.router", like=f"{OLD}.gate.weight"),
        *experts(f"{OLD}.experts", W123, fused=f"{L}.mlp.experts"),
    ),
    expert_order=GATE_DOWN_UP,
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    computed={
        "rope_factors_long.weight": _factors("long_factor"),
        "rope_factors_short.weight": _factors("short_factor"),
    },
    fuses=("qkv",),
)

PHI3 = replace(
    PHIMOE,
    hf_names=("Phi3ForCausalLM", "Phi4ForCausalLMV"),
    gguf_arch="phi3",
    first_keys=reading(PHIMOE.first_keys, ".attn_factor", config=_factor_of_phi3),
    late_keys=PHIMOE.late_keys[:1],
    dims={
        **DIMS,
        "qkv": lambda c: c.head_dim * (c.get("num_attention_heads") + 2 * kv_heads(c)),
        "2ffn": lambda c: 2 * c.get("intermediate_size"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        Map(f"{L}.self_attn.qkv_proj.weight", ("qkv", "hidden"), whole("attn_qkv.weight")),
        Map(f"{L}.self_attn.o_proj.weight", ("hidden", "q"), whole("attn_output.weight")),
        Map(f"{L}.mlp.gate_up_proj.weight", ("2ffn", "hidden"), whole("ffn_up.weight")),
        Map(f"{L}.mlp.down_proj.weight", ("hidden", "ffn"), whole("ffn_down.weight")),
    ),
    expert_order=(),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    fuses=(),
)

FAMILY = (PHI2, PHI3, PHIMOE)
