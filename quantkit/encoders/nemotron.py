"""Nemotron's encoders: RADIO, which sees, and Parakeet, a conformer, which hears.

llama.cpp: `conversion/nemotron.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt

from quantkit.architectures.rules import (
    Config,
    Dim,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    piece,
    vector,
    whole,
)
from quantkit.encoders.common import (
    AUDIO,
    AUDIO_KEYS,
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    A,
    V,
    audio,
    coloured,
    flag,
    heard,
    hears,
    lin,
    patch_convolution,
    pixels_or,
    projector,
    told,
    vision,
)
from quantkit.encoders.conformer import EXACT, TRAINED
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError

R = "vision_model.radio_model.model"
B = f"{R}.blocks.{{bid}}"
P = f"{R}.patch_generator"
S = "sound_encoder.encoder"
L = f"{S}.layers.{{bid}}"
# the vision transformer, whose config names it and does not say its sizes
_HUGE = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 16,
}  # fmt: skip
_CONVOLUTIONS = (0, 2, 3, 5, 6)
_DEEP = (0, 2, 5)  # of them, those with a channel to themselves


def _fixed(n: int) -> Callable[[Config], int]:
    """A number that no config says."""
    return lambda config: n


def _side(config: Config) -> int:
    """Patches of a side of the one size of images that llama.cpp takes."""
    return config.one(*vision("image_size")) // max(config.one(*vision("patch_size")), 1)


def _places(config: Config) -> int:
    """Of the table of positions as it is released. Raises ConfigError, TensorMissing."""
    told_by = told(_table(config), 1)(config)
    if not isinstance(told_by, int) or isqrt(told_by) ** 2 != told_by:
        raise ConfigError(f"{config.where}: a table of {told_by} positions, which is no square")
    return told_by


def _table(config: Config) -> str:
    names = config.values["shapes"]
    return next((n for n in names if n.startswith(f"{P}.pos_embed")), f"{P}.pos_embed")


def _positions(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    n = dims["side"] ** 2
    return (piece("v.position_embd.weight", (1, n, source[-1]), n),)


def _scale(config: Config) -> int:
    ratio: float = config.get("downsample_ratio", kind="NUMBER", default=0.5)
    return int(1.0 / ratio) if ratio > 0 else 0


def _plane(role: str) -> RowMap:
    """A bias as one value a channel of an image."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(role, (1, source[0], 1, 1), source[0]),)

    return pieces


def _pointwise(at: int, shape: tuple[str, str]) -> tuple[Map, Map]:
    """A convolution over one moment as the matrix that it is, and its bias."""
    source, role = f"{L}.conv.pointwise_conv{at}", f"{A}.conv_pw{at}"

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(f"{role}.weight", source[:2], source[0]),)

    return (
        Map(f"{source}.weight", (*shape, "one"), pieces, "audio", seen=shape),
        Map(f"{source}.bias", shape[:1], _plane(f"{role}.bias"), "audio", optional=True),
    )


def _layer(source: str, shape: tuple[str, ...], role: str, bias: bool | None) -> tuple[Map, ...]:
    return lin(f"{L}.{source}", shape, f"{A}.{role}", "audio", bias)


_NORM = f"{L}.conv.norm"
_HEARING = (
    *(
        Map(f"{S}.subsampling.layers.{at}.weight",
            ("conv", "one", "three", "three") if at in _DEEP else ("conv", "conv", "one", "one"),
            whole(f"a.conv1d.{at}.weight"), "hears")
        for at in _CONVOLUTIONS
    ),
    *(
        Map(f"{S}.subsampling.layers.{at}.bias", ("conv",), _plane(f"a.conv1d.{at}.bias"), "hears")
        for at in _CONVOLUTIONS
    ),
    *lin(f"{S}.subsampling.linear", ("a", "spectrum"), "a.pre_encode.out", "hears"),
    Map(f"{S}.feature_extractor.featurizer.fb", ("one", "bins", "bands"), whole("a.mel_filters"),
        "hears"),
    Map(f"{S}.feature_extractor.featurizer.window", ("window",), whole("a.window"), "hears"),
    *_layer("norm_feed_forward1", ("a",), "ffn_norm", True),
    *_layer("feed_forward1.linear1", ("a_ffn", "a"), "ffn_up", None),
    *_layer("feed_forward1.linear2", ("a", "a_ffn"), "ffn_down", None),
    *_layer("norm_self_att", ("a",), "ln1", True),
    *(row for part in "qkv"
      for row in _layer(f"self_attn.{part}_proj", ("a", "a"), f"attn_{part}", None)),
    *_layer("self_attn.o_proj", ("a", "a"), "attn_out", None),
    *_layer("self_attn.relative_k_proj", ("a", "a"), "linear_pos", False),
    Map(f"{L}.self_attn.bias_u", ("a_heads", "a_head"), whole(f"{A}.pos_bias_u"), "audio"),
    Map(f"{L}.self_attn.bias_v", ("a_heads", "a_head"), whole(f"{A}.pos_bias_v"), "audio"),
    *_layer("norm_conv", ("a",), "norm_conv", True),
    *_pointwise(1, ("2a", "a")),
    Map(f"{L}.conv.depthwise_conv.weight", ("a", "one", "kernel"),
        whole(f"{A}.conv_dw.weight", "one", "one", "a", "kernel"), "audio"),
    Map(f"{L}.conv.depthwise_conv.bias", ("a",), whole(f"{A}.conv_dw.bias"), "audio",
        optional=True),
    *_layer("conv.norm", ("a",), "conv_norm", True),
    Map(f"{_NORM}.running_mean", ("a",), whole(f"{A}.conv_norm_mean"), "audio"),
    Map(f"{_NORM}.running_var", ("a",), whole(f"{A}.conv_norm_var"), "audio"),
    *_pointwise(2, ("a", "a")),
    *_layer("norm_feed_forward2", ("a",), "ffn_norm_1", True),
    *_layer("feed_forward2.linear1", ("a_ffn", "a"), "ffn_up_1", None),
    *_layer("feed_forward2.linear2", ("a", "a_ffn"), "ffn_down_1", None),
    *_layer("norm_out", ("a",), "ln2", True),
    vector("sound_projection.norm", "mm.a.norm_pre", "a", "hears"),
    *lin("sound_projection.linear1", ("a_projected", "a"), "mm.a.mlp.1", "hears", None),
    *lin("sound_projection.linear2", ("text", "a_projected"), "mm.a.mlp.2", "hears", None),
)  # fmt: skip


