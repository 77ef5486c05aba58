"""Kimi-VL's encoder of images. llama.cpp: `conversion/kimivl.py`."""

from __future__ import annotations

from quantkit.architectures.rules import Key, Map, whole
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    eps,
    flag,
    lin,
    projector,
    qkv,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder

T = "vision_tower"
B = f"{T}.encoder.blocks.{{bid}}"
P = "multi_modal_projector"

KIMI_VL = Encoder(
    hf_names=("KimiVLForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("kimivl"),
        flag("clip.use_gelu"),
        Key("clip.vision.projector.scale_factor", lambda c: 2),
        eps(vision("layer_norm_eps"), 1e-5),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "high": width("init_pos_emb_height"),
        "wide": width("init_pos_emb_width"),
        "positions": lambda c: c.one(*vision("init_pos_emb_height"))
        * c.one(*vision("init_pos_emb_width")),
        "merged": lambda c: 4 * c.one(*vision("hidden_size")),
    },
    layers=KINDS,
    maps=(
        Map(f"{T}.patch_embed.proj.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        Map(f"{T}.patch_embed.proj.bias", ("v",), whole("v.patch_embd.bias")),
        Map(f"{T}.patch_embed.pos_emb.weight", ("high", "wide", "v"),
            whole("v.position_embd.weight", "positions", "v")),
        *lin(f"{B}.norm0", ("v",), f"{V}.ln1"),
        *qkv(f"{B}.wqkv"),
        *lin(f"{B}.wo", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{B}.norm1", ("v",), f"{V}.ln2"),
        *lin(f"{B}.mlp.fc0", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.fc1", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{T}.encoder.final_layernorm", ("v",), "v.post_ln", ""),
        *lin(f"{P}.pre_norm", ("v",), "mm.input_norm", ""),
        *lin(f"{P}.linear_1", ("merged", "merged"), "mm.1", ""),
        *lin(f"{P}.linear_2", ("text", "merged"), "mm.2", ""),
    ),
    drops=(rf"(?!(model\.)?({T}|{P})\.).*",),
    # images of any size: a number for the key
    aliases={f"{VISION}.image_size": lambda c: 64 * 14},
    defaults={
        VISION: {
            "patch_size": 14, "init_pos_emb_height": 64, "init_pos_emb_width": 64,
            "num_attention_heads": 16, "num_hidden_layers": 27, "hidden_size": 1152,
            "intermediate_size": 4304,
        },
    },
    forced=KERNELS,
)  # fmt: skip

FAMILY = (KIMI_VL,)
