"""The encoder of images of CogVLM. llama.cpp: `conversion/cogvlm.py`."""

from __future__ import annotations

from quantkit.architectures.rules import Map, whole
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION_KEYS,
    V,
    eps,
    lin,
    projector,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder

T = "model.vision"
B = f"{T}.transformer.layers.{{bid}}"
P = f"{T}.linear_proj"

COGVLM = Encoder(
    hf_names=("CogVLMForCausalLM",),
    gguf_arch="clip",
    keys=(*VISION_KEYS, eps(vision("layer_norm_eps")), projector("cogvlm")),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "places": told(f"{T}.patch_embedding.position_embedding.weight"),
        "wide": told(f"{P}.gate_proj.weight"),
    },
    layers=KINDS,
    maps=(
        Map(f"{T}.boi", ("one", "one", "text"), whole("v.boi")),
        Map(f"{T}.eoi", ("one", "one", "text"), whole("v.eoi")),
        Map(f"{T}.patch_embedding.cls_embedding", ("one", "v"), whole("v.class_embd")),
        *lin(f"{T}.patch_embedding.proj", ("v", "channels", "patch", "patch"), "v.patch_embd", ""),
        *lin(f"{T}.patch_embedding.position_embedding", ("places", "v"), "v.position_embd", "",
             False),
        *lin(f"{B}.input_layernorm", ("v",), f"{V}.ln1"),
        *lin(f"{B}.post_attention_layernorm", ("v",), f"{V}.ln2"),
        *lin(f"{B}.attention.query_key_value", ("3v", "v"), f"{V}.attn_qkv", "vision", None),
        *lin(f"{B}.attention.dense", ("v", "v"), f"{V}.attn_out", "vision", None),
        *lin(f"{B}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{P}.linear_proj", ("text", "v"), "mm.model.fc", "", False),
        *lin(f"{P}.norm1", ("text",), "mm.post_fc_norm", ""),
        *lin(f"{P}.dense_h_to_4h", ("wide", "text"), "mm.up", "", False),
        *lin(f"{P}.gate_proj", ("wide", "text"), "mm.gate", "", False),
        *lin(f"{P}.dense_4h_to_h", ("text", "wide"), "mm.down", "", False),
    ),
    drops=(rf"(?!{T}\.).*",),
    forced=KERNELS,
)  # fmt: skip

FAMILY = (COGVLM,)
