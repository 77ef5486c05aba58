"""Whisper's encoder of sound: in Voxtral, Qwen2-Audio, Ultravox, GLM-ASR, MERaLiON 2 and Audio
Flamingo 3. llama.cpp: `conversion/ultravox.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.rules import (
    Config,
    Dim,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    linear,
    piece,
    vector,
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
    told,
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


def _layer(
    source: str, shape: tuple[str, ...], role: str, bias: bool | None = True
) -> tuple[Map, ...]:
    return linear(f"{B}.{source}", shape, f"{A}.{role}", layers="audio", bias=bias)


WAVES = (
    Map(f"{T}.conv1.weight", ("a", "mel", "three"), whole("a.conv1d.1.weight")),
    Map(f"{T}.conv1.bias", ("a",), _standing("a.conv1d.1.bias")),
    Map(f"{T}.conv2.weight", ("a", "a", "three"), whole("a.conv1d.2.weight")),
    Map(f"{T}.conv2.bias", ("a",), _standing("a.conv1d.2.bias")),
)
MOMENTS = Map(f"{T}.embed_positions.weight", ("moments", "a"), whole("a.position_embd.weight"))
BLOCKS = (
    *_layer("self_attn_layer_norm", ("a",), "ln1"),
    *_layer("self_attn.q_proj", ("a", "a"), "attn_q"),
    *_layer("self_attn.k_proj", ("a", "a"), "attn_k", None),
    *_layer("self_attn.v_proj", ("a", "a"), "attn_v"),
    *_layer("self_attn.out_proj", ("a", "a"), "attn_out"),
    *_layer("final_layer_norm", ("a",), "ln2"),
    *_layer("fc1", ("a_ffn", "a"), "ffn_up"),
    *_layer("fc2", ("a", "a_ffn"), "ffn_down"),
)
WHISPER = (*WAVES, MOMENTS, *BLOCKS, *lin(f"{T}.layer_norm", ("a",), "a.post_ln", ""))
BINS = (
    Key("clip.audio.num_mel_bins", audio("num_mel_bins")),
    eps(audio("layer_norm_eps"), 1e-5, "audio"),
)


def _moments(config: Config) -> int:
    """Rows of the table of positions in time: what config.json says, or else the table itself."""
    found: int | None = config.get(*audio("max_source_positions"), default=None)
    if found is not None:
        return found
    shapes: dict[str, list[int]] = config.values["shapes"]
    return shapes.get(MOMENTS.source, [1])[0]


HEARING: dict[str, Dim] = {
    "text": lambda c: c.one(*TEXT_WIDTH),
    "a": lambda c: c.one(*audio("hidden_size")),
    "2a": lambda c: 2 * c.one(*audio("hidden_size")),
    "4a": lambda c: 4 * c.one(*audio("hidden_size")),
    "a_ffn": lambda c: c.one(*audio("intermediate_size")),
    "mel": lambda c: c.one(*audio("num_mel_bins")),
    "moments": _moments,
    "two": lambda c: 2,
    "three": lambda c: 3,
}
HALF = ((r"a\.conv1d\.\d\.weight", "F16"),)


def whispers(*more: tuple[str, str]) -> dict[str, str | Callable[[Config], Any]]:
    """Whisper's own names for the numbers of its encoder."""
    return {
        f"{AUDIO}.{ours}": f"{AUDIO}.{theirs}"
        for ours, theirs in (
            ("hidden_size", "d_model"),
            ("intermediate_size", "encoder_ffn_dim"),
            ("num_attention_heads", "encoder_attention_heads"),
            *more,
        )
    }


VOXTRAL = Encoder(
    hf_names=("VoxtralForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *AUDIO_KEYS,
        projector("voxtral"),
        *BINS,
        Key("clip.audio.projector.stack_factor", lambda c: 4),
    ),
    late_keys=(),
    expects=(),
    dims=HEARING,
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
    forced=HALF,
)  # fmt: skip

AUDIO_FLAMINGO3 = replace(
    VOXTRAL,
    hf_names=("AudioFlamingo3ForConditionalGeneration",),
    keys=(*AUDIO_KEYS, projector("musicflamingo"), *BINS),
    maps=(
        *WHISPER,
        *lin(f"{P}.linear_1", ("text", "a"), "mm.a.mlp.1", "", None),
        *lin(f"{P}.linear_2", ("text", "text"), "mm.a.mlp.2", "", None),
    ),
    defaults={**VOXTRAL.defaults, "text_config": {"hidden_size": 3584}},
    forced=((r"a\.conv1d\.\d\.weight", "F32"),),
)

