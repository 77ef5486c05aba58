"""Conformers, which hear: in LFM2-Audio, and in d1-omni beside SigLIP 2's encoder of images.

llama.cpp: `conversion/gemma.py` (ConformerAudioModel), `conversion/lfm2.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.architectures.rules import (
    Config,
    Dim,
    Dims,
    Key,
    Map,
    Piece,
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
    TEXT_WIDTH,
    VISION,
    A,
    always,
    audio,
    channels_first,
    coloured,
    flag,
    lin,
    projector,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.encoders.siglip import patches, tower

C = "conformer"
L = f"{C}.layers.{{bid}}"
N = f"{L}.conv.batch_norm"
_CONVOLUTIONS = (0, 2, 3, 5, 6)  # over the spectrum; in between are activations
_DEEP = (0, 2, 5)  # of them, those with a channel to themselves


def _bias(at: int) -> Map:
    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(f"a.conv1d.{at}.bias", (source[0], 1, 1), source[0]),)

    return Map(f"{C}.pre_encode.conv.{at}.bias", ("conv",), pieces)


def matrix(source: str, shape: tuple[str, str], role: str) -> tuple[Map, Map]:
    """A convolution over one moment as the matrix that it is, and its bias."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(f"{role}.weight", source[:2], source[0]),)

    return (
        Map(f"{source}.weight", (*shape, "one"), pieces, "audio", seen=shape),
        Map(f"{source}.bias", shape[:1], whole(f"{role}.bias"), "audio"),
    )


def folded(norm: str, role: str, dim: str) -> tuple[Map, Map]:
    """A batch norm as a weight and a bias, which stand where its weight does in the file."""
    return (
        Map(f"{norm}.weight", (dim,), whole(f"{role}.weight"), "audio", batch_norm=norm),
        Map(f"{norm}.bias", (dim,), whole(f"{role}.bias"), "audio", batch_norm=norm),
    )


def _linear(source: str, shape: tuple[str, ...], role: str, bias: bool | None) -> tuple[Map, ...]:
    return lin(f"{L}.{source}", shape, f"{A}.{role}", "audio", bias)


SPECTRUM = (
    *(
        Map(f"{C}.pre_encode.conv.{at}.weight",
            ("conv", "one", "three", "three") if at in _DEEP else ("conv", "conv", "one", "one"),
            whole(f"a.conv1d.{at}.weight"))
        for at in _CONVOLUTIONS
    ),
    *map(_bias, _CONVOLUTIONS),
    *lin(f"{C}.pre_encode.out", ("a", "spectrum"), "a.pre_encode.out", ""),
)  # fmt: skip
BLOCKS = (
    *_linear("norm_feed_forward1", ("a",), "ffn_norm", True),
    *_linear("feed_forward1.linear1", ("a_ffn", "a"), "ffn_up", None),
    *_linear("feed_forward1.linear2", ("a", "a_ffn"), "ffn_down", None),
    *_linear("norm_self_att", ("a",), "ln1", True),
    *_linear("self_attn.linear_q", ("a", "a"), "attn_q", None),
    *_linear("self_attn.linear_k", ("a", "a"), "attn_k", None),
    *_linear("self_attn.linear_v", ("a", "a"), "attn_v", None),
    *_linear("self_attn.linear_out", ("a", "a"), "attn_out", None),
    *_linear("self_attn.linear_pos", ("a", "a"), "linear_pos", False),
    Map(f"{L}.self_attn.pos_bias_u", ("a_heads", "a_head"), whole(f"{A}.pos_bias_u"), "audio"),
    Map(f"{L}.self_attn.pos_bias_v", ("a_heads", "a_head"), whole(f"{A}.pos_bias_v"), "audio"),
    *_linear("norm_conv", ("a",), "norm_conv", True),
    *matrix(f"{L}.conv.pointwise_conv1", ("2a", "a"), f"{A}.conv_pw1"),
    Map(f"{L}.conv.depthwise_conv.weight", ("a", "one", "kernel"),
        whole(f"{A}.conv_dw.weight", "a", "kernel"), "audio"),
    Map(f"{L}.conv.depthwise_conv.bias", ("a",), whole(f"{A}.conv_dw.bias"), "audio"),
    *folded(N, f"{A}.conv_norm", "a"),
    *matrix(f"{L}.conv.pointwise_conv2", ("a", "a"), f"{A}.conv_pw2"),
    *_linear("norm_feed_forward2", ("a",), "ffn_norm_1", True),
    *_linear("feed_forward2.linear1", ("a_ffn", "a"), "ffn_up_1", True),
    *_linear("feed_forward2.linear2", ("a", "a_ffn"), "ffn_down_1", True),
    *_linear("norm_out", ("a",), "ln2", True),
)  # fmt: skip
_P = "audio_adapter.model"
ADAPTER = (
    *lin(f"{_P}.0", ("a",), "mm.a.mlp.0", ""),
    *lin(f"{_P}.1", ("adapted", "a"), "mm.a.mlp.1", ""),
    *lin(f"{_P}.3", ("text", "adapted"), "mm.a.mlp.3", ""),
)


def _width(config: Config) -> int:
    return config.one(*audio("d_model"))


def _heads(config: Config) -> int:
    return max(config.one(*audio("n_heads")), 1)


