"""Arctic: a dense network beside the experts. llama.cpp: `conversion/arctic.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    EMBEDDINGS,
    GATE_DOWN_UP,
    RMS_NORM,
    SILU,
    W123,
    L,
    attention,
    experts,
    gated_mlp,
    router,
)
from quantkit.architectures.llama import MIXTRAL, OLD
from quantkit.architectures.rules import Architecture, Expect, vector

ARCTIC = Architecture(
    hf_names=("ArcticForCausalLM",),
    gguf_arch="arctic",
    keys=MIXTRAL.keys,
    late_keys=MIXTRAL.late_keys,
    expects=(
        RMS_NORM,
        SILU,
        # what llama.cpp runs
        Expect("moe_layer_frequency", (1,)),
        Expect("parallel_attn_mlp_res", (True,)),
        Expect("use_residual", (True,)),
    ),
    dims=MIXTRAL.dims,
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.residual_layernorm", "ffn_norm"),
        vector(f"{L}.post_attention_layernorm", "ffn_norm_exps"),
        *attention(rotated=True),
        *gated_mlp(f"{L}.residual_mlp", ffn="hidden", names=W123),
        router(f"{OLD}.gate"),
        *experts(f"{OLD}.experts", W123),
    ),
    expert_order=GATE_DOWN_UP,
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    fuses=("qkv",),
)

FAMILY = (ARCTIC,)
