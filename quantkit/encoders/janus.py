"""The encoder of images of Janus-Pro. llama.cpp: `conversion/januspro.py`."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.architectures.rules import Config, Dims, Piece, RowMap, Shape, piece
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    activation,
    eps,
    lin,
    positions,
    projector,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.encoders.siglip import patches, tower

T = "model.vision_model"
A = "model.aligner"


def _ffn(config: Config) -> int | None:
    """The width of the MLP, which may be given as a ratio."""
    found: int | None = config.get(*vision("intermediate_size"), default=None)
    ratio = config.get(*vision("mlp_ratio"), kind="NUMBER", default=None)
    if found is None and ratio is not None:
        n: int = round(config.one(*vision("hidden_size")) * ratio)
        return n
    return found


def _after(role: str) -> RowMap:
    """Layers of the projector that follow its first, and are counted from it."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(role.format(bid=dims["next"]), source, source[0]),)

    return pieces


JANUS_PRO = Encoder(
    hf_names=("JanusForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("janus_pro"),
        eps(vision("layer_norm_eps")),
        activation("gelu", default=""),
        activation("silu", default=""),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "positions": positions,
        "next": lambda c: [bid + 1 for bid in range(c.layers)],
        "out": lambda c: c.one(*vision("projection_dim")),
    },
    layers={**KINDS, "aligner": lambda c, bid: bid < c.one(*vision("depth")) - 1},
    maps=(
        *patches(T),
        *(m for m in tower(T) if "out_proj" not in m.source),
        *lin(f"{T}.encoder.layers.{{bid}}.self_attn.projection_layer", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{A}.fc1", ("out", "v"), "mm.0", ""),
        *lin(f"{A}.hidden_layers.{{bid}}", ("out", "out"), "mm.{bid}", "aligner", True, _after),
    ),
    # what makes pictures, and the text
    drops=(rf"(?!({T}|{A})\.).*",),
    aliases={f"{VISION}.intermediate_size": _ffn},
    defaults={
        VISION: {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 384, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
            "mlp_ratio": 4.0, "projection_dim": 2048, "depth": 2,
        },
        "text_config": {"hidden_size": 4096},
    },
    forced=KERNELS,
)  # fmt: skip

FAMILY = (JANUS_PRO,)
