"""The encoders of Gemma 3 (SigLIP) and Gemma 4 (images, and sound in some sizes; or, "unified",
what the text takes pixels and waves through). llama.cpp: `conversion/gemma.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from quantkit.architectures.rules import (
    Config,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    edited,
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
    VISION_KEYS,
    A,
    V,
    audio,
    channels_first,
    eps,
    flag,
    heard,
    lin,
    positions,
    projector,
    scale_factor,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder
from quantkit.encoders.siglip import EXACT_PATCHES, FLAT_NAMES, HEAD, patches, tower

S = "vision_tower.vision_model"
P = "multi_modal_projector"


GEMMA3 = Encoder(
    hf_names=("Gemma3ForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("gemma3"),
        eps(vision("layer_norm_eps")),
        flag("clip.use_gelu"),
        scale_factor(),
    ),
    late_keys=(),
    expects=(),
    dims={**DIMS, "positions": positions},
    layers=KINDS,
    maps=(
        *patches(S),
        *tower(S),
        # kept as `[in, out]`, which llama.cpp turns as it loads
        Map(f"{P}.mm_input_projection_weight", ("v", "text"), whole("mm.input_projection.weight")),
        Map(f"{P}.mm_soft_emb_norm.weight", ("v",),
            edited(whole("mm.soft_emb_norm.weight"), ("add", 1.0))),
    ),
    renames=FLAT_NAMES,
    drops=(
        r"(?!(model\.)?(vision_tower|vision_model|multi_?modal_projector)\.).*",
        HEAD,
    ),
    defaults={
        VISION: {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
        },
        "text_config": {"hidden_size": 2304},
    },
    forced=(
        (r"mm\.input_projection\.weight", "F16"),
        *EXACT_PATCHES,
    ),
)  # fmt: skip

T = "model.vision_tower"
L = f"{T}.encoder.layers.{{bid}}"
BOUNDS = ("input_max", "input_min", "output_max", "output_min")


def _clipped(source: str, shape: tuple[str, ...], role: str, layers: str) -> tuple[Map, ...]:
    """A matrix, and the bounds of what goes in and comes out, which some checkpoints have."""
    weight = Map(f"{source}.weight", shape, whole(f"{role}.weight"), layers)
    return (
        weight,
        *(
            Map(f"{source}.{name}", ("one",), whole(f"{role}.{name}"), layers, optional=True)
            for name in BOUNDS
        ),
    )


def _see(source: str, shape: tuple[str, ...], role: str) -> tuple[Map, ...]:
    return _clipped(f"{L}.{source}", shape, f"{V}.{role}", "vision")


H = "model.audio_tower"
HL = f"{H}.layers.{{bid}}"
CONV = f"{H}.subsample_conv_projection"


def _hear(source: str, shape: tuple[str, ...], role: str) -> tuple[Map, ...]:
    return _clipped(f"{HL}.{source}", shape, f"{A}.{role}", "audio")


def _hear_norm(source: str, role: str) -> Map:
    return vector(f"{HL}.{source}", f"{A}.{role}", "a", "audio")


def _softplus(role: str) -> RowMap:
    return edited(whole(role), ("softplus",))


def _channels(i: int) -> Callable[[Config], int]:
    """Channels after one of the two convolutions over the spectrum."""

    def read(config: Config) -> int:
        found = config.get(*audio("subsampling_conv_channels"), default=[128, 32])
        n: int = found[i]
        return n

    return read


def _heard(*names: str, default: Any = 1) -> Callable[[Config], int]:
    """A dimension of the encoder of sound; 1 where there is none."""
    return lambda c: c.one(*audio(*names), default=default)


GEMMA4 = Encoder(
    hf_names=("Gemma4ForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        *map(heard, AUDIO_KEYS),
        projector("gemma4v", "vision"),
        eps(vision("layer_norm_eps")),
        heard(projector("gemma4a", "audio")),
        heard(Key("clip.audio.num_mel_bins", audio("input_feat_size"), default=128)),
        heard(eps(audio("layer_norm_eps"), part="audio")),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "head": width("head_dim"),
        "q": lambda c: c.one(*vision("num_attention_heads")) * c.one(*vision("head_dim")),
        "kv": lambda c: c.one(*vision("num_key_value_heads")) * c.one(*vision("head_dim")),
        "patch3": lambda c: 3 * c.one(*vision("patch_size")) ** 2,
        "two": lambda c: 2,
        "positions": width("position_embedding_size"),
        "a": _heard("hidden_size"),
        "2a": lambda c: 2 * _heard("hidden_size")(c),
        "4a": lambda c: 4 * _heard("hidden_size")(c),
        "a_head": lambda c: _heard("hidden_size")(c)
        // max(_heard("num_attention_heads")(c), 1),
        "a_out": _heard("output_proj_dims"),
        "kernel": _heard("conv_kernel_size"),
        "three": lambda c: 3,
        "conv0": _channels(0),
        "conv1": _channels(1),
        "conv_out": lambda c: _channels(0)(c) // 4 * _channels(1)(c),
    },
    layers={
        **KINDS,
        "standardizes": lambda c, bid: bool(c.get(*vision("standardize"), kind="BOOL",
                                                  default=False)),
    },
    maps=(
        Map(f"{T}.patch_embedder.input_proj.weight", ("v", "patch3"),
            channels_first("v.patch_embd.weight", "patch"), flat=True),
        Map(f"{T}.patch_embedder.position_embedding_table", ("two", "positions", "v"),
            whole("v.position_embd.weight")),
        vector(f"{L}.input_layernorm", f"{V}.ln1", "v", "vision"),
        vector(f"{L}.post_attention_layernorm", f"{V}.attn_post_norm", "v", "vision"),
        vector(f"{L}.pre_feedforward_layernorm", f"{V}.ln2", "v", "vision"),
        vector(f"{L}.post_feedforward_layernorm", f"{V}.ffn_post_norm", "v", "vision"),
        Map(f"{L}.layer_scalar", ("one",), whole(f"{V}.out_scale.weight"), "vision", True),
        *_see("self_attn.q_proj", ("q", "v"), "attn_q"),
        *_see("self_attn.k_proj", ("kv", "v"), "attn_k"),
        *_see("self_attn.v_proj", ("kv", "v"), "attn_v"),
        *_see("self_attn.o_proj", ("v", "q"), "attn_out"),
        vector(f"{L}.self_attn.q_norm", f"{V}.attn_q_norm", "head", "vision"),
        vector(f"{L}.self_attn.k_norm", f"{V}.attn_k_norm", "head", "vision"),
        *_see("mlp.gate_proj", ("ffn", "v"), "ffn_gate"),
        *_see("mlp.up_proj", ("ffn", "v"), "ffn_up"),
        *_see("mlp.down_proj", ("v", "ffn"), "ffn_down"),
        Map(f"{T}.std_bias", ("v",), whole("v.std_bias"), "standardizes"),
        Map(f"{T}.std_scale", ("v",), whole("v.std_scale"), "standardizes"),
        *_clipped("model.embed_vision.embedding_projection", ("text", "v"), "mm.input_projection",
                  ""),
        Map(f"{CONV}.layer0.conv.weight", ("conv0", "one", "three", "three"),
            whole("a.conv1d.0.weight"), "hears"),
        Map(f"{CONV}.layer1.conv.weight", ("conv1", "conv0", "three", "three"),
            whole("a.conv1d.1.weight"), "hears"),
        vector(f"{CONV}.layer0.norm", "a.conv1d.0.norm", "conv0", "hears"),
        vector(f"{CONV}.layer1.norm", "a.conv1d.1.norm", "conv1", "hears"),
        *lin(f"{CONV}.input_proj_linear", ("a", "conv_out"), "a.input_projection", "hears", False),
        *_hear("feed_forward1.ffw_layer_1", ("4a", "a"), "ffn_up"),
        *_hear("feed_forward1.ffw_layer_2", ("a", "4a"), "ffn_down"),
        _hear_norm("feed_forward1.pre_layer_norm", "ffn_norm"),
        _hear_norm("feed_forward1.post_layer_norm", "ffn_post_norm"),
        *_hear("feed_forward2.ffw_layer_1", ("4a", "a"), "ffn_up_1"),
        *_hear("feed_forward2.ffw_layer_2", ("a", "4a"), "ffn_down_1"),
        _hear_norm("feed_forward2.pre_layer_norm", "ffn_norm_1"),
        _hear_norm("feed_forward2.post_layer_norm", "ffn_post_norm_1"),
        _hear_norm("norm_pre_attn", "attn_pre_norm"),
        _hear_norm("norm_post_attn", "attn_post_norm"),
        _hear_norm("norm_out", "ln2"),
        *_hear("self_attn.q_proj", ("a", "a"), "attn_q"),
        *_hear("self_attn.k_proj", ("a", "a"), "attn_k"),
        *_hear("self_attn.v_proj", ("a", "a"), "attn_v"),
        *_hear("self_attn.post", ("a", "a"), "attn_out"),
        *lin(f"{HL}.self_attn.relative_k_proj", ("a", "a"), f"{A}.attn_k_rel", "audio", False),
        Map(f"{HL}.self_attn.per_dim_scale", ("a_head",), _softplus(f"{A}.per_dim_scale.weight"),
            "audio"),
        # the names of the two norms of the convolution are swapped in llama.cpp
        _hear_norm("lconv1d.pre_layer_norm", "conv_norm"),
        _hear_norm("lconv1d.conv_norm", "norm_conv"),
        *_hear("lconv1d.linear_start", ("2a", "a"), "conv_pw1"),
        *_hear("lconv1d.linear_end", ("a", "a"), "conv_pw2"),
        Map(f"{HL}.lconv1d.depthwise_conv1d.weight", ("a", "one", "kernel"),
            whole(f"{A}.conv_dw.weight", "a", "kernel"), "audio"),
        *lin(f"{H}.output_proj", ("a_out", "a"), "a.pre_encode.out", "hears"),
        *_clipped("model.embed_audio.embedding_projection", ("text", "a_out"),
                  "mm.a.input_projection", "hears"),
    ),
    renames=((r"\.linear\.", "."),),
    drops=(
        r"(?!(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder)\.).*",
    ),
    aliases={
        # the encoder takes images of any size: a number for llama.cpp's key
        "vision_config.image_size": lambda c: 224,
        "audio_config.intermediate_size": lambda c: (
            4 * n if (n := c.get(*audio("hidden_size"), default=None)) is not None else None
        ),
    },
    defaults={
        VISION: {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16,
            "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64, "patch_size": 16,
            "position_embedding_size": 10240,
        },
        AUDIO: {
            "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8,
            "conv_kernel_size": 5, "output_proj_dims": 1536,
        },
        "text_config": {"hidden_size": 2304},
    },
    forced=(
        (r"a\.conv1d\.\d\.weight|a\.input_projection\.weight|a\.blk\.\d+\.conv_dw\.weight", "F32"),
        (r"v\.position_embd\.weight", "F32"),
        *KERNELS,
    ),
)  # fmt: skip

EMBEDDING_GEMMA2 = replace(
    GEMMA4,
    hf_names=("EmbeddingGemma2Model",),
    defaults={**GEMMA4.defaults, "text_config": {"hidden_size": 512}},
)

E = "model.vision_embedder"


def _side(config: Config) -> int:
    """Pixels of a side of what becomes one token."""
    patch: int | None = config.get(*vision("model_patch_size"), default=None)
    if patch is not None:
        return patch
    return config.one(*vision("patch_size")) * config.one(*vision("pooling_kernel_size"))


def _colours_first(role: str) -> RowMap:
    """What weighs pixels that are kept pixel by pixel, colour by colour in each: in the order of
    all of a colour first. Weights count as rows of one."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n = dims["side2"]
        order = tuple(i * 3 + colour for colour in range(3) for i in range(n))
        return (piece(role, source, prod(source), order=order),)

    return pieces


