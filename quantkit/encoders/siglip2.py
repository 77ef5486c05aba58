"""SigLIP 2's encoder of images, as PaddleOCR-VL, Youtu-VL, Phi-4 and MiniCPM-V 4.6 have it.

llama.cpp: `conversion/ernie.py`, `conversion/youtuvl.py`, `conversion/phi.py`,
`conversion/minicpm.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt, sqrt

from quantkit.architectures.rules import Config, Key, Map
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    channels_first,
    count,
    eps,
    flag,
    lin,
    pixel_count,
    projector,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.encoders.siglip import patches, tower
from quantkit.errors import ConfigError

_P = "model.vision_model"
_AR = "mlp_AR"


def _merged(side: str = "spatial_merge_size") -> Callable[[Config], int]:
    return lambda c: c.one(*vision("hidden_size")) * c.one(*vision(side), default=2) ** 2


PADDLE_OCR = Encoder(
    hf_names=("PaddleOCRVisionModel",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("paddleocr"),
        pixel_count("max"),
        pixel_count("min"),
        flag("clip.use_gelu"),
        eps(vision("rms_norm_eps")),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "positions": told(f"{_P}.embeddings.position_embedding.weight"),
        "merged": _merged(),
    },
    layers=KINDS,
    maps=(
        *patches(_P),
        *tower(_P),
        *lin(f"{_AR}.pre_norm", ("v",), "mm.input_norm", ""),
        *lin(f"{_AR}.linear_1", ("merged", "merged"), "mm.1", ""),
        *lin(f"{_AR}.linear_2", ("text", "merged"), "mm.2", ""),
    ),
    renames=((r"^visual\.", "model."),),
    drops=(
        r"(?!.*(vision_model|mlp_AR)).*", r".*packing_position_embedding.*",
        r".*vision_model\.head.*",
    ),
    # the side of the largest image
    aliases={
        f"{VISION}.image_size": lambda c: int(sqrt(max(c.one("preprocessor.max_pixels"), 0))),
    },
    defaults={
        VISION: {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "patch_size": 14,
        },
        "text_config": {"hidden_size": 1024},
    },
    forced=KERNELS,
)  # fmt: skip

_Y = "siglip2.vision_model"
_GELU = ("gelu", "gelu_pytorch_tanh", "gelu_fast", "gelu_new", "gelu_accurate")


def _acts(name: str, *names: str) -> Key:
    def read(config: Config) -> bool | None:
        found: str = config.get(*vision("hidden_act"), kind="STRING", default="gelu_pytorch_tanh")
        if found.lower() not in (*_GELU, "silu"):
            raise ConfigError(f"{config.where}: 'hidden_act' is {found!r}, not GELU or SiLU")
        return found.lower() in names or None

    return Key(f"clip.use_{name}", read, "BOOL")


YOUTU_VL = Encoder(
    hf_names=("YoutuVLForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("youtuvl"),
        eps(vision("layer_norm_eps")),
        _acts("gelu", *_GELU),
        _acts("silu", "silu"),
        Key("clip.vision.spatial_merge_size", vision("spatial_merge_size"), default=2),
        Key("clip.vision.window_size", vision("window_size"), default=None),
        Key("clip.vision.wa_layer_indexes", vision("fullatt_block_indexes"), "INT32"),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "patch3": lambda c: c.one(*vision("num_channels"), default=3)
        * c.one(*vision("patch_size")) ** 2,
        "merged": _merged(),
    },
    layers=KINDS,
    maps=(
        *lin(f"{_Y}.embeddings.patch_embedding", ("v", "patch3"), "v.patch_embd", ""),
        *tower(_Y),
        *lin("merger.ln_q", ("v",), "mm.input_norm", "", None),
        *lin("merger.mlp.0", ("merged", "merged"), "mm.0", ""),
        *lin("merger.mlp.2", ("text", "merged"), "mm.2", ""),
    ),
    drops=(r"(?!(siglip2|merger)\.).*", rf"{_Y}\.head\..*"),
    aliases={f"{VISION}.image_size": lambda c: c.one(*vision("image_size"), default=560)},
    forced=KERNELS,
)  # fmt: skip

_F = "vision_tower.vision_model"
_TABLE = f"{_F}.embeddings.position_embedding.weight"


def _grid(config: Config) -> int:
    """Pixels of a side of the image that the table of positions is for. Raises ConfigError."""
    n = told(_TABLE)(config)
    assert isinstance(n, int)
    side = isqrt(n)
    if side * side != n:
        raise ConfigError(f"{config.where}: a table of {n} positions is not that of a square image")
    return side * config.one("preprocessor.patch_size")


def _area(end: str) -> Key:
    """The fewest or the most pixels, from patches."""
    name = f"{end}_num_patches"

    def read(config: Config) -> int:
        return config.one(f"preprocessor.{name}", name) * config.one("preprocessor.patch_size") ** 2

    return Key(f"clip.vision.image_{end}_pixels", read)


_OWN = {
    "clip.vision.image_size": _grid,
    "clip.vision.patch_size": lambda c: c.one("preprocessor.patch_size"),
    # the text sees what the layer before the last makes
    "clip.vision.block_count": lambda c: count(c, VISION) - 1,
}

PHI4_VISION = Encoder(
    hf_names=("Phi4ForCausalLMV",),
    gguf_arch="clip",
    keys=(
        *(Key(k.name, _OWN.get(k.name, k.config), k.kind, k.default) for k in VISION_KEYS),
        projector("phi4"),
        _area("min"),
        _area("max"),
        flag("clip.use_gelu"),
        eps(vision("layer_norm_eps")),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "patch": lambda c: c.one("preprocessor.patch_size"),
        "patch3": lambda c: 3 * c.one("preprocessor.patch_size") ** 2,
        "positions": told(_TABLE),
        "projected": told("mm_projector.0.weight"),
    },
    layers={**KINDS, "vision": lambda c, bid: bid < count(c, VISION) - 1},
    maps=(
        Map(f"{_F}.embeddings.patch_embedding.weight", ("v", "patch3"),
            channels_first("v.patch_embd.weight", "patch"), flat=True),
        *patches(_F)[1:],
        *(m for m in tower(_F) if "post_layernorm" not in m.source),
        *lin("mm_projector.0", ("projected", "v"), "mm.0", ""),
        *lin("mm_projector.2", ("text", "projected"), "mm.2", ""),
    ),
    renames=(
        (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
        (r"^model\.mm_projector\.", "mm_projector."),
    ),
    drops=(
        r"(?!(model\.vision_tower\.)?vision_tower\.|(model\.)?mm_projector\.).*",
        r".*\.vision_model\.(head|post_layernorm)\..*",
    ),
    unseen=(r".*\.vision_model\.encoder\.layers\..*",),
    forced=KERNELS,
)  # fmt: skip

_M = "model.vision_tower"
_W = f"{_M}.vit_merger"
_G = "model.merger.mlp.0"


def _fine(config: Config) -> bool:
    """Whether four tokens become one, not sixteen. Raises ConfigError."""
    mode = config.get("preprocessor.downsample_mode", kind="STRING", default="16x")
    if mode not in ("4x", "16x"):
        raise ConfigError(f"{config.where}: 'downsample_mode' is {mode!r}, not '4x' or '16x'")
    return bool(mode == "4x")


def _resolution(config: Config) -> int | None:
    found: int | None = config.get("preprocessor.scale_resolution", default=None)
    return found


MINICPM_V46 = Encoder(
    hf_names=("MiniCPMV4_6ForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("minicpmv4_6"),
        Key("clip.vision.projector.scale_factor", lambda c: 2 if _fine(c) else 4),
        Key("clip.vision.wa_layer_indexes",
            lambda c: [c.one("insert_layer_id", *vision("insert_layer_id"), default=6)], "INT32"),
        flag("clip.use_gelu"),
        eps(vision("layer_norm_eps")),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "positions": told(f"{_M}.embeddings.position_embedding.weight"),
        "4v": lambda c: 4 * c.one(*vision("hidden_size")),
        "joined": lambda c: told(f"{_W}.linear_1.weight")(c) if not _fine(c) else 1,
        "merged": told(f"{_G}.linear_1.weight"),
    },
    layers={**KINDS, "merges": lambda c, bid: not _fine(c)},
    maps=(
        *patches(_M),
        *tower(_M),
        *lin(f"{_W}.layer_norm1", ("v",), "v.vit_merger.ln1", "merges"),
        *(
            row
            for part in ("q", "k", "v", "out")
            for row in lin(f"{_W}.self_attn.{part}_proj", ("v", "v"), f"v.vit_merger.attn_{part}",
                           "merges")
        ),
        *lin(f"{_W}.pre_norm", ("4v",), "v.vit_merger.ds_ln", "merges"),
        *lin(f"{_W}.linear_1", ("joined", "4v"), "v.vit_merger.ds_ffn_up", "merges"),
        *lin(f"{_W}.linear_2", ("v", "joined"), "v.vit_merger.ds_ffn_down", "merges"),
        *lin(f"{_G}.pre_norm", ("4v",), "mm.input_norm", ""),
        *lin(f"{_G}.linear_1", ("merged", "4v"), "mm.up", ""),
        *lin(f"{_G}.linear_2", ("text", "merged"), "mm.down", ""),
    ),
    drops=(r"(?!model\.(vision_tower|merger)\.).*", r".*\.vit_merger\..*"),
    aliases={f"{VISION}.image_size": _resolution},
    defaults={
        VISION: {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 224, "patch_size": 16, "insert_layer_id": 6,
        },
        "insert_layer_id": 6,
    },
    forced=KERNELS,
)  # fmt: skip

FAMILY = (PADDLE_OCR, YOUTU_VL, PHI4_VISION, MINICPM_V46)
