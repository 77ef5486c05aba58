"""Granite Speech's encoder of sound, and Granite 4 Vision's of images, each with Q-Formers between
it and the text. llama.cpp: `conversion/granite.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantkit.architectures.granite import Projector, projectors
from quantkit.architectures.rules import Architecture, Config, Dim, Key, Map, parts, whole
from quantkit.encoders.common import (
    AUDIO,
    AUDIO_KEYS,
    DIMS,
    KERNELS,
    KINDS,
    TEXT_WIDTH,
    VISION,
    VISION_KEYS,
    A,
    audio,
    count,
    eps,
    flag,
    lin,
    positions,
    projector,
    told,
    vision,
)
from quantkit.encoders.conformer import folded, matrix
from quantkit.encoders.rules import Encoder
from quantkit.encoders.siglip import patches, tower
from quantkit.errors import ConfigError

E = "encoder"
L = f"{E}.layers.{{bid}}"
P = "projector"
Q = f"{P}.qformer.encoder.layer"
_PROJECTOR = "projector_config"


def _qformer(source: str, role: str, q: str, kv: str, ffn: str) -> tuple[Map, ...]:
    """One layer of a Q-Former: it attends to itself, then to what is seen or heard."""
    return (
        *(
            row
            for theirs, ours, wide in (
                ("attention", "self_attn", q), ("crossattention", "cross_attn", kv),
            )
            for row in (
                *lin(f"{source}.{theirs}.attention.query", (q, q), f"{role}.{ours}_q", ""),
                *lin(f"{source}.{theirs}.attention.key", (q, wide), f"{role}.{ours}_k", ""),
                *lin(f"{source}.{theirs}.attention.value", (q, wide), f"{role}.{ours}_v", ""),
                *lin(f"{source}.{theirs}.output.dense", (q, q), f"{role}.{ours}_out", ""),
                *lin(f"{source}.{theirs}.output.LayerNorm", (q,), f"{role}.{ours}_norm", ""),
            )
        ),
        *lin(f"{source}.intermediate_query.dense", (ffn, q), f"{role}.ffn_up", ""),
        *lin(f"{source}.output_query.dense", (q, ffn), f"{role}.ffn_down", ""),
        *lin(f"{source}.output_query.LayerNorm", (q,), f"{role}.ffn_norm", ""),
    )  # fmt: skip


def _hear(
    source: str, shape: tuple[str, ...], role: str, bias: bool | None = True
) -> tuple[Map, ...]:
    return lin(f"{L}.{source}", shape, f"{A}.{role}", "audio", bias)


def _own(name: str) -> Callable[[Config], int]:
    return lambda c: c.one(*audio(name))


def _width(config: Config) -> int:
    return config.one(*audio("hidden_dim"))


HEARING: dict[str, Dim] = {
    "one": lambda c: 1,
    "text": lambda c: c.one(*TEXT_WIDTH),
    "a": _width,
    "a_in": _own("input_dim"),
    "a_ffn": lambda c: _width(c) * c.one(*audio("feedforward_mult")),
    "inner": told(f"{E}.layers.0.attn.to_q.weight"),
    "2inner": told(f"{E}.layers.0.attn.to_kv.weight"),
    "places": told(f"{E}.layers.0.attn.rel_pos_emb.weight"),
    "head": told(f"{E}.layers.0.attn.rel_pos_emb.weight", 1),
    "deep": told(f"{E}.layers.0.conv.depth_conv.conv.weight"),
    "kernel": _own("conv_kernel_size"),
    "2deep": told(f"{E}.layers.0.conv.up_conv.weight"),
    "letters": told(f"{E}.out.weight"),
    "queries": told(f"{P}.query", 1),
    "q": told(f"{P}.query", 2),
    "heard": told(f"{Q}.0.crossattention.attention.key.weight", 1),
    "q_ffn": told(f"{Q}.0.intermediate_query.dense.weight"),
}

GRANITE_SPEECH = Encoder(
    hf_names=("GraniteSpeechForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *AUDIO_KEYS,
        projector("granite_speech"),
        Key("clip.audio.num_mel_bins", audio("input_dim")),
        Key("clip.audio.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32"),
        Key("clip.audio.chunk_size", audio("context_size")),
        Key("clip.audio.conv_kernel_size", audio("conv_kernel_size")),
        Key("clip.audio.max_pos_emb", audio("max_pos_emb")),
        Key("clip.audio.projector.window_size", "window_size"),
        Key("clip.audio.projector.downsample_rate", "downsample_rate"),
        Key("clip.audio.projector.head_count", f"{_PROJECTOR}.num_attention_heads", default=12),
    ),
    late_keys=(),
    expects=(),
    dims=HEARING,
    layers=KINDS,
    maps=(
        *lin(f"{E}.input_linear", ("a", "a_in"), "a.input_projection", ""),
        *_hear("ff1.pre_norm", ("a",), "ffn_norm"),
        *_hear("ff1.up_proj", ("a_ffn", "a"), "ffn_up"),
        *_hear("ff1.down_proj", ("a", "a_ffn"), "ffn_down"),
        *_hear("attn.pre_norm", ("a",), "ln1"),
        *_hear("attn.to_q", ("inner", "a"), "attn_q", False),
        Map(f"{L}.attn.to_kv.weight", ("2inner", "a"),
            parts((f"{A}.attn_k.weight", "inner"), (f"{A}.attn_v.weight", "inner")), "audio"),
        *_hear("attn.to_out", ("a", "inner"), "attn_out"),
        Map(f"{L}.attn.rel_pos_emb.weight", ("places", "head"), whole(f"{A}.attn_rel_pos_emb"),
            "audio"),
        *_hear("conv.norm", ("a",), "norm_conv"),
        *matrix(f"{L}.conv.up_conv", ("2deep", "a"), f"{A}.conv_pw1"),
        Map(f"{L}.conv.depth_conv.conv.weight", ("deep", "one", "kernel"),
            whole(f"{A}.conv_dw.weight", "deep", "kernel"), "audio"),
        *matrix(f"{L}.conv.down_conv", ("a", "deep"), f"{A}.conv_pw2"),
        *folded(f"{L}.conv.batch_norm", f"{A}.conv_norm", "deep"),
        *_hear("ff2.pre_norm", ("a",), "ffn_norm_1"),
        *_hear("ff2.up_proj", ("a_ffn", "a"), "ffn_up_1"),
        *_hear("ff2.down_proj", ("a", "a_ffn"), "ffn_down_1"),
        *_hear("post_norm", ("a",), "ln2"),
        *lin(f"{E}.out", ("letters", "a"), "a.enc_ctc_out", ""),
        *lin(f"{E}.out_mid", ("a", "letters"), "a.enc_ctc_out_mid", ""),
        Map(f"{P}.query", ("one", "queries", "q"), whole("a.proj_query")),
        *lin(f"{P}.qformer.layernorm", ("q",), "a.proj_norm", ""),
        *(row for at in (0, 1)
          for row in _qformer(f"{Q}.{at}", f"a.proj_blk.{at}", "q", "heard", "q_ffn")),
        *lin(f"{P}.linear", ("text", "q"), "a.proj_linear", ""),
    ),
    drops=(r".*(attention_dists|num_batches_tracked).*",),
    tables={AUDIO: "encoder_config"},
    aliases={
        f"{AUDIO}.hidden_size": _width,
        f"{AUDIO}.intermediate_size": lambda c: _width(c) * c.one(*audio("feedforward_mult")),
        f"{AUDIO}.num_attention_heads": f"{AUDIO}.num_heads",
    },
    defaults={
        AUDIO: {
            "input_dim": 160, "num_layers": 10, "hidden_dim": 1024, "feedforward_mult": 4,
            "num_heads": 8, "context_size": 200, "conv_kernel_size": 15, "max_pos_emb": 512,
        },
        "window_size": 15,
        "downsample_rate": 5,
        "text_config": {"hidden_size": 4096},
    },
    forced=((r"a\.blk\.\d+\.conv_(dw|pw1|pw2)\.weight", "F32"),),
)  # fmt: skip


def _concatenated(config: Config) -> list[int] | None:
    """The layers whose output goes to the projector beside the last's. Raises ConfigError."""
    layers: list[int] = config.get(*audio("cat_hidden_layers"), kind="INT32", default=None) or []
    seen = config.one(f"{_PROJECTOR}.encoder_hidden_size")
    if layers and seen != (wide := _width(config) * (len(layers) + 1)):
        raise ConfigError(
            f"{config.where}: 'encoder_hidden_size' of the projector is {seen}, and {len(layers)} "
            f"layers beside the last are {wide} wide"
        )
    return layers or None


