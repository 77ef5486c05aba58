"""The encoder of images of Step3-VL and Step-3.7. llama.cpp: `conversion/step3.py`."""

from __future__ import annotations

from quantkit.architectures.rules import Config, Expect, Key, Map, whole
from quantkit.encoders.common import (
    KERNELS,
    KINDS,
    TEXT_WIDTH,
    VISION,
    V,
    coloured,
    eps,
    lin,
    pixels_or,
    projector,
    told,
    vision,
)
from quantkit.encoders.pixtral import CLIP_MEAN, CLIP_STD
from quantkit.encoders.rules import Encoder

W = "vision_model"
B = f"{W}.transformer.resblocks.{{bid}}"
_RATIO = 8960 / 1536


def _ffn(config: Config) -> int:
    """The width of the MLP, which may be given as a ratio."""
    found: int | None = config.get(*vision("intermediate_size"), default=None)
    ratio: float = config.get(*vision("mlp_ratio"), kind="NUMBER", default=_RATIO)
    return found or round(config.one(*vision("hidden_size", "width")) * ratio)


STEP3_VL = Encoder(
    hf_names=("StepVLForConditionalGeneration", "Step3p7ForConditionalGeneration"),
    gguf_arch="clip",
    keys=(
        *coloured(pixels_or("image_mean", CLIP_MEAN), pixels_or("image_std", CLIP_STD)),
        projector("step3vl"),
        eps(vision("layer_norm_eps"), 1e-5),
        Key("clip.vision.projector.scale_factor", lambda c: 4),
        Key("clip.vision.preproc_image_size", lambda c: 3024),  # of the side of a whole picture
    ),
    late_keys=(),
    # the one size of which llama.cpp's converter knows that it is right
    expects=(
        Expect("understand_projector_stride", (2,), required=True),
        Expect(f"{VISION}.image_size", (728,), required=True),
        Expect(f"{VISION}.hidden_size", (1536,)),
        Expect(f"{VISION}.width", (1536,)),
        Expect(f"{VISION}.num_hidden_layers", (47,)),
        Expect(f"{VISION}.layers", (47,)),
    ),
    # the widths of all tensors follow from the first
    dims={
        "text": lambda c: c.one(*TEXT_WIDTH),
        "three": lambda c: 3,
        "patch": lambda c: c.one(*vision("patch_size")),
        "places": told(f"{W}.positional_embedding"),
        "v": told(f"{W}.conv1.weight"),
        "3v": told(f"{B.format(bid=0)}.attn.in_proj_weight"),
        "ffn": told(f"{B.format(bid=0)}.mlp.c_fc.weight"),
        "half": told(f"{W}.vit_downsampler1.weight"),
        "quarter": told(f"{W}.vit_downsampler2.weight"),
    },
    layers=KINDS,
    maps=(
        *lin(f"{W}.conv1", ("v", "three", "patch", "patch"), "v.patch_embd", "", None),
        Map(f"{W}.positional_embedding", ("places", "v"), whole("v.position_embd.weight")),
        *lin(f"{W}.ln_pre", ("v",), "v.pre_ln", ""),
        *lin(f"{B}.ln_1", ("v",), f"{V}.ln1"),
        *lin(f"{B}.ln_2", ("v",), f"{V}.ln2"),
        Map(f"{B}.attn.in_proj_weight", ("3v", "v"), whole(f"{V}.attn_qkv.weight"), "vision"),
        Map(f"{B}.attn.in_proj_bias", ("3v",), whole(f"{V}.attn_qkv.bias"), "vision"),
        *lin(f"{B}.attn.out_proj", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{B}.mlp.c_fc", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.c_proj", ("v", "ffn"), f"{V}.ffn_down"),
        Map(f"{B}.ls_1.gamma", ("v",), whole(f"{V}.ls1.weight"), "vision"),
        Map(f"{B}.ls_2.gamma", ("v",), whole(f"{V}.ls2.weight"), "vision"),
        *lin(f"{W}.vit_downsampler1", ("half", "v", "three", "three"), "mm.0", "", None),
        *lin(f"{W}.vit_downsampler2", ("quarter", "half", "three", "three"), "mm.1", "", None),
        *lin("vit_large_projector", ("text", "quarter"), "mm.model.fc", "", False),
    ),
    drops=(rf"(?!{W}\.|vit_large_projector\.).*",),
    aliases={f"{VISION}.intermediate_size": _ffn},
    forced=((r"v\.position_embd\.weight", "F32"), (r"mm\.[01]\.weight", "kernel"), *KERNELS),
)  # fmt: skip

FAMILY = (STEP3_VL,)
