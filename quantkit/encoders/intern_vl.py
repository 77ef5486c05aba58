"""The encoder of images of InternVL and Intern-S1. llama.cpp: `conversion/internvl.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantkit.architectures.rules import Config, Expect, Key, Map, vector, whole
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
    qkv,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder

W = "vision_model"
B = f"{W}.encoder.layers.{{bid}}"


def _first(name: str) -> Callable[[Config], Any]:
    """A length that may be given for both sides."""

    def read(config: Config) -> Any:
        found = config.get(*vision(name))
        return found[0] if isinstance(found, list) and found else found

    return read


def _factor(config: Config) -> int:
    ratio: float = config.get("downsample_ratio", kind="NUMBER")
    return int(1.0 / ratio) if ratio > 0 else 0


def _tiles(name: str) -> Callable[[Config], int | None]:
    return lambda c: c.one(name, default=0) or None


S = r"^(model\.)?vision_tower\."
_LAYER = rf"{S}encoder\.layer\.(\d+)\."
# of Intern-S1
_OTHER_NAMES = (
    *((rf"^(model\.)?multi_modal_projector\.{theirs}\.", rf"mlp1.{i}.")
      for i, theirs in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2"))),
    *((rf"{S}embeddings\.{theirs}", rf"{W}.embeddings.{ours}") for theirs, ours in (
        ("cls_token", "class_embedding"),
        (r"patch_embeddings\.projection", "patch_embedding"),
        ("position_embeddings", "position_embedding"),
    )),
    *((rf"{_LAYER}{theirs}", rf"{W}.encoder.layers.\2.{ours}") for theirs, ours in (
        (r"attention\.projection_layer", "attn.proj"),
        (r"attention\.", "attn."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("lambda_", "ls"),
        (r"mlp\.", "mlp."),
    )),
)  # fmt: skip

INTERN_VL = Encoder(
    hf_names=("InternVisionModel",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("internvl"),
        eps(vision("layer_norm_eps")),
        activation("silu"),
        activation("gelu"),
        Key("clip.vision.projector.scale_factor", _factor),
        Key("clip.vision.preproc_min_tiles", _tiles("min_dynamic_patch")),
        Key("clip.vision.preproc_max_tiles", _tiles("max_dynamic_patch")),
    ),
    late_keys=(),
    expects=(
        Expect(f"{VISION}.layer_norm_eps", required=True),
        Expect(f"{VISION}.hidden_act", ("silu", "gelu"), required=True),
    ),
    dims={
        **DIMS,
        "places": lambda c: positions(c) + 1,
        "shuffled": lambda c: c.one(*vision("hidden_size")) * _factor(c) ** 2,
        "v": width("hidden_size"),
    },
    layers=KINDS,
    maps=(
        Map(f"{W}.embeddings.class_embedding", ("one", "one", "v"), whole("v.class_embd")),
        Map(f"{W}.embeddings.patch_embedding.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        Map(f"{W}.embeddings.patch_embedding.bias", ("v",), whole("v.patch_embd.bias")),
        Map(f"{W}.embeddings.position_embedding", ("one", "places", "v"),
            whole("v.position_embd.weight")),
        *lin(f"{B}.norm1", ("v",), f"{V}.ln1", "vision", None),
        *qkv(f"{B}.attn.qkv", biased=False),
        *(
            row
            for part in "qkv"
            for row in lin(f"{B}.attn.{part}_proj", ("v", "v"), f"{V}.attn_{part}", "vision", None)
        ),
        vector(f"{B}.attn.q_norm", f"{V}.attn_q_norm", "v", "vision", optional=True),
        vector(f"{B}.attn.k_norm", f"{V}.attn_k_norm", "v", "vision", optional=True),
        *lin(f"{B}.attn.proj", ("v", "v"), f"{V}.attn_out"),
        Map(f"{B}.ls1", ("v",), whole(f"{V}.ls1.weight"), "vision"),
        Map(f"{B}.ls2", ("v",), whole(f"{V}.ls2.weight"), "vision"),
        *lin(f"{B}.norm2", ("v",), f"{V}.ln2", "vision", None),
        *lin(f"{B}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down"),
        *lin("mlp1.0", ("shuffled",), "mm.model.mlp.0", ""),
        *lin("mlp1.1", ("text", "shuffled"), "mm.model.mlp.1", ""),
        *lin("mlp1.3", ("text", "text"), "mm.model.mlp.3", ""),
    ),
    renames=_OTHER_NAMES,
    drops=(r"(?!(vision_model|mlp1|model\.vision_tower|model\.multi_modal_projector)\.).*",),
    aliases={
        f"{VISION}.image_size": _first("image_size"),
        f"{VISION}.patch_size": _first("patch_size"),
    },
    forced=((r"v\.position_embd\.weight", "F32"), *KERNELS),
)  # fmt: skip

FAMILY = (INTERN_VL,)
