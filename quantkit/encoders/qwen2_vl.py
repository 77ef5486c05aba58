"""The encoders of images of Qwen2-VL and Qwen2.5-VL, and of what took them over. llama.cpp:
`conversion/qwenvl.py`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from quantkit.architectures.rules import (
    Architecture,
    Config,
    Key,
    reading,
)
from quantkit.encoders.common import (
    KERNELS,
    KINDS,
    QWEN_KEYS,
    VISION,
    V,
    eps,
    flag,
    frames,
    lin,
    pixel_count,
    projector,
    qkv,
    vision,
)
from quantkit.encoders.qwen_vl import (
    DROPS,
    TWO_FRAMES,
    VIT_DIMS,
    B,
    M,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError


def _pattern(config: Config) -> int | None:
    """Every how many layers one sees the whole image. Raises ConfigError."""
    found = config.get(*vision("fullatt_block_indexes"))
    every = found[0] + 1 if isinstance(found, list) and found else 0
    if not every or any(b - a != every for a, b in pairwise(found)):
        raise ConfigError(
            f"{config.where}: 'fullatt_block_indexes' is {found!r}, which is not every nth layer, "
            "as llama.cpp has it"
        )
    return every


_SHARED = (
    frames(),
    *qkv(f"{B}.attn.qkv"),
    *lin(f"{B}.attn.proj", ("v", "v"), f"{V}.attn_out"),
    *lin(f"{M}.mlp.0", ("merged", "merged"), "mm.0", ""),
    *lin(f"{M}.mlp.2", ("out", "merged"), "mm.2", ""),
)
# 560 pixels, where config.json does not say: llama.cpp's own number
_SIDE = {"image_size": 560}


def _hidden(config: Config) -> int:
    """What llama.cpp's converter calls the width of the MLP: that of the text, in a config that
    calls the encoder's own width embed_dim."""
    named = config.find(f"{VISION}.embed_dim") is not None
    return config.one(*vision("hidden_size" if named else "intermediate_size"))


_RENAMED = reading(
    reading(QWEN_KEYS, ".embedding_length", config=vision("embed_dim", "hidden_size")),
    ".feed_forward_length",
    config=_hidden,
)

QWEN2_5_VL = Encoder(
    hf_names=("Qwen2_5_VLForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *_RENAMED,
        projector("qwen2.5vl_merger"),
        flag("clip.use_silu"),
        Key("clip.vision.n_wa_pattern", _pattern),
        eps(("rms_norm_eps",)),
    ),
    late_keys=(),
    expects=(TWO_FRAMES,),
    dims=VIT_DIMS,
    layers=KINDS,
    maps=(
        *_SHARED,
        *lin(f"{B}.norm1", ("v",), f"{V}.ln1", bias=False),
        *lin(f"{B}.norm2", ("v",), f"{V}.ln2", bias=False),
        *lin(f"{B}.mlp.gate_proj", ("ffn", "v"), f"{V}.ffn_gate"),
        *lin(f"{B}.mlp.up_proj", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.down_proj", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{M}.ln_q", ("v",), "v.post_ln", "", False),
    ),
    drops=DROPS,
    defaults={
        VISION: {
            **_SIDE, "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16,
            "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "text_config": {"hidden_size": 8192},
    },
    forced=KERNELS,
)  # fmt: skip


def _wide(config: Config) -> int:
    return config.one(*vision("embed_dim"))


def _newer(config: Config) -> Architecture | None:
    return QWEN2_5_VL if config.find("model_type") == "qwen2_5_vl" else None


QWEN2_VL = replace(
    QWEN2_5_VL,
    hf_names=("Qwen2VLForConditionalGeneration", "Qwen2VLModel"),
    variant=_newer,
    keys=(
        *_RENAMED,
        projector("qwen2vl_merger"),
        eps(("rms_norm_eps",)),
    ),
    dims={
        **VIT_DIMS,
        "v": _wide,
        "3v": lambda c: 3 * _wide(c),
        "ffn": lambda c: int(_wide(c) * c.get(*vision("mlp_ratio"), kind="NUMBER", default=4)),
        "merged": lambda c: _wide(c) * c.one(*vision("spatial_merge_size"), default=2) ** 2,
        "out": lambda c: c.one(*vision("hidden_size")),
    },
    maps=(
        *_SHARED,
        *lin(f"{B}.norm1", ("v",), f"{V}.ln1"),
        *lin(f"{B}.norm2", ("v",), f"{V}.ln2"),
        *lin(f"{B}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{M}.ln_q", ("v",), "v.post_ln", ""),
    ),
    defaults={
        VISION: {
            **_SIDE, "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16,
            "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "mlp_ratio": 4,
        },
        "text_config": {"hidden_size": 8192},
    },
)  # fmt: skip

# llama.cpp: `conversion/sarashina2.py`
SARASHINA2 = replace(
    QWEN2_VL, hf_names=("Sarashina2VisionForCausalLM",), variant=lambda config: None
)


def _optional_pattern(config: Config) -> int | None:
    return _pattern(config) if config.find(f"{VISION}.fullatt_block_indexes") else None


def _joined(config: Config) -> int:
    """Rows of queries, and of the keys and values of fewer heads."""
    heads = config.one(*vision("num_heads"))
    few = config.one(*vision("num_key_value_heads"), default=heads)
    return config.one(*vision("hidden_size")) // max(heads, 1) * (heads + 2 * few)


# llama.cpp: `conversion/exaone.py`
EXAONE4_5 = replace(
    QWEN2_5_VL,
    hf_names=("Exaone4_5_ForConditionalGeneration",),
    keys=(
        *_RENAMED,
        projector("exaone4_5"),
        flag("clip.use_silu"),
        pixel_count("min"),
        pixel_count("max"),
        Key("clip.vision.attention.head_count_kv", vision("num_key_value_heads"), default=None),
        eps((*vision("rms_norm_eps"), "rms_norm_eps")),
        Key("clip.vision.window_size", vision("window_size"), default=None),
        Key("clip.vision.n_wa_pattern", _optional_pattern),
    ),
    dims={**VIT_DIMS, "joined": _joined},
    maps=(
        *(m for m in QWEN2_5_VL.maps if ".qkv." not in m.source),
        *lin(f"{B}.attn.qkv", ("joined", "v"), f"{V}.attn_qkv", "vision", None),
    ),
    defaults={
        VISION: {
            **QWEN2_5_VL.defaults[VISION], "window_size": 112, "num_key_value_heads": 8,
        },
        "text_config": {"hidden_size": 4096},
    },
)  # fmt: skip

FAMILY = (QWEN2_5_VL, QWEN2_VL, SARASHINA2, EXAONE4_5)
