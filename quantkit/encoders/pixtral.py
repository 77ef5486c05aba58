"""Pixtral's encoder of images, in Pixtral 12B, Mistral Small 3.1 and Ministral 3.

llama.cpp: `conversion/llava.py`, `conversion/pixtral.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.rules import Expect, Key, Map, rotary, whole
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
    one_row,
    projector,
    vision,
)
from quantkit.encoders.rules import Encoder

T = "vision_tower"
B = f"{T}.transformer.layers.{{bid}}"
P = "multi_modal_projector"


def _heads(source: str, role: str) -> tuple[Map, ...]:
    """Queries or keys, in the original order of channels."""
    return lin(source, ("v", "v"), role, "vision", None, rotary, "heads")


MISTRAL3 = Encoder(
    hf_names=("Mistral3ForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("pixtral"),
        eps(vision("layer_norm_eps"), 1e-5),
        activation("silu"),
        activation("gelu"),
        Key("clip.vision.spatial_merge_size", "spatial_merge_size", default=None),
    ),
    late_keys=(),
    expects=(
        Expect(f"{VISION}.model_type", ("pixtral",), required=True),
        Expect(f"{VISION}.hidden_act", ("silu", "gelu")),
    ),
    dims={
        **DIMS,
        "merged": lambda c: c.one(*vision("hidden_size"))
        * c.one("spatial_merge_size", default=1) ** 2,
        "vocab": lambda c: c.one("text_config.vocab_size"),
        "img_break": lambda c: c.one("img_break"),
    },
    layers={
        **KINDS,
        "merges": lambda c, bid: c.find("spatial_merge_size") is not None,
    },
    maps=(
        Map(f"{T}.patch_conv.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        *lin(f"{T}.ln_pre", ("v",), "v.pre_ln", "", False),
        *lin(f"{B}.attention_norm", ("v",), f"{V}.ln1", "vision", False),
        *_heads(f"{B}.attention.q_proj", f"{V}.attn_q"),
        *_heads(f"{B}.attention.k_proj", f"{V}.attn_k"),
        *lin(f"{B}.attention.v_proj", ("v", "v"), f"{V}.attn_v", "vision", None),
        *lin(f"{B}.attention.o_proj", ("v", "v"), f"{V}.attn_out", "vision", None),
        *lin(f"{B}.ffn_norm", ("v",), f"{V}.ln2", "vision", False),
        *lin(f"{B}.feed_forward.gate_proj", ("ffn", "v"), f"{V}.ffn_gate", "vision", None),
        *lin(f"{B}.feed_forward.up_proj", ("ffn", "v"), f"{V}.ffn_up", "vision", None),
        *lin(f"{B}.feed_forward.down_proj", ("v", "ffn"), f"{V}.ffn_down", "vision", None),
        *lin(f"{P}.norm", ("v",), "mm.input_norm", "merges", False),
        *lin(f"{P}.patch_merger.merging_layer", ("v", "merged"), "mm.patch_merger", "merges",
             False),
        *lin(f"{P}.linear_1", ("text", "v"), "mm.1", "", None),
        *lin(f"{P}.linear_2", ("text", "text"), "mm.2", "", None),
        # the end of a row of patches is a token of the text. llama.cpp's converter drops all that
        # is called language_model before it gets there, and its file is not loaded for it
        Map("model.embed_tokens.weight", ("vocab", "text"),
            one_row("v.token_embd.img_break", "img_break")),
    ),
    drops=(rf"(?!(model\.)?({T}|{P})\.).*",),
    tokens={"img_break": "[IMG_BREAK]"},
    defaults={
        VISION: {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 1024, "patch_size": 16, "hidden_act": "gelu",
            "model_type": "pixtral",
        },
        "text_config": {"hidden_size": 4096, "vocab_size": 32000},
        "spatial_merge_size": 2,
    },
    forced=KERNELS,
)  # fmt: skip

PIXTRAL = replace(
    MISTRAL3,
    hf_names=("LlavaForConditionalGeneration",),
    defaults={k: v for k, v in MISTRAL3.defaults.items() if k != "spatial_merge_size"},
)

FAMILY = (MISTRAL3, PIXTRAL)
