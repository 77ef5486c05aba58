"""MiMo-V2.5's encoders of images and sound, of which the second has a folder of its own.

llama.cpp: `conversion/mimo.py` (MiMoV2VisionAudioModel).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from quantkit.architectures.rules import Config, Dims, Key, Map, Piece, Shape, piece, stack, whole
from quantkit.encoders.common import (
    AUDIO,
    AUDIO_KEYS,
    DIMS,
    KERNELS,
    KINDS,
    QWEN_KEYS,
    VISION,
    A,
    V,
    audio,
    count,
    eps,
    flag,
    frames,
    lin,
    pixel_count,
    projector,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError

B = "visual.blocks.{bid}"
L = "encoder.layers.{bid}"
T = "audio_encoder.input_local_transformer"
N = f"{T}.layers.{{bid}}"
_BOOK = re.compile(r"encoder\.quantizer\.vq\.layers\.\d+\._codebook\.embed")
_BOOKS = "encoder.quantizer.vq.codebooks"
_FOLDER = "audio_tokenizer"
_NAMES = {
    "hidden_size": "d_model", "intermediate_size": "encoder_ffn_dim",
    "num_attention_heads": "encoder_attention_heads",
}  # fmt: skip


def _audio(config: Config) -> dict[str, Any] | None:
    """The config of the encoder of sound, with what the model's own says of it in `local`."""
    table = config.find(_FOLDER)
    if not isinstance(table, dict):
        return None
    return {**table, "local": config.find(AUDIO)}


def _channels(config: Config) -> int:
    return config.one(*vision("qk_channels"), default=64)


def _heads(config: Config) -> int:
    return config.one(*vision("num_heads"))


def _kv_heads(config: Config) -> int:
    return config.one(*vision("num_key_value_heads"), default=8)


def _windows(config: Config) -> list[int]:
    """Of each layer that sees: along which axis it looks no further than a window, -1 for all.
    Raises ConfigError."""
    found, layers = config.find(f"{VISION}.vit_window_attn_types"), count(config, VISION)
    if (
        not isinstance(found, list)
        or len(found) != layers
        or not all(type(n) is int and -1 <= n <= 1 for n in found)
    ):
        raise ConfigError(
            f"{config.where}: 'vit_window_attn_types' is not a list of {layers} numbers, -1, 0 or "
            "1, one a layer"
        )
    return found


def _near(config: Config) -> list[int]:
    """Of each layer that hears: whether it hears all (-1) or a window (0). Raises ConfigError."""
    layers = config.one(*audio("encoder_layers"))
    every = config.one(*audio("swa_per_block"), default=1)
    mixed = config.get(*audio("hybrid_attention"), kind="BOOL", default=False) and every > 1
    return [0 if mixed and bid % every < every - 1 else -1 for bid in range(layers)]


def _window(config: Config) -> int:
    found = config.find(f"{AUDIO}.encoder_attn_window_size")
    if not isinstance(found, list) or not found or type(found[0]) is not int:
        raise ConfigError(
            f"{config.where}: 'encoder_attn_window_size' of {_FOLDER}/config.json is {found!r}, "
            "not a list of numbers"
        )
    return found[0]


def _codebooks(config: Config) -> list[int]:
    """The rows of each."""
    shapes = {n: shape for n, shape in config.values["shapes"].items() if _BOOK.fullmatch(n)}
    return [shapes[n][0] for n in sorted(shapes, key=lambda n: int(n.split(".")[4]))]


def _convolution(at: int, channels: str) -> tuple[Map, Map]:
    """One over time, and its bias as a column."""
    role = f"a.conv1d.{at}"

    def column(dims: Dims, source: Shape, xid: int) -> tuple[Piece, ...]:
        return (piece(f"{role}.bias", (*source, 1), source[0]),)

    return (
        Map(f"encoder.conv{at}.weight", ("a", channels, f"kernel{at}"), whole(f"{role}.weight"),
            early=True),
        Map(f"encoder.conv{at}.bias", ("a",), column, early=True),
    )  # fmt: skip


