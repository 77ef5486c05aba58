"""Gemma 3n's encoders: MobileNet v5, which sees, and a conformer, which hears.

llama.cpp: `conversion/gemma.py`, Gemma3nVisionAudioModel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from quantkit.architectures.rules import Architecture, Config, Dim, Key, Map, Shape, whole
from quantkit.encoders.common import (
    AUDIO,
    AUDIO_KEYS,
    KERNELS,
    KINDS,
    TEXT_WIDTH,
    VISION,
    A,
    always,
    audio,
    coloured,
    eps,
    lin,
    projector,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError, TensorMissing

W = "model.vision_tower.timm_model"
H = "model.audio_tower"
L = f"{H}.conformer.{{bid}}"
S = f"{H}.subsample_conv_projection"
_STAGES = 4
# what a block of MobileNet is made of: each begins with what only its kind has
_EDGE = ("conv_exp.weight", "bn1.weight", "conv_pwl.weight", "bn2.weight")
_INVERTED = ("pw_exp.conv.weight", "pw_exp.bn.weight", "pw_proj.conv.weight", "pw_proj.bn.weight")
_ATTENTION = ("attn.query.proj.weight", "attn.key.proj.weight", "attn.value.proj.weight",
              "attn.output.proj.weight", "norm.weight")  # fmt: skip
# what some have, the whole of a line or nothing of it
_EXTRAS = (
    ("dw_start.conv.weight", "dw_start.bn.weight"),
    ("dw_mid.conv.weight", "dw_mid.bn.weight"),
    ("attn.key.down_conv.weight", "attn.key.norm.weight"),
    ("attn.value.down_conv.weight", "attn.value.norm.weight"),
    ("layer_scale.gamma",),
)
_BLOCK = re.compile(rf"{re.escape(W)}\.blocks\.(\d+)\.(\d+)\.(.+)")


def _blocks(config: Config, shapes: Mapping[str, Shape]) -> dict[tuple[int, int], set[str]]:
    """The tensors of each block by stage and number. Raises TensorMissing."""
    found: dict[tuple[int, int], set[str]] = {}
    known = {*_EDGE, *_INVERTED, *_ATTENTION, *(name for names in _EXTRAS for name in names)}
    for name in shapes:
        if (m := _BLOCK.fullmatch(name)) and m[3] in known:
            found.setdefault((int(m[1]), int(m[2])), set()).add(m[3])
    for stage in range(_STAGES):
        numbers = sorted(at for of, at in found if of == stage)
        if numbers != [*range(len(numbers))] or not numbers:
            raise TensorMissing(
                f"{config.where}: the checkpoint has blocks {numbers} of stage {stage} of "
                "MobileNet, not all from 0 on"
            )
    for (stage, at), names in found.items():
        kind = next((k for k in (_EDGE, _INVERTED, _ATTENTION) if k[0] in names), _INVERTED)
        wanted = {*kind, *(name for extra in _EXTRAS if names & {*extra} for name in extra)}
        if lacking := sorted(wanted - names):
            raise TensorMissing(
                f"tensor {W}.blocks.{stage}.{at}.{lacking[0]} is not in the checkpoint"
            )
    return found


def _seen(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """The rows of MobileNet's blocks, which the checkpoint tells. Raises TensorMissing."""
    rows: list[Map] = []
    dims: dict[str, Dim] = {}
    for (stage, at), names in _blocks(config, shapes).items():
        for name in sorted(names):
            source = f"{W}.blocks.{stage}.{at}.{name}"
            axes = tuple(f"{source}.{axis}" for axis in range(len(shapes[source])))
            dims |= {axis: told(source, i) for i, axis in enumerate(axes)}
            rows.append(Map(source, axes, whole(f"v.blk.{stage}.{at}.{name}")))
    return replace(GEMMA3N, maps=(*GEMMA3N.maps, *rows), dims={**GEMMA3N.dims, **dims})


def _convolution(source: str, role: str, *axes: str) -> Map:
    return Map(f"{source}.weight", axes, whole(f"{role}.weight"))


def _hear(source: str, shape: tuple[str, ...], role: str) -> tuple[Map, ...]:
    return lin(f"{L}.{source}", shape, f"{A}.{role}", "audio", False)


