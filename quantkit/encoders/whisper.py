"""Whisper's encoder of sound: in Voxtral and Qwen2-Audio. llama.cpp:
`conversion/ultravox.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.rules import (
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    linear,
    piece,
    whole,
)
from quantkit.encoders.common import (
    AUDIO,
    AUDIO_KEYS,
    KINDS,
    TEXT_WIDTH,
    A,
    audio,
    eps,
    lin,
    projector,
)
from quantkit.encoders.rules import Encoder

T = "audio_tower"
B = f"{T}.layers.{{bid}}"
P = "multi_modal_projector"


def _standing(role: str) -> RowMap:
    """A bias as a column, which is added to every moment."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(role, (source[0], 1), source[0]),)

    return pieces


def _layer(source: str, shape: tuple[str, ...], role: str, bias: bool = True) -> tuple[Map, ...]:
    return linear(f"{B}.{source}", shape, f"{A}.{role}", layers="audio", bias=bias)


WHISPER = (
    Map(f"{T}.conv1.weight", ("a", "mel", "three"), whole("a.conv1d.1.weight")),
    Map(f"{T}.conv1.bias", ("a",), _standing("a.conv1d.1.bias")),
    Map(f"{T}.conv2.weight", ("a", "a", "three"), whole("a.conv1d.2.weight")),
    Map(f"{T}.conv2.bias", ("a",), _standing("a.conv1d.2.bias")),
    Map(f"{T}.embed_positions.weight", ("moments", "a"), whole("a.position_embd.weight")),
    *_layer("self_attn_layer_norm", ("a",), "ln1"),
    *_layer("self_attn.q_proj", ("a", "a"), "attn_q"),
    *_layer("self_attn.k_proj", ("a", "a"), "attn_k", False),
    *_layer("self_attn.v_proj", ("a", "a"), "attn_v"),
    *_layer("self_attn.out_proj", ("a", "a"), "attn_out"),
    *_layer("final_layer_norm", ("a",), "ln2"),
    *_layer("fc1", ("ffn", "a"), "ffn_up"),
    *_layer("fc2", ("a", "ffn"), "ffn_down"),
    *lin(f"{T}.layer_norm", ("a",), "a.post_ln", ""),
)

VOXTRAL = Encoder(
    hf_names=("VoxtralForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *AUDIO_KEYS,
        projector("voxtral"),
        Key("clip.audio.num_mel_bins", audio("num_mel_bins")),
        eps(audio("layer_norm_eps"), 1e-5, "audio"),
        Key("clip.audio.projector.stack_factor", lambda c: 4),
    ),
    late_keys=(),
    expects=(),
    dims={
        "text": lambda c: c.one(*TEXT_WIDTH),
        "a": lambda c: c.one(*audio("hidden_size")),
        "4a": lambda c: 4 * c.one(*audio("hidden_size")),
        "ffn": lambda c: c.one(*audio("intermediate_size")),
        "mel": lambda c: c.one(*audio("num_mel_bins")),
        "moments": lambda c: c.one(*audio("max_source_positions")),
        "three": lambda c: 3,
    },
    layers=KINDS,
    maps=(
        *WHISPER,
        *lin(f"{P}.linear_1", ("text", "4a"), "mm.a.mlp.1", "", False),
        *lin(f"{P}.linear_2", ("text", "text"), "mm.a.mlp.2", "", False),
    ),
    drops=(rf"(?!({T}|{P})\.).*",),
    defaults={
        AUDIO: {
            "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
            "num_hidden_layers": 32, "num_mel_bins": 128, "max_source_positions": 1500,
        },
        "text_config": {"hidden_size": 3072},
    },
    forced=((r"a\.conv1d\.\d\.weight", "F16"),),
)  # fmt: skip

QWEN2_AUDIO = replace(
    VOXTRAL,
    hf_names=("Qwen2AudioForConditionalGeneration",),
    keys=(
        *AUDIO_KEYS,
        projector("qwen2a"),
        Key("clip.audio.num_mel_bins", audio("num_mel_bins")),
        eps(audio("layer_norm_eps"), 1e-5, "audio"),
    ),
    maps=(*WHISPER, *lin(f"{P}.linear", ("text", "a"), "mm.a.fc", "")),
    aliases={
        f"{AUDIO}.{ours}": f"{AUDIO}.{theirs}"
        for ours, theirs in (
            ("hidden_size", "d_model"),
            ("intermediate_size", "encoder_ffn_dim"),
            ("num_attention_heads", "encoder_attention_heads"),
            ("num_hidden_layers", "encoder_layers"),
        )
    },
    defaults={
        AUDIO: {
            "d_model": 1280, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20,
            "encoder_layers": 32, "num_mel_bins": 128, "max_source_positions": 1500,
        },
        "text_config": {"hidden_size": 4096},
    },
)  # fmt: skip

FAMILY = (VOXTRAL, QWEN2_AUDIO)