def _heads(config: Config) -> int:
    return max(config.one(*audio("num_attention_heads")), 1)


def _heard(read: Dim) -> Dim:
    """A dimension of the encoder of sound, 1 where there is none."""
    return lambda c: read(c) if hears(c) else 1


_HEARD: dict[str, Dim] = {
    "three": lambda c: 3,
    "conv": told(f"{S}.subsampling.layers.0.weight"),
    "spectrum": told(f"{S}.subsampling.linear.weight", 1),
    "bins": lambda c: c.one(*audio("num_mel_bins")),
    "bands": told(f"{S}.feature_extractor.featurizer.fb", 2),
    "window": told(f"{S}.feature_extractor.featurizer.window"),
    "a": lambda c: c.one(*audio("hidden_size")),
    "2a": lambda c: 2 * c.one(*audio("hidden_size")),
    "a_ffn": lambda c: c.one(*audio("intermediate_size")),
    "a_heads": _heads,
    "a_head": lambda c: c.one(*audio("hidden_size")) // _heads(c),
    "kernel": lambda c: c.one(*audio("conv_kernel_size")),
    "a_projected": told("sound_projection.linear1.weight"),
}


NEMOTRON = Encoder(
    hf_names=("NemotronH_Nano_VL_V2", "RADIOModel"),
    gguf_arch="clip",
    early_keys=(
        heard(Key("clip.audio.num_mel_bins", audio("num_mel_bins"))),
        heard(Key("clip.audio.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32")),
        heard(Key("clip.audio.subsampling_factor", audio("subsampling_factor"))),
        heard(Key("clip.audio.conv_kernel_size", audio("conv_kernel_size"))),
        heard(projector("parakeet", "audio")),
        heard(projector("nemotron_v2_vl", "vision")),
        Key("clip.projector_type", lambda c: None if hears(c) else "nemotron_v2_vl", "STRING"),
    ),
    keys=(
        *coloured(
            pixels_or("image_mean", [0.485, 0.456, 0.406]),
            pixels_or("image_std", [0.229, 0.224, 0.225]),
        ),
        *map(heard, AUDIO_KEYS),
        Key("clip.vision.attention.layer_norm_epsilon", lambda c: 1e-6, "FLOAT32"),
        flag("clip.use_gelu"),
        Key("clip.vision.projector.scale_factor", _scale),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "side": _side,
        "places": _places,
        "registers": told(f"{P}.cls_token.token"),
        "pixels": lambda c: 3 * c.one(*vision("patch_size")) ** 2,
        "shuffled": lambda c: c.one(*vision("hidden_size")) * _scale(c) ** 2,
        "projected": told("mlp1.1.weight"),
        **{name: _heard(read) for name, read in _HEARD.items()},
    },
    # a checkpoint that lacks some of the 32 is refused by what llama.cpp's loader asks
    layers={
        **KINDS,
        "vision": lambda c, bid: f"{R}.blocks.{bid}.attn.qkv.weight" in c.values["shapes"],
    },
    maps=(
        Map(f"{P}.cls_token.token", ("registers", "v"), whole("v.class_embd")),
        Map(f"{P}.embedder.weight", ("v", "pixels"), patch_convolution, flat=True),
        *(
            Map(f"{P}.pos_embed{end}", ("one", "places", "v"), _positions, optional=True,
                resized="side")
            for end in ("", ".weight")
        ),
        *lin(f"{B}.norm1", ("v",), f"{V}.ln1"),
        *lin(f"{B}.attn.qkv", ("3v", "v"), f"{V}.attn_qkv", "vision", None),
        *lin(f"{B}.attn.proj", ("v", "v"), f"{V}.attn_out", "vision", None),
        *lin(f"{B}.norm2", ("v",), f"{V}.ln2"),
        *lin(f"{B}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_up", "vision", None),
        *lin(f"{B}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down", "vision", None),
        *lin("mlp1.0", ("shuffled",), "mm.model.mlp.0", "", None),
        *lin("mlp1.1", ("projected", "shuffled"), "mm.model.mlp.1", "", None),
        *lin("mlp1.3", ("text", "projected"), "mm.model.mlp.3", "", None),
        *_HEARING,
    ),
    drops=(
        rf"(?!({R}|mlp1|sound_encoder|sound_projection)\.).*", r".*input_conditioner.*",
        rf"{P}\.video_embedder.*", TRAINED,
    ),
    tables={AUDIO: "sound_config"},
    aliases={
        **{f"{VISION}.{name}": _fixed(n) for name, n in _HUGE.items()},
        f"{VISION}.image_size": lambda c: c.one("force_image_size", default=512),
    },
    forced=(*EXACT, *KERNELS),
)  # fmt: skip

FAMILY = (NEMOTRON,)
