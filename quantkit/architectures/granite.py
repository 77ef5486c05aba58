"""Granite, dense and with experts (also shared ones). llama.cpp: `conversion/granite.py`.

The routed experts' gate and up matrices are one tensor, as are the shared expert's.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    GATE_UP_DOWN,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    expert_dims,
    gated_mlp,
    no_key,
    optional_key,
    router,
)
from quantkit.rules import Architecture, Key, Map, halves, linear, whole

MOE = f"{L}.block_sparse_moe"
SHARED = f"{L}.shared_mlp"

SCALES = (
    optional_key("attention.scale", "attention_multiplier", kind="FLOAT32"),
    optional_key("embedding_scale", "embedding_multiplier", kind="FLOAT32"),
    optional_key("residual_scale", "residual_multiplier", kind="FLOAT32"),
    optional_key("logit_scale", "logits_scaling", kind="FLOAT32"),
)

GRANITE = Architecture(
    hf_names=("GraniteForCausalLM",),
    gguf_arch="granite",
    keys=no_key(TEXT_KEYS, ".key_length", ".value_length"),
    late_keys=(
        VOCAB_SIZE,
        Key("{arch}.rope.dimension_count",
            lambda c: c.get("hidden_size") // c.get("num_attention_heads")),
        *SCALES,
    ),
    expects=(RMS_NORM, SILU),
    dims={**DIMS, "head": lambda c: c.get("hidden_size") // c.get("num_attention_heads")},
    maps=(
        *EMBEDDINGS, *NORMS, *attention(rotated=True, bias=None, out_bias=None),
        *gated_mlp(bias=None),
    ),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    fuses=("qkv",),
)  # fmt: skip

GRANITE_EXPERTS = (
    router(f"{MOE}.router.layer"),
    router(f"{MOE}.router", like=f"{MOE}.router.layer.weight"),
    *(
        Map(source, ("experts", "2expert_ffn", "hidden"),
            halves("ffn_gate_exps.weight", "ffn_up_exps.weight"), like=like)
        for source, like in ((f"{MOE}.input_linear.weight", ""),
                             (f"{MOE}.experts.gate_up_proj", f"{MOE}.input_linear.weight"))
    ),
    *(
        Map(source, ("experts", "hidden", "expert_ffn"), whole("ffn_down_exps.weight"), like=like)
        for source, like in ((f"{MOE}.output_linear.weight", ""),
                             (f"{MOE}.experts.down_proj", f"{MOE}.output_linear.weight"))
    ),
)  # fmt: skip

GRANITE_MOE = replace(
    GRANITE,
    hf_names=("GraniteMoeForCausalLM",),
    gguf_arch="granitemoe",
    dims={**GRANITE.dims, **expert_dims("intermediate_size")},
    maps=(*EMBEDDINGS, *NORMS, *attention(rotated=True), *GRANITE_EXPERTS),
    expert_order=GATE_UP_DOWN,
)

GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    hf_names=("GraniteMoeSharedForCausalLM",),
    late_keys=(
        *GRANITE.late_keys,
        Key("{arch}.expert_shared_feed_forward_length", "shared_intermediate_size"),
    ),
    dims={
        **GRANITE_MOE.dims,
        "shared_ffn": lambda c: c.get("shared_intermediate_size"),
        "2shared_ffn": lambda c: 2 * c.get("shared_intermediate_size"),
    },
    maps=(
        *GRANITE_MOE.maps,
        Map(f"{SHARED}.input_linear.weight", ("2shared_ffn", "hidden"),
            halves("ffn_gate_shexp.weight", "ffn_up_shexp.weight")),
        *linear(f"{SHARED}.output_linear", ("hidden", "shared_ffn"), "ffn_down_shexp", bias=False),
    ),
)  # fmt: skip

FAMILY = (GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED)
