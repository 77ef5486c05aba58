"""GLM-4.5 and later with experts, and Solar-Open, which is made like them.

llama.cpp: `conversion/glm.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DENSE_FIRST,
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    GATING,
    LEADING_DENSE,
    MTP_LAYERS,
    NEXTN_KEY,
    NEXTN_MAPS,
    RMS_NORM,
    SHARED_COUNT,
    SILU,
    TEXT_KEYS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    nextn_layers,
    partial_rope,
    qk_norms,
    router,
    router_bias,
)
from quantkit.architectures.rules import Architecture, Key, vector

GLM4_MOE = Architecture(
    hf_names=("Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"),
    gguf_arch="glm4moe",
    keys=TEXT_KEYS,
    late_keys=(
        partial_rope(0.5),
        EXPERT_FFN,
        SHARED_COUNT,
        LEADING_DENSE,
        Key("{arch}.expert_gating_func", lambda c: GATING["sigmoid"]),
        WEIGHTS_SCALE,
        WEIGHTS_NORM,
        NEXTN_KEY,
    ),
    expects=(RMS_NORM, SILU),
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("n_shared_experts") * c.get("moe_intermediate_size"),
    },
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
        *attention(bias=None),
        *qk_norms(layers="query and key norms"),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(layers="experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
        *NEXTN_MAPS,
    ),
    layers={
        **DENSE_FIRST,
        **MTP_LAYERS,
        "query and key norms": lambda c, bid: c.get("use_qk_norm", kind="BOOL", default=False),
    },
    expert_order=DOWN_GATE_UP,
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    mtp=nextn_layers,
    keeps_mtp=True,
    fuses=("qkv",),
)

SOLAR_OPEN = replace(
    GLM4_MOE,
    hf_names=("SolarOpenForCausalLM",),
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5, "head_dim": 128, "first_k_dense_replace": 0},
    keeps_mtp=False,
)

FAMILY = (GLM4_MOE, SOLAR_OPEN)
