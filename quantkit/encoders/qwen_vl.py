"""The encoders of images of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5.

llama.cpp: `conversion/qwenvl.py`, `conversion/qwen3vl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    piece,
    reading,
    whole,
)
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    QWEN_KEYS,
    VISION,
    V,
    count,
    eps,
    flag,
    frames,
    lin,
    pixel_count,
    projector,
    qkv,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError

B = "visual.blocks.{bid}"
M = "visual.merger"
D = "visual.deepstack_merger_list.{bid}"
DROPS = (r"(?!(model\.)?visual\.).*",)


def _side(config: Config) -> int:
    """The side of the image that the table of positions is for."""
    found: int | None = config.get(*vision("image_size"), default=None)
    if found is not None:
        return found
    n = config.one(*vision("num_position_embeddings"), default=2304)
    return int(n**0.5 * config.one(*vision("patch_size"), default=16))


def _deepstack(config: Config) -> list[int]:
    """The layers of which the text gets a picture of its own. Raises ConfigError."""
    found = config.get(*vision("deepstack_visual_indexes"), default=[])
    layers = count(config, VISION)
    if not isinstance(found, list) or any(n >= layers for n in found):
        raise ConfigError(
            f"{config.where}: 'deepstack_visual_indexes' is {found!r}, of {layers} layers"
        )
    return found


def _is_deepstack(config: Config) -> list[bool] | None:
    taken = set(_deepstack(config))
    return [bid in taken for bid in range(count(config, VISION))] or None


def _merged(config: Config) -> int:
    side = config.one(*vision("spatial_merge_size"), default=2)
    return config.one(*vision("hidden_size")) * side * side


def _of_layer(role: str) -> RowMap:
    """Tensors that are numbered by themselves, under the number of the layer that they are of."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        name = role.format(bid=dims["deepstack"])
        return (piece(name, source, source[0]),)

    return pieces


_KEYS = reading(QWEN_KEYS, ".image_size", config=_side)
_DIMS = {
    **DIMS,
    "patch2": lambda c: c.one(*vision("patch_size")) ** 2,
    "merged": _merged,
    "out": lambda c: c.one(*vision("out_hidden_size"), "text_config.hidden_size"),
}
_TWO_FRAMES = Expect(f"{VISION}.temporal_patch_size", (2,))

QWEN3_VL = Encoder(
    hf_names=("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
    gguf_arch="clip",
    keys=(
        *_KEYS,
        projector("qwen3vl_merger"),
        flag("clip.use_gelu"),
        Key("clip.vision.spatial_merge_size", vision("spatial_merge_size"), default=None),
        eps(("text_config.rms_norm_eps",)),
        Key("clip.vision.is_deepstack_layers", _is_deepstack, "BOOL"),
    ),
    late_keys=(),
    expects=(_TWO_FRAMES,),
    dims={
        **_DIMS,
        "positions": lambda c: c.one(*vision("num_position_embeddings")),
        "deepstack": lambda c: [*_deepstack(c), *[0] * c.layers],
    },
    layers={**KINDS, "deepstack": lambda c, bid: bid < len(_deepstack(c))},
    maps=(
        frames(),
        Map("visual.patch_embed.proj.bias", ("v",), whole("v.patch_embd.bias")),
        Map("visual.pos_embed.weight", ("positions", "v"), whole("v.position_embd.weight")),
        *lin(f"{B}.norm1", ("v",), f"{V}.ln1"),
        *lin(f"{B}.attn.qkv", ("3v", "v"), f"{V}.attn_qkv"),
        *lin(f"{B}.attn.proj", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{B}.norm2", ("v",), f"{V}.ln2"),
        *lin(f"{B}.mlp.linear_fc1", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.linear_fc2", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{M}.norm", ("v",), "v.post_ln", ""),
        *lin(f"{M}.linear_fc1", ("merged", "merged"), "mm.0", ""),
        *lin(f"{M}.linear_fc2", ("out", "merged"), "mm.2", ""),
        *lin(f"{D}.norm", ("merged",), "v.deepstack.{bid}.norm", "deepstack", True, _of_layer),
        *lin(f"{D}.linear_fc1", ("merged", "merged"), "v.deepstack.{bid}.fc1", "deepstack", True,
             _of_layer),
        *lin(f"{D}.linear_fc2", ("out", "merged"), "v.deepstack.{bid}.fc2", "deepstack", True,
             _of_layer),
    ),
    drops=DROPS,
    defaults={
        VISION: {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
            "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "out_hidden_size": 3584,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
        },
        "text_config": {"hidden_size": 4096, "rms_norm_eps": 1e-6},
    },
    forced=KERNELS,
)  # fmt: skip

QWEN3_5 = replace(
    QWEN3_VL,
    hf_names=(
        "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration", "OpenJevModel",
        "Qwen4ExpForConditionalGeneration", "ClefModel",
    ),
    defaults={
        **QWEN3_VL.defaults,
        VISION: {**QWEN3_VL.defaults[VISION], "deepstack_visual_indexes": []},
    },
)  # fmt: skip


def _edge(name: str) -> Callable[[Config], int]:
    """The pixels of the largest or smallest image. Raises ConfigError."""

    def read(config: Config) -> int:
        found = config.find(f"preprocessor.size.{name}")
        if type(found) not in (int, float):
            raise ConfigError(
                f"{config.where}: 'size' of preprocessor_config.json has no {name!r}; get the file "
                "from where the model is from"
            )
        return int(found)

    return read


# llama.cpp: `conversion/pplx_decider.py`
PPLX_DECIDER = replace(
    QWEN3_5,
    hf_names=("PplxDeciderModel",),
    keys=(
        *QWEN3_5.keys,
        Key("clip.vision.image_min_pixels", _edge("shortest_edge")),
        Key("clip.vision.image_max_pixels", _edge("longest_edge")),
    ),
)

# llama.cpp: `conversion/bailingmoe3.py`
LING3_VL = replace(
    QWEN3_VL,
    hf_names=("BailingMoeV3VLForConditionalGeneration",),
    keys=tuple(
        projector("ling3vl") if key.name == "clip.projector_type" else key
        for key in QWEN3_VL.keys if "deepstack" not in key.name
    ),
    expects=(_TWO_FRAMES, Expect(f"{VISION}.disable_merger_proj", (True,), required=True)),
    dims={
        **QWEN3_VL.dims,
        "projected": told("linear_proj.0.weight"),
    },
    maps=(
        *(
            replace(m, optional=m.optional or m.source.endswith("proj.bias"))
            for m in QWEN3_VL.maps if not m.source.startswith((f"{M}.", "visual.deepstack"))),
        *lin(f"{M}.norm", ("v",), "mm.input_norm", ""),
        *lin("linear_proj.0", ("projected", "merged"), "mm.0", "", None),
        *lin("linear_proj.2", ("text", "projected"), "mm.2", "", None),
    ),
    drops=(r"(?!((model\.)?visual|linear_proj)\.).*",),
    defaults={},
)  # fmt: skip


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
    expects=(_TWO_FRAMES,),
    dims=_DIMS,
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
        **_DIMS,
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
    dims={**_DIMS, "joined": _joined},
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

FAMILY = (QWEN3_VL, QWEN3_5, PPLX_DECIDER, LING3_VL, QWEN2_5_VL, QWEN2_VL, SARASHINA2, EXAONE4_5)