GRANITE_SPEECH_PLUS = replace(
    GRANITE_SPEECH,
    hf_names=("GraniteSpeechPlusForConditionalGeneration",),
    keys=(*GRANITE_SPEECH.keys, Key("clip.audio.feature_layer", _concatenated, "INT32")),
)

T = "model.vision_tower.vision_model"


def _projectors(config: Config) -> list[Projector]:
    return projectors(config, count(config, VISION), config.one("text_config.num_hidden_layers"))


def _sides(config: Config) -> list[int]:
    """Queries and tokens of a window's side. Raises ConfigError."""
    rate: str = config.get("downsample_rate", kind="STRING")
    sides = rate.split("/")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise ConfigError(f"{config.where}: 'downsample_rate' is {rate!r}, not two numbers (4/8)")
    return [int(side) for side in sides]


def _pinpoints(config: Config) -> list[int] | None:
    """Sizes of images, the width first. Raises ConfigError."""
    found = config.find("image_grid_pinpoints") or []
    if not isinstance(found, list) or not all(isinstance(p, list) and len(p) == 2 for p in found):
        raise ConfigError(f"{config.where}: 'image_grid_pinpoints' is not a list of sizes")
    return [side for high, wide in found for side in (wide, high)] or None


def _blocks(config: Config) -> tuple[Map, ...]:
    """The Q-Formers' tensors."""
    rows: list[Map] = []
    for at, (_, _, kind, i) in enumerate(_projectors(config)):
        source, role = f"model.{kind}_projectors.{i}", f"v.proj_blk.{at}"
        rows += (
            Map(f"{source}.image_positions", ("one", "window", "v"), whole(f"{role}.img_pos")),
            Map(f"{source}.query", ("one", "queries", "v"), whole(f"{role}.query")),
            *lin(f"{source}.norm", ("v",), f"{role}.norm", ""),
            *lin(f"{source}.qformer.layernorm", ("v",), f"{role}.post_norm", ""),
            *lin(f"{source}.out_linear", ("text", "v"), f"{role}.linear", ""),
            *_qformer(f"{source}.qformer.encoder.layer.0", role, "v", "v", "q_ffn"),
        )
    return tuple(rows)