HEARING: dict[str, Dim] = {
    "one": lambda c: 1,
    "three": lambda c: 3,
    "text": lambda c: c.one(*TEXT_WIDTH),
    "a": _width,
    "2a": lambda c: 2 * _width(c),
    "a_heads": _heads,
    "a_head": lambda c: _width(c) // _heads(c),
    "a_ffn": told(f"{C}.layers.0.feed_forward1.linear1.weight"),
    "kernel": told(f"{C}.layers.0.conv.depthwise_conv.weight", 2),
    "conv": told(f"{C}.pre_encode.conv.0.weight"),
    "spectrum": told(f"{C}.pre_encode.out.weight", 1),
    "adapted": told(f"{_P}.1.weight"),
}
BINS = (
    Key("clip.audio.num_mel_bins", audio("feat_in")),
    Key("clip.audio.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32"),
)
EXACT = ((r"a\.conv1d\.\d\.weight|a\.blk\.\d+\.conv_(dw|pw1|pw2)\.weight", "F32"),)
TRAINED = r".*\.num_batches_tracked"
_E = "audio_embedding"

LFM2_AUDIO = Encoder(
    hf_names=("Lfm2AudioForConditionalGeneration",),
    gguf_arch="clip",
    keys=(*AUDIO_KEYS, projector("lfm2a"), *BINS),
    late_keys=(),
    expects=(),
    dims={**HEARING, "codes": told(f"{_E}.embedding.weight")},
    layers=KINDS,
    maps=(
        *SPECTRUM,
        *BLOCKS,
        *ADAPTER,
        # of the sounds that it speaks with, and its positions in llama.cpp
        *lin(f"{_E}.embedding", ("codes", "text"), "a.position_embd", "", False),
        vector(f"{_E}.embedding_norm", "a.position_embd_norm", "text", optional=True),
        Map(f"{_E}.to_logits.weight", ("codes", "text"), whole("a.embd_to_logits.weight"),
            optional=True),
    ),
    drops=(
        r"lfm\..*", TRAINED,
        r".*(audio_loss_weight|codebook_offsets|depth_embeddings|depth_linear|depthformer).*",
    ),
    tables={AUDIO: "encoder"},
    aliases={
        f"{AUDIO}.hidden_size": _width,
        f"{AUDIO}.intermediate_size": _width,
        f"{AUDIO}.num_attention_heads": f"{AUDIO}.n_heads",
    },
    forced=EXACT,
)  # fmt: skip

_T = "vision_tower.vision_model"
_M = "multi_modal_projector"
_ADAPTERS = {"adapter.norm": 0, "adapter.linear_1": 1, "adapter.linear_2": 3, "residual.ln": 4,
             "residual.down": 5, "residual.up": 6}  # fmt: skip
_GREY = always([0.5] * 3)

D1_OMNI = Encoder(
    hf_names=("D1OmniModel",),
    gguf_arch="clip",
    keys=(
        *coloured(_GREY, _GREY),
        *AUDIO_KEYS,
        projector("d1omni_v", "vision"),
        Key("clip.vision.attention.layer_norm_epsilon", vision("layer_norm_eps"), "FLOAT32"),
        Key("clip.vision.projector.scale_factor", "downsample_factor", default=2),
        flag("clip.use_gelu"),
        projector("d1omni_a", "audio"),
        *BINS,
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        **HEARING,
        "positions": told(f"{_T}.embeddings.position_embedding.weight"),
        "patch3": lambda c: 3 * c.one(*vision("patch_size")) ** 2,
        "shuffled": lambda c: c.one(*vision("hidden_size"))
        * c.one("downsample_factor", default=2) ** 2,
        "projected": told(f"{_M}.linear_1.weight"),
        "low": told(f"{_P}.5.weight"),
        "up": told(f"{_P}.6.weight"),
    },
    layers={**KINDS, "normed": lambda c, bid: f"{_M}.layer_norm.weight" in c.values["shapes"]},
    maps=(
        Map(f"{_T}.embeddings.patch_embedding.weight", ("v", "patch3"),
            channels_first("v.patch_embd.weight", "patch"), flat=True),
        *patches(_T)[1:],
        *tower(_T),
        *lin(f"{_M}.layer_norm", ("shuffled",), "mm.input_norm", "normed"),
        *lin(f"{_M}.linear_1", ("projected", "shuffled"), "mm.1", "", None),
        *lin(f"{_M}.linear_2", ("text", "projected"), "mm.2", "", None),
        *SPECTRUM,
        *BLOCKS,
        *ADAPTER,
        # a block that adds to what the adapter gives
        *lin(f"{_P}.4", ("text",), "mm.a.mlp.4", ""),
        *lin(f"{_P}.5", ("low", "text"), "mm.a.mlp.5", ""),
        *lin(f"{_P}.6", ("up", "low"), "mm.a.mlp.6", ""),
    ),
    renames=(
        (r"^vision\.tower\.", "vision_tower."),
        (r"^vision\.projector\.", f"{_M}."),
        (r"^audio\.encoder\.", f"{C}."),
        *((rf"^audio\.{theirs}\.", f"{_P}.{at}.") for theirs, at in _ADAPTERS.items()),
    ),
    drops=(r"(encoder|head)\..*", TRAINED),
    aliases={
        f"{VISION}.image_size": lambda c: 256,  # images of any size: a number for the key
        f"{AUDIO}.hidden_size": _width,
        f"{AUDIO}.intermediate_size": lambda c: (
            _width(c) * c.one(*audio("ff_expansion_factor"))
        ),
        f"{AUDIO}.num_attention_heads": f"{AUDIO}.n_heads",
    },
    forced=(*EXACT, *KERNELS),
)  # fmt: skip

FAMILY = (LFM2_AUDIO, D1_OMNI)
