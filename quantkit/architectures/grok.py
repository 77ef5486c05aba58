"""Grok-1, and Grok-2 with a dense network beside the experts; softcaps of their own.

llama.cpp: `conversion/grok.py`.
"""

from __future__ import annotations

from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    GATE_DOWN_UP,
    RMS_NORM,
    TEXT_KEYS,
    W123,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    optional_key,
    router,
)
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

MOE = f"{L}.block_sparse_moe"


def _yarn(name: str, config: str, kind: str = "FLOAT32") -> Key:
    """A key of the scaling that the release calls "original" and is yarn; Grok-1 has none."""

    def read(c: Config) -> Any:
        return c.get(config, kind=kind) if c.find("rope_type") else None

    return Key("{arch}.rope.scaling." + name, read, kind)


_YARN = (
    Key("{arch}.rope.scaling.type", lambda c: "yarn" if c.find("rope_type") else None, "STRING"),
    _yarn("factor", "scaling_factor"),
    _yarn("original_context_length", "original_max_position_embeddings", "UINT32"),
    _yarn("yarn_ext_factor", "extrapolation_factor"),
    _yarn("yarn_attn_factor", "attn_factor"),
    _yarn("yarn_beta_fast", "beta_fast"),
    _yarn("yarn_beta_slow", "beta_slow"),
)

# the names of Grok-1's first conversions
_D = "transformer.decoder_layer.{bid}"
_A = f"{_D}.multi_head_attention"
_FIRST_NAMES = (
    Map("transformer.in_out_embed.weight", ("vocab", "hidden"), whole("token_embd.weight")),
    vector("transformer.rms_norm", "output_norm"),
    vector(f"{_D}.rms_norm", "attn_norm"),
    vector(f"{_D}.rms_norm_1", "attn_output_norm"),
    vector(f"{_D}.rms_norm_2", "ffn_norm"),
    vector(f"{_D}.rms_norm_3", "layer_output_norm", optional=True),  # Grok-2's post_moe_norm
    *linear(f"{_A}.query", ("q", "hidden"), "attn_q", bias=False),
    *linear(f"{_A}.key", ("kv", "hidden"), "attn_k", bias=False),
    *linear(f"{_A}.value", ("kv", "hidden"), "attn_v", bias=False),
    *linear(f"{_A}.linear", ("hidden", "q"), "attn_output", bias=False),
    router(f"{_D}.router"),
    *experts(f"{_D}.moe", ("linear", "linear_v", "linear_1"))[:3],
)


def _expert_ffn(config: Config) -> int:
    n: int = config.get("moe_intermediate_size", "intermediate_size")
    return n


GROK2 = Architecture(
    hf_names=("Grok1ForCausalLM", "GrokForCausalLM"),
    gguf_arch="grok",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.attn_logit_softcapping", "attn_logit_softcapping", "FLOAT32"),
        Key("{arch}.router_logit_softcapping", "router_logit_softcapping", "FLOAT32"),
        Key("{arch}.final_logit_softcapping",  # 0 is none
            lambda c: c.get("final_logit_softcapping", kind="FLOAT32", default=None) or None,
            "FLOAT32"),
        optional_key("expert_feed_forward_length", "moe_intermediate_size"),
        *_YARN,
        Key("{arch}.attention.temperature_length",
            lambda c: c.get("attn_temperature_len", default=None) or None),
        Key("{arch}.attention.output_scale",
            lambda c: c.get("attn_output_multiplier", kind="FLOAT32", default=c.head_dim**-0.5),
            "FLOAT32"),
        Key("{arch}.embedding_scale", "embedding_multiplier_scale", "FLOAT32"),
        Key("{arch}.logit_scale", "output_multiplier_scale", "FLOAT32"),
    ),
    expects=(
        RMS_NORM,
        Expect("rope_type", ("original", "yarn")),
    ),
    dims={
        **DIMS,
        **expert_dims(),
        "expert_ffn": _expert_ffn,
        "2expert_ffn": lambda c: 2 * _expert_ffn(c),
    },
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.pre_attn_norm", "attn_norm"),
        vector(f"{L}.post_attn_norm", "attn_output_norm"),
        vector(f"{L}.pre_moe_norm", "ffn_norm"),
        vector(f"{L}.post_moe_norm", "post_ffw_norm", optional=True),
        *attention(),
        *gated_mlp(layers="dense MLP"),
        router(f"{MOE}.gate"),
        *experts(f"{MOE}.experts", W123),
        *_FIRST_NAMES,
    ),
    layers={"dense MLP": lambda c, bid: c.get("residual_moe", kind="BOOL", default=False)},
    expert_order=GATE_DOWN_UP,
    defaults={"attn_logit_softcapping": 30.0, "router_logit_softcapping": 30.0},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (GROK2,)
