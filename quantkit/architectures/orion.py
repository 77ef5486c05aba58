"""Orion: Llama's parts with layer norms. llama.cpp: `conversion/orion.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    SILU,
    L,
    attention,
    gated_mlp,
    layer_norm,
    text_keys,
)
from quantkit.architectures.rules import Architecture, Key

ORION = Architecture(
    hf_names=("OrionForCausalLM",),
    gguf_arch="orion",
    keys=(),
    late_keys=(
        Key("{arch}.tensor_data_layout", lambda c: "Meta AI original pth", "STRING"),
        Key("{arch}.context_length",
            ("max_sequence_length", "max_position_embeddings", "model_max_length")),
        *text_keys("embedding_length", "block_count", "feed_forward_length", "head_count",
                   "head_count_kv"),
        # it is a layer norm's, whatever config.json calls it
        Key("{arch}.attention.layer_norm_epsilon", "rms_norm_eps", "FLOAT32"),
    ),
    expects=(SILU,),
    dims=DIMS,
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *layer_norm("model.norm", "output_norm"),
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        *layer_norm(f"{L}.post_attention_layernorm", "ffn_norm"),
        *attention(),
        *gated_mlp(),
    ),
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (ORION,)
