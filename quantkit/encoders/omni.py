"""Qwen2.5-Omni and Qwen3-Omni, which see and hear, and Qwen3-ASR, which hears.

llama.cpp: `conversion/qwenvl.py`, `conversion/qwen3vl.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.rules import Config, Dims, Map, Piece, RowMap, Shape, piece, whole
from quantkit.encoders.common import (
    AUDIO,
    AUDIO_KEYS,
    VISION,
    V,
    audio,
    lin,
    projector,
)
from quantkit.encoders.qwen2_vl import QWEN2_5_VL
from quantkit.encoders.qwen_vl import QWEN3_VL, B
from quantkit.encoders.whisper import BINS, BLOCKS, HALF, HEARING, MOMENTS, WAVES, T, whispers
from quantkit.source.torch_functions import sinusoids

_MOMENTS = 1500  # of half a minute


def _places(config: Config) -> Mapping[str, Any]:
    """The table of positions in time, which no checkpoint has."""
    return {MOMENTS.source: sinusoids(_MOMENTS, config.one(*audio("hidden_size")))}


_TABLES = {part: f"thinker_config.{part}" for part in (VISION, AUDIO)}
_HEARING = {**HEARING, "moments": lambda c: _MOMENTS, "out": lambda c: c.one(*audio("output_dim"))}
_DROPS = (r"(?!(thinker\.)?(model\.)?(visual|audio_tower)\.).*", r".*audio_bos_eos_token.*")
_RENAMES = ((r"^thinker\.", ""),)
_AUDIO_DEFAULTS = {
    "d_model": 1280, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20, "encoder_layers": 32,
    "num_mel_bins": 128, "output_dim": 3584,
}  # fmt: skip

QWEN2_5_OMNI = replace(
    QWEN2_5_VL,
    hf_names=("Qwen2_5OmniModel",),
    tables=_TABLES,
    # both encoders, then sound, then images
    keys=(
        *QWEN2_5_VL.keys[:10],
        *AUDIO_KEYS,
        *BINS,
        projector("qwen2.5o"),
        *QWEN2_5_VL.keys[11:],
    ),
    dims={
        **_HEARING,
        **QWEN2_5_VL.dims,
        "a_out": _HEARING["out"],
    },
    maps=(
        *(m for m in QWEN2_5_VL.maps if ".qkv." not in m.source),
        *(row for part in "qkv" for row in lin(f"{B}.attn.{part}", ("v", "v"), f"{V}.attn_{part}")),
        *QWEN2_5_VL.maps[1:3],
        *WAVES,
        MOMENTS,
        *BLOCKS,
        *lin(f"{T}.ln_post", ("a",), "a.post_ln", ""),
        *lin(f"{T}.proj", ("a_out", "a"), "mm.a.fc", ""),
    ),
    renames=_RENAMES,
    drops=_DROPS,
    aliases=whispers(("num_hidden_layers", "encoder_layers")),
    added=_places,
    defaults={
        **QWEN2_5_VL.defaults, "text_config": {"hidden_size": 3584}, AUDIO: _AUDIO_DEFAULTS,
    },
    forced=(*HALF, *QWEN2_5_VL.forced),
)  # fmt: skip


def _plane(role: str) -> RowMap:
    """A bias as one value a channel of an image."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(role, (source[0], 1, 1), source[0]),)

    return pieces


def _halved_thrice(config: Config) -> int:
    """Bands of a spectrum after three convolutions of stride two, times channels."""
    bands = config.one(*audio("num_mel_bins"))
    for _ in range(3):
        bands = (bands + 1) // 2
    return bands * config.one(*audio("downsample_hidden_size"))


_SPECTRUM = (
    Map(f"{T}.conv2d1.weight", ("down", "one", "three", "three"), whole("a.conv2d.1.weight")),
    *(
        Map(f"{T}.conv2d{i}.weight", ("down", "down", "three", "three"),
            whole(f"a.conv2d.{i}.weight"))
        for i in (2, 3)
    ),
    *(Map(f"{T}.conv2d{i}.bias", ("down",), _plane(f"a.conv2d.{i}.bias")) for i in (1, 2, 3)),
    *lin(f"{T}.conv_out", ("a", "spectrum"), "a.conv_out", "", None),
    MOMENTS,
    *BLOCKS,
    *lin(f"{T}.ln_post", ("a",), "a.post_ln", ""),
    *lin(f"{T}.proj1", ("a", "a"), "mm.a.mlp.1", ""),
    *lin(f"{T}.proj2", ("a_out", "a"), "mm.a.mlp.2", ""),
)  # fmt: skip
_SPECTRUM_DIMS = {
    **_HEARING,
    "one": lambda c: 1,
    "down": lambda c: c.one(*audio("downsample_hidden_size")),
    "spectrum": _halved_thrice,
    "a_out": _HEARING["out"],
}
_SPECTRUM_HALF = ((r"a\.conv2d\.\d\.weight|a\.conv_out\.weight", "F16"),)
_SEEN = {"norm": "ln_q", "linear_fc1": "mlp.0", "linear_fc2": "mlp.2"}

QWEN3_OMNI = replace(
    QWEN3_VL,
    hf_names=("Qwen3OmniMoeForConditionalGeneration",),
    note=(
        "llama.cpp b11549 loads no mmproj of Qwen3-Omni whose pictures are of several layers "
        "(deepstack_visual_indexes): what is seen is wider than what is heard"
    ),
    tables=_TABLES,
    keys=(
        *QWEN3_VL.keys[:10],
        *AUDIO_KEYS,
        *BINS,
        *QWEN3_VL.keys[11:],
        projector("qwen3vl_merger", "vision"),
        projector("qwen3a", "audio"),
    ),
    dims={**_SPECTRUM_DIMS, **QWEN3_VL.dims, "a_out": _HEARING["out"]},
    maps=(*QWEN3_VL.maps, *_SPECTRUM),
    renames=(
        *_RENAMES,
        (r"\.merger_list\.", ".deepstack_merger_list."),
        *(
            (rf"(visual\.(deepstack_merger_list\.\d+|merger))\.{theirs}\.", rf"\1.{ours}.")
            for ours, theirs in _SEEN.items()
        ),
    ),
    drops=_DROPS,
    aliases=whispers(("num_hidden_layers", "encoder_layers")),
    added=_places,
    defaults={
        **QWEN3_VL.defaults,
        "text_config": {"hidden_size": 2048, "rms_norm_eps": 1e-6},
        AUDIO: {**_AUDIO_DEFAULTS, "downsample_hidden_size": 480},
    },
    forced=(*_SPECTRUM_HALF, *QWEN3_VL.forced),
)

QWEN3_ASR = replace(
    QWEN3_OMNI,
    hf_names=("Qwen3ASRForConditionalGeneration",),
    note="",
    keys=(*AUDIO_KEYS, *BINS, projector("qwen3a", "audio")),
    dims=_SPECTRUM_DIMS,
    layers={name: kind for name, kind in QWEN3_VL.layers.items() if name != "deepstack"},
    expects=(),
    maps=_SPECTRUM,
    defaults={AUDIO: {**_AUDIO_DEFAULTS, "downsample_hidden_size": 480}},
    forced=_SPECTRUM_HALF,
)

FAMILY = (QWEN2_5_OMNI, QWEN3_OMNI, QWEN3_ASR)