def _with_projectors(config: Config) -> Architecture:
    kinds = {f"{kind}_projectors.{i}" for _, _, kind, i in _projectors(config)}
    first = f"model.{min(kinds)}" if kinds else ""
    return replace(
        GRANITE4_VISION,
        maps=(*GRANITE4_VISION.maps, *_blocks(config)),
        dims={
            **GRANITE4_VISION.dims,
            "q_ffn": told(f"{first}.qformer.encoder.layer.0.intermediate_query.dense.weight"),
        },
        variant=lambda c: None,
    )


GRANITE4_VISION = Encoder(
    hf_names=("Granite4VisionForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("granite4_vision"),
        eps(vision("layer_norm_eps")),
        flag("clip.use_gelu"),
        Key("clip.vision.preproc_image_size", vision("image_size"), default=384),
        Key("clip.vision.projector.query_side", lambda c: _sides(c)[0]),
        Key("clip.vision.projector.window_side", lambda c: _sides(c)[1]),
        Key("clip.vision.feature_layer", lambda c: [p[0] for p in _projectors(c)], "INT32"),
        Key("clip.vision.projector.spatial_offsets",
            lambda c: [i if kind == "spatial" else -1 for _, _, kind, i in _projectors(c)],
            "INT32"),
        Key("clip.vision.image_grid_pinpoints", _pinpoints, "INT32"),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "positions": positions,
        "queries": lambda c: _sides(c)[0] ** 2,
        "window": lambda c: _sides(c)[1] ** 2,
    },
    layers=KINDS,
    maps=(
        *patches(T),
        *tower(T),
        Map("model.image_newline", ("text",), whole("v.image_newline")),
    ),
    drops=(r".*vision_model\.head.*", r"lm_head.*"),
    variant=_with_projectors,
    defaults={
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    forced=KERNELS,
)  # fmt: skip

FAMILY = (GRANITE_SPEECH, GRANITE_SPEECH_PLUS, GRANITE4_VISION)