def _axes_first(role: str) -> RowMap:
    """A table of places with a row for each axis in turn: as a table for each axis."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n, axes, width = source
        shape = (axes, n, width)
        return [piece(role, shape, n, axis * n, axis, step=axes) for axis in range(axes)]

    return pieces


def _nothing(config: Config) -> int:
    return 0


GEMMA4_UNIFIED = replace(
    GEMMA4,
    hf_names=("Gemma4UnifiedForConditionalGeneration",),
    keys=(
        *VISION_KEYS,
        *map(heard, AUDIO_KEYS),
        projector("gemma4uv", "vision"),
        eps(vision("layer_norm_eps")),
        heard(projector("gemma4ua", "audio")),
        heard(Key("clip.audio.num_mel_bins", audio("input_feat_size"), default=128)),
        heard(eps(audio("layer_norm_eps"), part="audio")),
    ),
    dims={
        **DIMS,
        "two": lambda c: 2,
        "side2": lambda c: _side(c) ** 2,
        "patch3": lambda c: 3 * _side(c) ** 2,
        "places": width("mm_posemb_size"),
        "a": _heard("audio_embed_dim"),
    },
    layers=KINDS,
    maps=(
        Map(f"{E}.patch_dense.weight", ("v", "patch3"), _colours_first("v.patch_embd.weight"),
            flat=True),
        Map(f"{E}.patch_dense.bias", ("v",), whole("v.patch_embd.bias")),
        Map(f"{E}.patch_ln1.weight", ("patch3",), _colours_first("v.patch_norm.1.weight")),
        Map(f"{E}.patch_ln1.bias", ("patch3",), _colours_first("v.patch_norm.1.bias")),
        *lin(f"{E}.patch_ln2", ("v",), "v.patch_norm.2", ""),
        *lin(f"{E}.pos_norm", ("v",), "v.patch_norm.3", ""),
        Map(f"{E}.pos_embedding", ("places", "two", "v"), _axes_first("v.position_embd.weight")),
        *_clipped("model.embed_vision.embedding_projection", ("text", "v"), "mm.input_projection",
                  ""),
        *_clipped("model.embed_audio.embedding_projection", ("text", "a"),
                  "mm.a.input_projection", "hears"),
    ),
    # there are no layers: numbers for llama.cpp's keys
    aliases={
        f"{VISION}.image_size": lambda c: 224,
        f"{VISION}.hidden_size": f"{VISION}.mm_embed_dim",
        f"{VISION}.intermediate_size": _nothing,
        f"{VISION}.num_layers": _nothing,
        f"{VISION}.num_attention_heads": _nothing,
        f"{AUDIO}.hidden_size": f"{AUDIO}.audio_embed_dim",
        f"{AUDIO}.intermediate_size": _nothing,
        f"{AUDIO}.num_layers": _nothing,
        f"{AUDIO}.num_attention_heads": _nothing,
    },
    defaults={
        VISION: {
            "patch_size": 16, "pooling_kernel_size": 3, "mm_embed_dim": 3840,
            "mm_posemb_size": 1120,
        },
        AUDIO: {"audio_embed_dim": 640},
        "text_config": {"hidden_size": 2304},
    },
)  # fmt: skip

FAMILY = (GEMMA3, GEMMA4, EMBEDDING_GEMMA2, GEMMA4_UNIFIED)
