"""Trinity (AFMoE): gated attention, norms on both sides. llama.cpp: `conversion/afmoe.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    EXPERT_FFN,
    GATE_UP_DOWN,
    RMS_NORM,
    ROPE_DIMENSION,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    optional_key,
    qk_norms,
    router,
    router_bias,
)
from quantkit.architectures.rules import Architecture, Config, Key, Map, vector, whole


def _sparse(config: Config, bid: int) -> bool:
    return bool(bid >= config.get("num_dense_layers"))


AFMOE = Architecture(
    hf_names=("AfmoeForCausalLM",),
    gguf_arch="afmoe",
    keys=TEXT_KEYS,
    late_keys=(
        VOCAB_SIZE,
        ROPE_DIMENSION,
        Key("{arch}.expert_shared_count", "num_shared_experts"),
        EXPERT_FFN,
        Key("{arch}.leading_dense_block_count", "num_dense_layers"),
        optional_key("expert_weights_norm", "route_norm", kind="BOOL"),
        optional_key("expert_weights_scale", "route_scale", kind="FLOAT32"),
        optional_key("attention.sliding_window", "sliding_window"),
    ),
    expects=(RMS_NORM, SILU),
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("num_shared_experts") * c.get("moe_intermediate_size"),
    },
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
        vector(f"{L}.pre_mlp_layernorm", "ffn_norm"),
        vector(f"{L}.post_mlp_layernorm", "post_ffw_norm"),
        *attention(),
        *qk_norms(),
        Map(f"{L}.self_attn.gate_proj.weight", ("q", "hidden"), whole("attn_gate.weight")),
        *gated_mlp(layers="dense MLP"),
        router(f"{L}.mlp.router.gate", "experts"),
        router_bias(f"{L}.mlp.expert_bias", "experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
    ),
    layers={"experts": _sparse, "dense MLP": lambda c, bid: not _sparse(c, bid)},
    expert_order=GATE_UP_DOWN,
    # transformers' class has no `route_norm` and always normalizes; llama.cpp does where the key is
    defaults={
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "route_norm": True, "route_scale": 1.0,
        "num_dense_layers": 1,
    },
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (AFMOE,)
