"""Jais 2. llama.cpp: `conversion/jais.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    ROPE_DIMENSION,
    TEXT_KEYS,
    L,
    attention,
    layer_norm,
    plain_mlp,
)
from quantkit.architectures.rules import Architecture, Expect

JAIS2 = Architecture(
    hf_names=("Jais2ForCausalLM",),
    gguf_arch="jais2",
    keys=TEXT_KEYS,
    late_keys=(ROPE_DIMENSION,),
    expects=(Expect("hidden_act", ("relu2",)), Expect("rope_parameters.rope_type", ("default",)),
             Expect("rope_scaling", (None,))),
    dims=DIMS,
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *layer_norm("model.norm", "output_norm"),
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        *layer_norm(f"{L}.post_attention_layernorm", "ffn_norm"),
        *attention(bias=True, out_bias=True),
        *plain_mlp(bias=True),
    ),
    defaults={"rope_theta": 5e5, "layer_norm_eps": 1e-5, "hidden_act": "relu2"},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (JAIS2,)