def _side(config: Config) -> int:
    """Pixels of a side of an image. Raises ConfigError."""
    size = config.find("preprocessor.size")
    if size is None:
        return 768
    if not isinstance(size, dict) or type(size.get("height")) is not int:
        raise ConfigError(f"{config.where}: 'size' of preprocessor_config.json has no height")
    height: int = size["height"]
    return height


def _patch(config: Config) -> int:
    return _side(config) // max(config.one("preprocessor.image_seq_length", default=256), 1)


def _embedder(source: str, role: str, wide: str, vocab: str) -> tuple[Map, ...]:
    """From an encoder's output, or from tokens of its own, to the text."""
    return (
        *lin(f"{source}.embedding", (vocab, wide), f"{role}.embedding", "", False),
        *lin(f"{source}.hard_embedding_norm", (wide,), f"{role}.hard_emb_norm", "", False),
        *lin(f"{source}.soft_embedding_norm", (wide,), f"{role}.soft_emb_norm", "", False),
        *lin(f"{source}.embedding_projection", ("text", wide), f"{role}.input_projection", "",
             False),
    )  # fmt: skip


def _of(name: str, axis: int = 0) -> Dim:
    return told(f"{name}.weight", axis)


GEMMA3N = Encoder(
    hf_names=("Gemma3nForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *coloured(always([0.0] * 3), always([1.0] * 3)),
        *AUDIO_KEYS,
        projector("gemma3nv", "vision"),
        eps(vision("layer_norm_eps")),
        projector("gemma3na", "audio"),
        Key("clip.audio.num_mel_bins", audio("input_feat_size")),
        Key("clip.audio.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32"),
    ),
    late_keys=(),
    expects=(),
    dims={
        "one": lambda c: 1,
        "text": lambda c: c.one(*TEXT_WIDTH),
        "three": lambda c: 3,
        "v": lambda c: c.one(*vision("hidden_size")),
        "v_vocab": _of("model.embed_vision.embedding"),
        "stem": _of(f"{W}.conv_stem.conv"),
        "joined": _of(f"{W}.msfa.ffn.pw_exp.conv", 1),
        "spread": _of(f"{W}.msfa.ffn.pw_exp.conv"),
        "a": lambda c: c.one(*audio("hidden_size")),
        "2a": lambda c: 2 * c.one(*audio("hidden_size")),
        "a_ffn": _of(f"{H}.conformer.0.ffw_layer_start.ffw_layer_1"),
        "a_head": lambda c: c.one(*audio("hidden_size"))
        // max(c.one(*audio("conf_num_attention_heads")), 1),
        "a_vocab": _of("model.embed_audio.embedding"),
        "kernel": lambda c: c.one(*audio("conf_conv_kernel_size")),
        "conv0": _of(f"{S}.conv_0.conv"),
        "conv1": _of(f"{S}.conv_1.conv"),
        "spectrum": _of(f"{S}.input_proj_linear", 1),
    },
    layers=KINDS,
    maps=(
        _convolution(f"{W}.conv_stem.conv", "v.conv_stem.conv", "stem", "three", "three", "three"),
        Map(f"{W}.conv_stem.conv.bias", ("stem",),
            whole("v.conv_stem.conv.bias", "one", "stem", "one", "one"), optional=True),
        _convolution(f"{W}.conv_stem.bn", "v.conv_stem.bn", "stem"),
        _convolution(f"{W}.msfa.ffn.pw_exp.conv", "v.msfa.ffn.pw_exp.conv", "spread", "joined",
                     "one", "one"),
        _convolution(f"{W}.msfa.ffn.pw_exp.bn", "v.msfa.ffn.pw_exp.bn", "spread"),
        _convolution(f"{W}.msfa.ffn.pw_proj.conv", "v.msfa.ffn.pw_proj.conv", "v", "spread",
                     "one", "one"),
        _convolution(f"{W}.msfa.ffn.pw_proj.bn", "v.msfa.ffn.pw_proj.bn", "v"),
        _convolution(f"{W}.msfa.norm", "v.msfa.norm", "v"),
        *_embedder("model.embed_vision", "mm", "v", "v_vocab"),
        *_embedder("model.embed_audio", "mm.a", "a", "a_vocab"),
        _convolution(f"{S}.conv_0.conv", "a.conv1d.0", "conv0", "one", "three", "three"),
        _convolution(f"{S}.conv_1.conv", "a.conv1d.1", "conv1", "conv0", "three", "three"),
        # every release has these, and llama.cpp's converter has lost their place
        *(
            Map(f"{S}.conv_{at}.norm.weight", (f"conv{at}",),
                whole(f"a.conv1d.{at}.norm.weight"), optional=True)
            for at in (0, 1)
        ),
        *lin(f"{S}.input_proj_linear", ("a", "spectrum"), "a.pre_encode.out", "", False),
        *_hear("ffw_layer_start.pre_layer_norm", ("a",), "ffn_norm"),
        *_hear("ffw_layer_start.ffw_layer_1", ("a_ffn", "a"), "ffn_up"),
        *_hear("ffw_layer_start.ffw_layer_2", ("a", "a_ffn"), "ffn_down"),
        *_hear("ffw_layer_start.post_layer_norm", ("a",), "ffn_post_norm"),
        *_hear("ffw_layer_end.pre_layer_norm", ("a",), "ffn_norm_1"),
        *_hear("ffw_layer_end.ffw_layer_1", ("a_ffn", "a"), "ffn_up_1"),
        *_hear("ffw_layer_end.ffw_layer_2", ("a", "a_ffn"), "ffn_down_1"),
        *_hear("ffw_layer_end.post_layer_norm", ("a",), "ffn_post_norm_1"),
        *_hear("attention.pre_attn_norm", ("a",), "ln1"),
        *_hear("attention.attn.q_proj", ("a", "a"), "attn_q"),
        *_hear("attention.attn.k_proj", ("a", "a"), "attn_k"),
        *_hear("attention.attn.v_proj", ("a", "a"), "attn_v"),
        *_hear("attention.attn.relative_position_embedding.pos_proj", ("a", "a"), "linear_pos"),
        Map(f"{L}.attention.attn.per_dim_scale", ("a_head",), whole(f"{A}.per_dim_scale"),
            "audio"),
        *_hear("attention.post", ("a", "a"), "attn_out"),
        *_hear("attention.post_norm", ("a",), "ln2"),
        *_hear("lconv1d.pre_layer_norm", ("a",), "conv_norm"),
        *_hear("lconv1d.linear_start", ("2a", "a"), "conv_pw1"),
        Map(f"{L}.lconv1d.depthwise_conv1d.weight", ("a", "one", "kernel"),
            whole(f"{A}.conv_dw.weight"), "audio"),
        *_hear("lconv1d.conv_norm", ("a",), "norm_conv"),
        *_hear("lconv1d.linear_end", ("a", "a"), "conv_pw2"),
        *_hear("norm", ("a",), "layer_pre_norm"),
    ),
    drops=(r"(?!(model\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\.).*",),
    respelled=_seen,
    # MobileNet has no layers as others have them: numbers for llama.cpp's keys
    aliases={
        f"{VISION}.image_size": _side,
        f"{VISION}.patch_size": _patch,
        f"{VISION}.n_layers": lambda c: 128,
        f"{VISION}.intermediate_size": lambda c: (
            4 * c.one(*vision("intermediate_size"), default=2048)
        ),
        f"{VISION}.num_attention_heads": lambda c: c.one(
            *vision("num_attention_heads"), default=8
        ),
        f"{AUDIO}.n_layers": f"{AUDIO}.conf_num_hidden_layers",
        f"{AUDIO}.num_attention_heads": f"{AUDIO}.conf_num_attention_heads",
        f"{AUDIO}.intermediate_size": lambda c: c.one(*audio("intermediate_size"), default=6144),
    },
    defaults={
        VISION: {"hidden_size": 2048},
        AUDIO: {
            "input_feat_size": 128, "hidden_size": 1536, "conf_num_attention_heads": 8,
            "conf_num_hidden_layers": 12, "conf_conv_kernel_size": 5,
        },
        "text_config": {"hidden_size": 2048},
    },
    forced=(
        (r"a\.pre_encode\.out\.weight", "F16"),
        (r"a\.conv1d\.\d\.weight|a\.blk\.\d+\.conv_dw\.weight|v\.conv_stem\.conv\.weight", "F32"),
        *KERNELS,
    ),
)  # fmt: skip

FAMILY = (GEMMA3N,)