QWEN2_AUDIO = replace(
    VOXTRAL,
    hf_names=("Qwen2AudioForConditionalGeneration",),
    keys=(*AUDIO_KEYS, projector("qwen2a"), *BINS),
    maps=(*WHISPER, *lin(f"{P}.linear", ("text", "a"), "mm.a.fc", "")),
    aliases=whispers(("num_hidden_layers", "encoder_layers")),
    defaults={
        AUDIO: {
            "d_model": 1280, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20,
            "encoder_layers": 32, "num_mel_bins": 128, "max_source_positions": 1500,
        },
        "text_config": {"hidden_size": 4096},
    },
)  # fmt: skip

# config.json of those below is read as it is: transformers has no defaults for it
ULTRAVOX = replace(
    QWEN2_AUDIO,
    hf_names=("UltravoxModel",),
    keys=(
        *AUDIO_KEYS,
        projector("ultravox"),
        *BINS,
        Key("clip.audio.projector.stack_factor", "stack_factor"),
    ),
    dims={
        **HEARING,
        "stacked": lambda c: c.one(*audio("hidden_size")) * c.one("stack_factor"),
        "gated": told(f"{P}.linear_1.weight"),
        "half": told(f"{P}.linear_2.weight", 1),
    },
    maps=(
        *WHISPER,
        vector(f"{P}.ln_pre", "mm.a.norm_pre", "stacked"),
        *lin(f"{P}.linear_1", ("gated", "stacked"), "mm.a.mlp.1", "", False),
        vector(f"{P}.ln_mid", "mm.a.norm_mid", "half"),
        *lin(f"{P}.linear_2", ("text", "half"), "mm.a.mlp.2", "", False),
    ),
    aliases=whispers(),
    defaults={},
)

MERALION2 = replace(
    ULTRAVOX,
    hf_names=("MERaLiON2ForConditionalGeneration",),
    tables={AUDIO: "speech_config"},
    keys=(
        *AUDIO_KEYS,
        projector("meralion"),
        *BINS,
        Key("clip.audio.projector.stack_factor", "speech_mlp_scale_factor", default=15),
    ),
    dims={
        **HEARING,
        "stacked": lambda c: (
            c.one(*audio("hidden_size")) * c.one("speech_mlp_scale_factor", default=15)
        ),
        "gated": told("speech_audio_adapter.gate_proj.weight"),
    },
    maps=(
        *WHISPER,
        *lin("ln_speech", ("a",), "mm.a.norm_pre", ""),
        *lin("speech_audio_adapter.mlp_adapter.0", ("a", "stacked"), "mm.a.mlp.0", ""),
        *lin("speech_audio_adapter.gate_proj", ("gated", "a"), "mm.a.mlp.1", ""),
        *lin("speech_audio_adapter.pool_proj", ("gated", "a"), "mm.a.mlp.2", ""),
        *lin("speech_audio_adapter.out_proj", ("text", "gated"), "mm.a.mlp.3", ""),
    ),
    renames=((r"^speech_encoder\.", f"{T}."),),
    drops=(r"(?!(speech_encoder|ln_speech|speech_audio_adapter)\.).*",),
)


def _boundaries(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """The embeddings of the two tokens between which sound stands."""
    return [piece(role, source[1:], 1, at=at) for at, role in enumerate(("v.boi", "v.eoi"))]


G = "audio_encoder"
GLM_ASR = replace(
    ULTRAVOX,
    hf_names=("GlmasrModel",),
    tables={AUDIO: "whisper_config"},
    keys=(
        *AUDIO_KEYS,
        projector("glma"),
        *BINS,
        Key("clip.audio.projector.stack_factor", "merge_factor"),
    ),
    dims={
        **HEARING,
        "stacked": lambda c: c.one(*audio("hidden_size")) * c.one("merge_factor"),
        "adapted": told(f"{G}.adapting.0.weight"),
    },
    maps=(
        *WAVES,
        replace(MOMENTS, optional=True),
        *BLOCKS,
        *lin(f"{G}.layer_norm", ("a",), "mm.a.norm_pre", ""),
        *lin(f"{G}.adapting.0", ("adapted", "stacked"), "mm.a.mlp.1", ""),
        *lin(f"{G}.adapting.2", ("text", "adapted"), "mm.a.mlp.2", ""),
        Map(f"{G}.audio_bos_eos_token.weight", ("two", "text"), _boundaries),
    ),
    renames=((rf"^{G}\.whisper\.", f"{T}."),),
    drops=(rf"(?!{G}\.).*", rf"{G}\.proj\..*"),
)

FAMILY = (VOXTRAL, AUDIO_FLAMINGO3, QWEN2_AUDIO, ULTRAVOX, MERALION2, GLM_ASR)
