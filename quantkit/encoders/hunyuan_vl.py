"""The encoder of images of HunYuanVL and HunyuanOCR. llama.cpp: `conversion/hunyuan.py`."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.architectures.rules import (
    Dim,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    piece,
    whole,
)
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    eps,
    flag,
    lin,
    pixel_count,
    projector,
    told,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder

B = "vit.layers.{bid}"
P = "vit.perceive"


def _without_first(role: str) -> RowMap:
    """A table of positions without that of the class token."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n = source[0] - 1
        return (piece(role, (n, *source[1:]), n, at=1),)

    return pieces


def _times(n: int) -> Dim:
    return lambda c: n * c.one(*vision("hidden_size"))


HUNYUAN_VL = Encoder(
    hf_names=("HunYuanVLForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("hunyuanvl"),
        flag("clip.use_gelu"),
        eps(vision("rms_norm_eps"), 1e-5),
        Key("clip.vision.spatial_merge_size", vision("spatial_merge_size"), default=2),
        pixel_count("min", cut=True),
        pixel_count("max", cut=True),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "places": told("vit.embeddings.position_embedding.weight"),
        "merge": lambda c: c.one(*vision("spatial_merge_size"), default=2),
        "2v": _times(2),
        "4v": _times(4),
        "out": width("out_hidden_size"),
    },
    layers=KINDS,
    maps=(
        Map("vit.embeddings.patch_embedding.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        Map("vit.embeddings.patch_embedding.bias", ("v",), whole("v.patch_embd.bias"),
            optional=True),
        Map("vit.embeddings.position_embedding.weight", ("places", "v"),
            _without_first("v.position_embd.weight")),
        *lin(f"{B}.input_layernorm", ("v",), f"{V}.ln1"),
        *lin(f"{B}.post_attention_layernorm", ("v",), f"{V}.ln2"),
        *(
            row
            for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
            for row in lin(f"{B}.self_attn.{theirs}_proj", ("v", "v"), f"{V}.attn_{ours}",
                           "vision", None)
        ),
        *lin(f"{B}.mlp.dense_h_to_4h", ("ffn", "v"), f"{V}.ffn_up", "vision", None),
        *lin(f"{B}.mlp.dense_4h_to_h", ("v", "ffn"), f"{V}.ffn_down", "vision", None),
        *lin(f"{P}.before_rms", ("v",), "mm.pre_norm", "", False),
        *lin(f"{P}.proj.0", ("2v", "v", "merge", "merge"), "mm.0", "", None),
        *lin(f"{P}.proj.2", ("4v", "2v", "one", "one"), "mm.2", "", None),
        *lin(f"{P}.mlp", ("out", "4v"), "mm.model.fc", "", None),
        *lin(f"{P}.after_rms", ("out",), "mm.post_norm", "", False),
        Map(f"{P}.image_begin", ("out",), whole("mm.image_begin")),
        Map(f"{P}.image_end", ("out",), whole("mm.image_end")),
        Map(f"{P}.image_newline", ("4v",), whole("v.image_newline")),
        Map(f"{P}.image_sep", ("out",), whole("v.view_seperator")),
    ),
    cuts=frozenset({"vit.embeddings.position_embedding.weight"}),
    drops=(r"(?!vit\.).*",),
    aliases={
        f"{VISION}.image_size": lambda c: c.one(
            *vision("image_size", "max_image_size"), default=2048
        ),
    },
    defaults={
        VISION: {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "num_channels": 3, "out_hidden_size": 4096, "patch_size": 16,
        },
        "text_config": {"hidden_size": 4096},
    },
    forced=((r"mm\.[02]\.weight", "kernel"), *KERNELS),
)  # fmt: skip

FAMILY = (HUNYUAN_VL,)
