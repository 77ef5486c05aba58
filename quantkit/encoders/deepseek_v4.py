"""The encoder of images of DeepSeek V4 Flash Vision. llama.cpp: `conversion/deepseek.py`."""

from __future__ import annotations

from typing import Any

from quantkit.architectures.rules import (
    Config,
    Expect,
    Key,
    Map,
    parts,
    vector,
    whole,
)
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    V,
    coloured,
    flag,
    lin,
    patch_convolution,
    pixels_or,
    projector,
    vision,
)
from quantkit.encoders.rules import Encoder

B = "vision.blocks.{bid}"
_TOKENS = ("start", "end", "pad")
_NAMES = {
    "num_hidden_layers": "n_layers", "hidden_size": "dim", "num_attention_heads": "n_heads",
    "intermediate_size": "inter_dim", "patch_size": "patch_size",
    "downsample_ratio": "downsample_ratio", "min_pixels": "min_pixels",
}  # fmt: skip


def _table(config: Config) -> dict[str, Any] | None:
    """The encoder's numbers, which config.json has among those of the text."""
    if not config.find("vision_n_layers"):
        return None
    return {ours: config.one(f"vision_{theirs}") for ours, theirs in _NAMES.items()}


DEEPSEEK_V4 = Encoder(
    hf_names=("DeepseekV4ForCausalLM",),
    gguf_arch="clip",
    keys=(
        *coloured(pixels_or("image_mean", [0.5] * 3), pixels_or("image_std", [0.5] * 3)),
        projector("deepseek4v"),
        Key("clip.vision.attention.layer_norm_epsilon", lambda c: 1e-6, "FLOAT32"),
        flag("clip.use_silu"),
        Key("clip.vision.projector.scale_factor", vision("downsample_ratio")),
        Key("clip.vision.image_min_pixels", vision("min_pixels")),
    ),
    late_keys=(),
    expects=(
        Expect("vision_max_n_token", (384,), required=True),
        Expect("vision_max_wh_ratio", (8,), required=True),
    ),
    dims={
        **DIMS,
        "patch3": lambda c: 3 * c.one(*vision("patch_size")) ** 2,
        "2ffn": lambda c: 2 * c.one(*vision("intermediate_size")),
        "merged": lambda c: c.one(*vision("hidden_size"))
        * c.one(*vision("downsample_ratio")) ** 2,
        "aligned": lambda c: c.values["shapes"].get("aligner.w1.weight", [1])[0],
    },
    layers=KINDS,
    maps=(
        Map("vision.patch_embed.proj.weight", ("v", "patch3"), patch_convolution, flat=True),
        Map("vision.patch_embed.proj.bias", ("v",), whole("v.patch_embd.bias"), optional=True),
        vector(f"{B}.norm1", f"{V}.ln1", "v", "vision"),
        vector(f"{B}.norm2", f"{V}.ln2", "v", "vision"),
        *lin(f"{B}.attn.wqkv", ("3v", "v"), f"{V}.attn_qkv", "vision", None),
        *lin(f"{B}.attn.wo", ("v", "v"), f"{V}.attn_out", "vision", None),
        Map(f"{B}.mlp.w1.weight", ("2ffn", "v"),
            parts((f"{V}.ffn_gate.weight", "ffn"), (f"{V}.ffn_up.weight", "ffn")), "vision"),
        Map(f"{B}.mlp.w1.bias", ("2ffn",),
            parts((f"{V}.ffn_gate.bias", "ffn"), (f"{V}.ffn_up.bias", "ffn")), "vision", True),
        *lin(f"{B}.mlp.w2", ("v", "ffn"), f"{V}.ffn_down", "vision", None),
        vector("vision.norm", "v.post_ln", "v"),
        *lin("aligner.w1", ("aligned", "merged"), "mm.1", ""),
        *lin("aligner.w2", ("text", "aligned"), "mm.2", ""),
        Map("image_newline", ("text",), whole("v.image_newline")),
        *(Map(f"image_{name}", ("text",), whole(f"v.token_embd.img_{name}")) for name in _TOKENS),
    ),
    drops=(r"(?!vision\.|aligner\.|image_).*",),
    tables={VISION: _table},
    # images of any size: a number for the key
    aliases={
        f"{VISION}.image_size": lambda c: (
            16 * c.one(*vision("patch_size")) * c.one(*vision("downsample_ratio"))
        ),
    },
    forced=KERNELS,
)  # fmt: skip

FAMILY = (DEEPSEEK_V4,)
