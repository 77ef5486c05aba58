"""dots.llm1: shared experts, the first layers dense. llama.cpp: `conversion/dots1.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DENSE_FIRST,
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    GATING,
    LEADING_DENSE,
    NORMS,
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
    qk_norms,
    router,
    router_bias,
)
from quantkit.architectures.qwen import SHARED_FFN_IF_SAID
from quantkit.architectures.rules import (
    Architecture,
    Expect,
    reading,
)

DOTS1 = Architecture(
    hf_names=("Dots1ForCausalLM",),
    gguf_arch="dots1",
    # config.json on the hub says scoring_func "noaux_tc", which names no function, and llama.cpp
    # aborts without one
    keys=reading(TEXT_KEYS, ".expert_gating_func", config=lambda c: GATING["sigmoid"]),
    late_keys=(
        EXPERT_FFN, SHARED_FFN_IF_SAID, LEADING_DENSE, SHARED_COUNT, WEIGHTS_SCALE, WEIGHTS_NORM,
    ),
    expects=(RMS_NORM, SILU, Expect("scoring_func", ("noaux_tc", "sigmoid"))),
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("n_shared_experts") * c.get("moe_intermediate_size"),
    },
    maps=(
        *EMBEDDINGS, *NORMS, *attention(bias=None), *qk_norms(),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(layers="experts"),
        *experts(layers="experts", like=False),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
    ),
    layers=DENSE_FIRST,
    expert_order=DOWN_GATE_UP,
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (DOTS1,)
