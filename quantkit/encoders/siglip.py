"""SigLIP's encoder of images: in Gemma 3, SmolVLM and Idefics 3, LFM2-VL, Command A Vision.

llama.cpp: `conversion/smolvlm.py`, `conversion/lfm2.py`, `conversion/command_r.py`.
"""

from __future__ import annotations

from typing import Any

from quantkit.architectures.rules import (
    Config,
    Key,
    Map,
    reading,
    whole,
)
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    channels_first,
    count,
    eps,
    flag,
    lin,
    positions,
    projector,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError

# patches and positions stay in float32, whatever the file's type
EXACT_PATCHES = ((r"v\.patch_embd\.weight", "F32"), *KERNELS)
P = "multi_modal_projector"
# transformers 5 saves what it has made itself without the level between
FLAT_NAMES = ((r"\bvision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),)
HEAD = r".*vision_(model|tower)\.head\..*"  # of SigLIP by itself


def patches(tower: str) -> tuple[Map, ...]:
    """The convolution over the pixels, and the table of positions."""
    base = f"{tower}.embeddings"
    return (
        Map(f"{base}.patch_embedding.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        Map(f"{base}.patch_embedding.bias", ("v",), whole("v.patch_embd.bias")),
        Map(f"{base}.position_embedding.weight", ("positions", "v"),
            whole("v.position_embd.weight")),
    )  # fmt: skip


def tower(base: str) -> tuple[Map, ...]:
    """The layers, and the norm after them."""
    layer = f"{base}.encoder.layers.{{bid}}"
    return (
        *lin(f"{layer}.layer_norm1", ("v",), f"{V}.ln1"),
        *lin(f"{layer}.self_attn.q_proj", ("v", "v"), f"{V}.attn_q"),
        *lin(f"{layer}.self_attn.k_proj", ("v", "v"), f"{V}.attn_k"),
        *lin(f"{layer}.self_attn.v_proj", ("v", "v"), f"{V}.attn_v"),
        *lin(f"{layer}.self_attn.out_proj", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{layer}.layer_norm2", ("v",), f"{V}.ln2"),
        *lin(f"{layer}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{layer}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{base}.post_layernorm", ("v",), "v.post_ln", ""),
    )


def _scale(config: Config) -> int:
    return config.one("scale_factor", default=2)


def _longest_edge(config: Config) -> int:
    found: int | None = config.get("preprocessor.size.longest_edge", default=None)
    return config.one(*vision("image_size")) if found is None else found


_T = "model.vision_model"

SMOLVLM = Encoder(
    hf_names=("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("idefics3"),
        eps(vision("layer_norm_eps")),
        Key("clip.vision.projector.scale_factor", _scale),
        flag("clip.use_gelu"),
        Key("clip.vision.preproc_image_size", _longest_edge),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "positions": positions,
        "shuffled": lambda c: c.one(*vision("hidden_size")) * _scale(c) ** 2,
    },
    layers=KINDS,
    maps=(
        *patches(_T),
        *tower(_T),
        *lin("model.connector.modality_projection.proj", ("text", "shuffled"), "mm.model.fc", "",
             False),
    ),
    drops=(r"(?!.*(vision_tower|vision_model|model\.connector)).*",),
    defaults={
        VISION: {
            "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 16, "image_size": 224, "patch_size": 32,
        },
    },
    forced=EXACT_PATCHES,
)  # fmt: skip


def _blocks(config: Config) -> int:
    """Layers up to the one that the text sees, which is counted from the end."""
    layer: int = config.get("vision_feature_layer", kind="INT32", default=-1)
    return count(config, VISION) + layer + 1


def _resample(config: Config) -> str | None:
    """How images are scaled, by Pillow's number. Raises ConfigError."""
    number = config.get("preprocessor.resample", default=None)
    known = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
    if number is not None and number not in known:
        raise ConfigError(f"{config.where}: images are resampled by {number}, not 1, 2 or 3")
    return known.get(number)


_U = "vision_tower.vision_model"

LFM2_VL = Encoder(
    hf_names=("Lfm2VlForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *reading(VISION_KEYS, ".block_count", config=_blocks),
        projector("lfm2"),
        eps(vision("layer_norm_eps")),
        Key("clip.vision.projector.scale_factor", "downsample_factor", default=2),
        flag("clip.use_gelu"),
        Key("clip.vision.image_resize_algo", _resample, "STRING"),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "positions": width("num_patches"),
        "patch3": lambda c: 3 * c.one(*vision("patch_size")) ** 2,
        "shuffled": lambda c: c.one(*vision("hidden_size"))
        * c.one("downsample_factor", default=2) ** 2,
        "projected": lambda c: c.one("projector_hidden_size"),
    },
    layers={
        **KINDS,
        "normed": lambda c, bid: bool(
            c.get("projector_use_layernorm", kind="BOOL", default=True)
        ),
    },
    maps=(
        Map(f"{_U}.embeddings.patch_embedding.weight", ("v", "patch3"),
            channels_first("v.patch_embd.weight", "patch"), flat=True),
        *patches(_U)[1:],
        *tower(_U),
        *lin(f"{P}.layer_norm", ("shuffled",), "mm.input_norm", "normed"),
        *lin(f"{P}.linear_1", ("projected", "shuffled"), "mm.1", "", None),
        *lin(f"{P}.linear_2", ("text", "projected"), "mm.2", "", None),
    ),
    renames=FLAT_NAMES,
    drops=(rf"(?!(model\.)?(vision_tower|{P})\.).*", HEAD),
    aliases={f"{VISION}.image_size": lambda c: 256},  # images of any size: a number for the key
    defaults={
        VISION: {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "num_patches": 256, "patch_size": 16,
        },
        "projector_hidden_size": 2560,
    },
    forced=KERNELS,
)  # fmt: skip


def _required(name: str) -> Key:
    return Key("clip.vision.preproc_max_tiles", f"preprocessor.{name}")


_C = "model.vision_tower.vision_model"
_FACTOR: dict[str, Any] = {"default": 2}

COHERE2_VISION = Encoder(
    hf_names=("Cohere2VisionForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("cohere2v"),
        eps(vision("layer_norm_eps")),
        Key("clip.vision.projector.scale_factor", "downsample_factor", **_FACTOR),
        _required("max_patches"),
        flag("clip.use_gelu"),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "positions": positions,
        "shuffled": lambda c: c.one(*vision("hidden_size"))
        * c.one("downsample_factor", **_FACTOR) ** 2,
        "aligned": lambda c: c.one("alignment_intermediate_size"),
        "gated": lambda c: c.one("alignment_intermediate_size") // 2,
    },
    layers=KINDS,
    maps=(
        *patches(_C),
        *tower(_C),
        *lin(f"model.{P}.linear_1", ("aligned", "shuffled"), "mm.1", ""),
        *lin(f"model.{P}.linear_2", ("text", "gated"), "mm.2", ""),
    ),
    renames=FLAT_NAMES,
    drops=(rf"(?!model\.(vision_tower|{P})\.).*", HEAD),
    defaults={
        VISION: {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
        },
        "alignment_intermediate_size": 36864,
    },
    forced=EXACT_PATCHES,
)  # fmt: skip

FAMILY = (SMOLVLM, LFM2_VL, COHERE2_VISION)
