"""Grok-2: a dense network beside the experts, its own softcaps. llama.cpp: `conversion/grok.py`."""

from __future__ import annotations

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
from quantkit.architectures.rules import Architecture, Expect, Key, vector

MOE = f"{L}.block_sparse_moe"

_YARN = (  # "original" is what the release calls yarn
    Key("{arch}.rope.scaling.type", lambda c: "yarn", "STRING"),
    Key("{arch}.rope.scaling.factor", "scaling_factor", "FLOAT32"),
    Key("{arch}.rope.scaling.original_context_length", "original_max_position_embeddings"),
    Key("{arch}.rope.scaling.yarn_ext_factor", "extrapolation_factor", "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_attn_factor", "attn_factor", "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_beta_fast", "beta_fast", "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_beta_slow", "beta_slow", "FLOAT32"),
)

GROK2 = Architecture(
    hf_names=("Grok1ForCausalLM",),
    gguf_arch="grok",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.attn_logit_softcapping", "attn_logit_softcapping", "FLOAT32"),
        Key("{arch}.router_logit_softcapping", "router_logit_softcapping", "FLOAT32"),
        optional_key("final_logit_softcapping", "final_logit_softcapping", kind="FLOAT32"),
        Key("{arch}.expert_feed_forward_length", "moe_intermediate_size"),
        *_YARN,
        optional_key("attention.temperature_length", "attn_temperature_len"),
        Key("{arch}.attention.output_scale",
            lambda c: c.get("attn_output_multiplier", kind="FLOAT32", default=c.head_dim**-0.5),
            "FLOAT32"),
        Key("{arch}.embedding_scale", "embedding_multiplier_scale", "FLOAT32"),
        Key("{arch}.logit_scale", "output_multiplier_scale", "FLOAT32"),
    ),
    expects=(
        RMS_NORM,
        Expect("residual_moe", (True,)),
        Expect("rope_type", ("original", "yarn"), required=True),
    ),
    dims={**DIMS, **expert_dims()},
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.pre_attn_norm", "attn_norm"),
        vector(f"{L}.post_attn_norm", "attn_output_norm"),
        vector(f"{L}.pre_moe_norm", "ffn_norm"),
        vector(f"{L}.post_moe_norm", "post_ffw_norm"),
        *attention(),
        *gated_mlp(),
        router(f"{MOE}.gate"),
        *experts(f"{MOE}.experts", W123),
    ),
    expert_order=GATE_DOWN_UP,
    defaults={"attn_logit_softcapping": 30.0, "router_logit_softcapping": 30.0},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (GROK2,)