def _early(*maps: Map) -> tuple[Map, ...]:
    """Rows of the folder of its own, which llama.cpp's converter takes before all else."""
    return tuple(replace(m, early=True) for m in maps)


def _local(source: str, shape: tuple[str, ...], role: str, bias: bool | None) -> tuple[Map, ...]:
    return lin(f"{N}.{source}", shape, f"mm.a.local_blk.{{bid}}.{role}", "local", bias)


MIMO_V2 = Encoder(
    hf_names=("MiMoV2ForCausalLM",),
    gguf_arch="clip",
    keys=(
        *QWEN_KEYS,
        *AUDIO_KEYS,
        projector("mimovl", "vision"),
        flag("clip.use_silu"),
        Key("clip.vision.attention.head_count_kv", _kv_heads),
        Key("clip.vision.spatial_merge_size", vision("spatial_merge_size")),
        Key("clip.vision.window_size", vision("visual_token_window_size")),
        Key("clip.vision.wa_pattern_mode", _windows, "INT32"),
        eps(vision("rms_norm_eps")),
        pixel_count("min", cut=True),
        pixel_count("max", cut=True),
        projector("mimo_audio", "audio"),
        Key("clip.audio.num_mel_bins", audio("n_mels")),
        eps(audio("layer_norm_eps"), 1e-5, "audio"),
        Key("clip.audio.rvq.num_quantizers", lambda c: len(_codebooks(c))),
        Key("clip.audio.rvq.codebook_size", _codebooks, "INT32"),
        Key("clip.audio.wa_pattern_mode", _near, "INT32"),
        Key("clip.audio.window_size", _window),
        Key("clip.audio.local_block_count", audio("local.input_local_layers")),
        Key("clip.audio.local_group_size", audio("local.group_size")),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "patch2": lambda c: c.one(*vision("patch_size")) ** 2,
        "joined": lambda c: (_heads(c) + 2 * _kv_heads(c)) * _channels(c),
        "attended": lambda c: _heads(c) * _channels(c),
        "v_heads": _heads,
        "merged": lambda c: c.one(*vision("hidden_size"))
        * c.one(*vision("spatial_merge_size")) ** 2,
        "projected": told("visual.merger.mlp.0.weight"),
        "a": lambda c: c.one(*audio("hidden_size")),
        "a_ffn": lambda c: c.one(*audio("intermediate_size")),
        "bins": lambda c: c.one(*audio("n_mels")),
        "kernel1": told("encoder.conv1.weight", 2),
        "kernel2": told("encoder.conv2.weight", 2),
        "stride": told("encoder.down_sample_layer.0.weight", 2),
        "books": lambda c: len(_codebooks(c)),
        "codes": lambda c: max(_codebooks(c), default=0),
        "experts": lambda c: c.one(*audio("local.audio_channels")),
        "spoken": told("speech_embeddings.0.weight"),
        "local": told("speech_embeddings.0.weight", 1),
        "local_ffn": told(f"{T}.layers.0.mlp.up_proj.weight"),
        "local_attended": told(f"{T}.layers.0.self_attn.q_proj.weight"),
        "grouped": told("audio_encoder.projection.mlp.0.weight", 1),
        "a_projected": told("audio_encoder.projection.mlp.0.weight"),
    },
    layers={**KINDS, "local": lambda c, bid: bid < c.one(*audio("local.input_local_layers"))},
    maps=(
        frames(),
        *lin(f"{B}.norm1", ("v",), f"{V}.ln1", bias=False),
        *lin(f"{B}.attn.qkv", ("joined", "v"), f"{V}.attn_qkv", bias=None),
        *lin(f"{B}.attn.proj", ("v", "attended"), f"{V}.attn_out", bias=None),
        Map(f"{B}.attn.sinks", ("v_heads",), whole(f"{V}.attn_sinks"), "vision", optional=True),
        *lin(f"{B}.norm2", ("v",), f"{V}.ln2", bias=False),
        *lin(f"{B}.mlp.gate_proj", ("ffn", "v"), f"{V}.ffn_gate", bias=None),
        *lin(f"{B}.mlp.up_proj", ("ffn", "v"), f"{V}.ffn_up", bias=None),
        *lin(f"{B}.mlp.down_proj", ("v", "ffn"), f"{V}.ffn_down", bias=None),
        *lin("visual.merger.ln_q", ("v",), "v.post_ln", "", None),
        *lin("visual.merger.mlp.0", ("projected", "merged"), "mm.0", "", None),
        *lin("visual.merger.mlp.2", ("text", "projected"), "mm.2", "", None),
        *_convolution(1, "bins"),
        *_convolution(2, "a"),
        *_early(
            *lin(f"{L}.self_attn_layer_norm", ("a",), f"{A}.ln1", "audio"),
            *(row for part in "qkv"
              for row in lin(f"{L}.self_attn.{part}_proj", ("a", "a"), f"{A}.attn_{part}", "audio",
                             None)),
            *lin(f"{L}.self_attn.out_proj", ("a", "a"), f"{A}.attn_out", "audio", None),
            *lin(f"{L}.final_layer_norm", ("a",), f"{A}.ln2", "audio"),
            *lin(f"{L}.fc1", ("a_ffn", "a"), f"{A}.ffn_up", "audio", None),
            *lin(f"{L}.fc2", ("a", "a_ffn"), f"{A}.ffn_down", "audio", None),
            *lin("encoder.layer_norm", ("a",), "a.post_ln", ""),
            Map("encoder.down_sample_layer.0.weight", ("a", "a", "stride"),
                whole("a.downsample.conv.weight")),
            *lin("encoder.down_sample_norm", ("a",), "a.downsample.norm", ""),
            Map(_BOOKS, ("books", "codes", "a"), whole("a.rvq.codebook.weight")),
        ),
        *_local("self_attn.q_proj", ("local_attended", "local"), "attn_q", None),
        *_local("self_attn.k_proj", ("local_attended", "local"), "attn_k", None),
        *_local("self_attn.v_proj", ("local_attended", "local"), "attn_v", None),
        *_local("self_attn.o_proj", ("local", "local_attended"), "attn_out", None),
        *_local("mlp.gate_proj", ("local_ffn", "local"), "ffn_gate", None),
        *_local("mlp.up_proj", ("local_ffn", "local"), "ffn_up", None),
        *_local("mlp.down_proj", ("local", "local_ffn"), "ffn_down", None),
        *_local("input_layernorm", ("local",), "ln1", False),
        *_local("post_attention_layernorm", ("local",), "ln2", False),
        *lin(f"{T}.norm", ("local",), "mm.a.local_norm", "", False),
        Map("audio_encoder.projection.mlp.0.weight", ("a_projected", "grouped"),
            whole("mm.a.mlp.1.weight")),
        Map("audio_encoder.projection.mlp.2.weight", ("text", "a_projected"),
            whole("mm.a.mlp.2.weight")),
        Map("speech_embeddings.{xid}.weight", ("spoken", "local"), stack("mm.a.code_embd.weight")),
    ),
    drops=(
        r"(?!(visual|speech_embeddings|audio_encoder|encoder)\.).*",
        r"encoder\..*_codebook\.(cluster_size|embed_avg|inited)",
    ),
    tables={AUDIO: _audio},
    aliases={
        f"{VISION}.image_size": lambda c: c.one(*vision("image_size"), default=560),
        f"{VISION}.num_hidden_layers": lambda c: c.one(*vision("depth"), default=28),
        **{f"{AUDIO}.{ours}": f"{AUDIO}.{theirs}" for ours, theirs in _NAMES.items()},
    },
    files={_FOLDER: f"{_FOLDER}/config.json"},
    weights=(f"{_FOLDER}/model.safetensors",),
    codebooks=(_BOOK.pattern, _BOOKS),
    forced=(
        (r"a\.rvq\.codebook\.weight|mm\.a\.code_embd\.weight", "F32"),
        (r"a\.conv1d\.\d\.weight|a\.downsample\.conv\.weight", "F32"),
        *KERNELS,
    ),
)  # fmt: skip

FAMILY = (MIMO_V2,)
