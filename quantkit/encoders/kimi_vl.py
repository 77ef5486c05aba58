"""The encoders of images of Kimi-VL, Kimi-K2.5 and GLM-5V. llama.cpp: `conversion/kimivl.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from quantkit.architectures.rules import (
    Config,
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
    projector,
    qkv,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError

T = "vision_tower"
B = f"{T}.encoder.blocks.{{bid}}"
P = "multi_modal_projector"

KIMI_VL = Encoder(
    hf_names=("KimiVLForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("kimivl"),
        flag("clip.use_gelu"),
        Key("clip.vision.projector.scale_factor", lambda c: 2),
        eps(vision("layer_norm_eps"), 1e-5),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "high": width("init_pos_emb_height"),
        "wide": width("init_pos_emb_width"),
        "positions": lambda c: c.one(*vision("init_pos_emb_height"))
        * c.one(*vision("init_pos_emb_width")),
        "merged": lambda c: 4 * c.one(*vision("hidden_size")),
    },
    layers=KINDS,
    maps=(
        Map(f"{T}.patch_embed.proj.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        Map(f"{T}.patch_embed.proj.bias", ("v",), whole("v.patch_embd.bias")),
        Map(f"{T}.patch_embed.pos_emb.weight", ("high", "wide", "v"),
            whole("v.position_embd.weight", "positions", "v")),
        *lin(f"{B}.norm0", ("v",), f"{V}.ln1"),
        *qkv(f"{B}.wqkv"),
        *lin(f"{B}.wo", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{B}.norm1", ("v",), f"{V}.ln2"),
        *lin(f"{B}.mlp.fc0", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.fc1", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{T}.encoder.final_layernorm", ("v",), "v.post_ln", ""),
        *lin(f"{P}.pre_norm", ("v",), "mm.input_norm", ""),
        *lin(f"{P}.linear_1", ("merged", "merged"), "mm.1", ""),
        *lin(f"{P}.linear_2", ("text", "merged"), "mm.2", ""),
    ),
    drops=(rf"(?!(model\.)?({T}|{P})\.).*",),
    # images of any size: a number for the key
    aliases={f"{VISION}.image_size": lambda c: 64 * 14},
    defaults={
        VISION: {
            "patch_size": 14, "init_pos_emb_height": 64, "init_pos_emb_width": 64,
            "num_attention_heads": 16, "num_hidden_layers": 27, "hidden_size": 1152,
            "intermediate_size": 4304,
        },
    },
    forced=KERNELS,
)  # fmt: skip


def _order(head: int) -> tuple[int, ...]:
    """The rows of a head whose rotary pairs take turns between the two axes: one axis at a time."""
    return tuple(4 * i + 2 * axis + j for axis in range(2) for i in range(head // 4)
                 for j in range(2))  # fmt: skip


def _heads(config: Config) -> int:
    """Heads as llama.cpp's converter counts them, who does not know the name that the releases have
    for it; all of them have sixteen. Raises ConfigError."""
    heads = config.one(*vision("num_attention_heads"), default=16)
    n = config.one(*vision("hidden_size", "vt_hidden_size"))
    if heads < 1 or n % (4 * heads):
        raise ConfigError(
            f"{config.where}: {n} channels of the encoder in {heads} heads; those of images have "
            "a multiple of four each"
        )
    return heads


def _turned(role: str) -> RowMap:
    """Query, key and value in one matrix, the rows of the first two one axis at a time."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n = source[0] // 3
        order = _order(n // max(dims["heads"], 1))
        return [
            piece(role, source, 2 * n, order=order),
            piece(role, source, n, 2 * n, at=2 * n),
        ]

    return pieces


def _merge(config: Config) -> int:
    found = config.get(*vision("merge_kernel_size"), default=[2, 2])
    n: int = found[0] if isinstance(found, list) and found else 0
    return n


def _pixels(patches: Callable[[Config], int]) -> Callable[[Config], int]:
    return lambda c: patches(c) * c.one(*vision("patch_size"), default=14) ** 2


M = "mm_projector"

KIMI_K25 = Encoder(
    hf_names=("KimiK25ForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("kimik25"),
        *(
            Key(f"vision.pos_emb_{axis}", vision(f"init_pos_emb_{axis}"), default=size)
            for axis, size in (("height", 64), ("width", 64), ("time", 4))
        ),
        Key("clip.use_gelu",
            lambda c: c.values[VISION].get("projector_hidden_act", "gelu") == "gelu", "BOOL"),
        eps(vision("projector_ln_eps"), 1e-5),
        Key("clip.vision.projector.scale_factor", _merge),
        Key("clip.vision.image_min_pixels", _pixels(lambda c: 8)),
        Key("clip.vision.image_max_pixels",
            _pixels(lambda c: c.one("preprocessor.in_patch_limit", default=16384))),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "v": width("hidden_size", "vt_hidden_size"),
        "3v": lambda c: 3 * c.one(*vision("hidden_size", "vt_hidden_size")),
        "ffn": width("intermediate_size", "vt_intermediate_size"),
        "heads": _heads,
        "high": lambda c: c.one(*vision("init_pos_emb_height"), default=64),
        "wide": lambda c: c.one(*vision("init_pos_emb_width"), default=64),
        "merged": lambda c: _merge(c) ** 2 * c.one(*vision("hidden_size", "vt_hidden_size")),
    },
    layers=KINDS,
    maps=(
        *KIMI_VL.maps[:2],
        Map(f"{T}.patch_embed.pos_emb.weight", ("high", "wide", "v"),
            whole("v.position_embd.weight")),
        *(m for m in KIMI_VL.maps if m.layers and "wqkv" not in m.source),
        *lin(f"{B}.wqkv", ("3v", "v"), f"{V}.attn_qkv", "vision", True, _turned),
        *lin(f"{T}.encoder.final_layernorm", ("v",), "v.post_ln", ""),
        *lin(f"{M}.pre_norm", ("v",), "mm.input_norm", ""),
        *lin(f"{M}.proj.0", ("merged", "merged"), "mm.1", ""),
        *lin(f"{M}.proj.2", ("text", "merged"), "mm.2", ""),
    ),
    # positions in time, which are sines
    drops=(rf"(?!(model\.)?({T}|{M})\.).*", r".*\.time_weight"),
    aliases={
        f"{VISION}.image_size": lambda c: c.one(*vision("init_pos_emb_height"), default=64)
        * c.one(*vision("patch_size"), default=14),
    },
    forced=KERNELS,
)  # fmt: skip

GLM5V = replace(
    KIMI_K25,
    hf_names=("Glm5vForConditionalGeneration",),
    renames=((rf"{M}\.(proj\.)?linear_1\.", f"{M}.proj.0."),
             (rf"{M}\.(proj\.)?linear_2\.", f"{M}.proj.2.")),
)  # fmt: skip

FAMILY = (KIMI_VL, KIMI_K25, GLM5V)
