"""MiniMax-M3's encoder of images. llama.cpp: `conversion/minimax.py`."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.architectures.rules import Config, Dims, Key, Map, Piece, RowMap, Shape, piece
from quantkit.encoders.common import (
    DIMS,
    FRAMES,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    eps,
    flag,
    lin,
    projector,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.encoders.siglip import tower
from quantkit.errors import ConfigError

W = "vision_tower.vision_model"
B = f"{W}.encoder.layers.{{bid}}"
P = "multi_modal_projector"
_HEAD = 80  # channels of a head, which llama.cpp's order of them is for
_AXIS = 13  # of them, the pairs that turn with one of the three axes


def _axes(role: str) -> RowMap:
    """Queries or keys, one axis at a time: the two halves of its pairs, each kept by itself."""
    half, last = 3 * _AXIS, 6 * _AXIS
    order = tuple(
        part + axis * _AXIS + i for axis in range(3) for part in (0, half) for i in range(_AXIS)
    )
    order += tuple(range(last, _HEAD))

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(role, source, source[0], order=order),)

    return pieces


def _frames(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """A convolution over some frames as one over each."""
    out, channels, time, height, width = (
        *(dims[name] for name in FRAMES[:3]), dims["patch"], dims["patch"]
    )  # fmt: skip
    return [
        piece(f"v.patch_embd.weight{f'.{at}' if at else ''}", (out, channels, height, width),
              out * channels, at=at, step=time)
        for at in range(time)
    ]  # fmt: skip


def _heads(config: Config) -> int:
    """Raises ConfigError."""
    heads = config.one(*vision("num_attention_heads"))
    if config.one(*vision("hidden_size")) != heads * _HEAD:
        raise ConfigError(
            f"{config.where}: {heads} heads for a width of {config.one(*vision('hidden_size'))}; "
            f"llama.cpp knows the order of heads of {_HEAD} channels"
        )
    return heads


def _merge(config: Config) -> int:
    return config.one(*vision("img_token_compression_config.spatial_merge_size"), default=2)


MINIMAX_M3 = Encoder(
    hf_names=("MiniMaxM3SparseForConditionalGeneration", "MiniMaxM3VLForConditionalGeneration"),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("minimax_m3"),
        flag("clip.use_gelu"),
        eps(vision("layer_norm_eps"), 1e-5),
        Key("clip.vision.spatial_merge_size", _merge),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "heads": _heads,
        "patch2": lambda c: c.one(*vision("patch_size")) ** 2,
        "projected": lambda c: c.one("projector_hidden_size", "text_config.hidden_size"),
        "merged": lambda c: _merge(c) ** 2 * c.one("text_config.hidden_size"),
    },
    layers=KINDS,
    maps=(
        Map(f"{W}.embeddings.patch_embedding.weight", FRAMES, _frames,
            seen=("v", "channels", "time", "patch2")),
        *lin(f"{W}.pre_layrnorm", ("v",), "v.pre_ln", ""),
        *(
            m
            for m in tower(W)
            if not any(part in m.source for part in ("q_proj", "k_proj", "post_layernorm"))
        ),
        *lin(f"{B}.self_attn.q_proj", ("v", "v"), f"{V}.attn_q", "vision", True, _axes),
        *lin(f"{B}.self_attn.k_proj", ("v", "v"), f"{V}.attn_k", "vision", True, _axes),
        *lin(f"{P}.linear_1", ("projected", "v"), "mm.1", "", None),
        *lin(f"{P}.linear_2", ("text", "projected"), "mm.2", "", None),
        *lin("patch_merge_mlp.linear_1", ("projected", "merged"), "mm.merger.fc1", "", None),
        *lin("patch_merge_mlp.linear_2", ("text", "projected"), "mm.merger.fc2", "", None),
    ),
    drops=(rf"(?!(vision_tower|{P}|patch_merge_mlp)\.).*",),
    defaults={
        VISION: {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
            "num_attention_heads": 16, "num_channels": 3, "image_size": 2016, "patch_size": 14,
            "temporal_patch_size": 2, "layer_norm_eps": 1e-5,
        },
    },
    forced=KERNELS,
)  # fmt: skip

FAMILY = (MINIMAX_M3,)
