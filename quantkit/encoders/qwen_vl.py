"""The encoders of images of Qwen3-VL and Qwen3.5. llama.cpp: `conversion/qwen3vl.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from quantkit.architectures.rules import (
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
    projector,
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
VIT_DIMS = {
    **DIMS,
    "patch2": lambda c: c.one(*vision("patch_size")) ** 2,
    "merged": _merged,
    "out": lambda c: c.one(*vision("out_hidden_size"), "text_config.hidden_size"),
}
TWO_FRAMES = Expect(f"{VISION}.temporal_patch_size", (2,))

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
    expects=(TWO_FRAMES,),
    dims={
        **VIT_DIMS,
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
    expects=(TWO_FRAMES, Expect(f"{VISION}.disable_merger_proj", (True,), required=True)),
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

FAMILY = (QWEN3_VL, QWEN3_5, PPLX_DECIDER, LING3_VL)
