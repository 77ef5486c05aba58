"""The encoder of images of dots.ocr. llama.cpp: `conversion/dotsocr.py`."""

from __future__ import annotations

from quantkit.architectures.rules import Key, Map, vector, whole
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    flag,
    lin,
    pixel_count,
    projector,
    vision,
)
from quantkit.encoders.rules import Encoder

T = "vision_tower"
B = f"{T}.blocks.{{bid}}"
P = f"{T}.patch_embed.patchifier"

DOTS_OCR = Encoder(
    hf_names=("DotsOCRForCausalLM",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("dots_ocr"),
        pixel_count("min"),
        pixel_count("max"),
        Key("clip.vision.attention.layer_norm_epsilon", vision("rms_norm_eps"), "FLOAT32"),
        Key("clip.vision.projector.scale_factor", vision("spatial_merge_size")),
        flag("clip.use_silu"),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "merged": lambda c: c.one(*vision("hidden_size"))
        * c.one(*vision("spatial_merge_size")) ** 2,
    },
    layers=KINDS,
    maps=(
        Map(f"{P}.proj.weight", ("v", "channels", "patch", "patch"), whole("v.patch_embd.weight")),
        Map(f"{P}.proj.bias", ("v",), whole("v.patch_embd.bias"), optional=True),
        vector(f"{P}.norm", "v.pre_ln", "v"),
        vector(f"{B}.norm1", f"{V}.ln1", "v", "vision"),
        vector(f"{B}.norm2", f"{V}.ln2", "v", "vision"),
        *lin(f"{B}.attn.qkv", ("3v", "v"), f"{V}.attn_qkv", "vision", None),
        *lin(f"{B}.attn.proj", ("v", "v"), f"{V}.attn_out", "vision", None),
        # silu(fc1(x)) * fc3(x), and fc2 of it
        *lin(f"{B}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_gate", "vision", None),
        *lin(f"{B}.mlp.fc3", ("ffn", "v"), f"{V}.ffn_up", "vision", None),
        *lin(f"{B}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down", "vision", None),
        vector(f"{T}.post_trunk_norm", "mm.post_norm", "v"),
        *lin(f"{T}.merger.ln_q", ("v",), "mm.input_norm", ""),
        *lin(f"{T}.merger.mlp.0", ("merged", "merged"), "mm.0", ""),
        *lin(f"{T}.merger.mlp.2", ("text", "merged"), "mm.2", ""),
    ),
    drops=(rf"(?!{T}\.).*",),
    aliases={f"{VISION}.image_size": lambda c: 0},  # images of any size
    forced=KERNELS,
)  # fmt: skip

FAMILY = (DOTS_OCR,)
