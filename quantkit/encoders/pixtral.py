"""Pixtral's encoder of images, in Pixtral 12B, Mistral Small 3.1 and Ministral 3.

llama.cpp: `conversion/llava.py`, `conversion/pixtral.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.rules import Config, Expect, Key, Map, rotary, whole
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    activation,
    always,
    coloured,
    eps,
    flag,
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
    tokens=lambda config: {"img_break": "[IMG_BREAK]"},
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


LIGHTON_OCR = replace(
    MISTRAL3,
    hf_names=("LightOnOCRForConditionalGeneration",),
    keys=tuple(projector("lightonocr") if k.name == "clip.projector_type" else k
               for k in MISTRAL3.keys),
    maps=MISTRAL3.maps[:-1],
    renames=(
        (r"^model\.vision_encoder\.", f"{T}."),
        (r"^model\.vision_projection\.", f"{P}."),
    ),
    drops=(rf"(?!(model\.)?({T}|{P}|vision_encoder|vision_projection)\.).*",),
    tokens=lambda config: {},
    dims={k: v for k, v in MISTRAL3.dims.items() if k not in ("vocab", "img_break")},
    defaults={**MISTRAL3.defaults, "text_config": {"hidden_size": 1024}},
)  # fmt: skip

E = "vision_encoder"
L = f"{E}.transformer.layers.{{bid}}"
# which Mistral's own format does not say
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def _merges(config: Config) -> bool:
    return bool(config.find(f"{VISION}.mm_projector_id") == "patch_merge")


def _merge(config: Config) -> int | None:
    return config.one(*vision("spatial_merge_size")) if _merges(config) else None


def _break(config: Config) -> int:
    """The token between rows: params.json may leave it to the vocabulary."""
    given: int = config.get(*vision("image_break_token_id"), kind="INT32")
    return given if given >= 0 else config.one("img_break")


def _break_token(config: Config) -> dict[str, str]:
    given: int = config.get(*vision("image_break_token_id"), kind="INT32")
    return {} if given >= 0 else {"img_break": "[IMG_BREAK]"}


def _mistrals(source: str, shape: tuple[str, ...], role: str) -> tuple[Map, ...]:
    return lin(f"{L}.{source}", shape, f"{V}.{role}", "vision", False)


# Mistral's own format: rotary channels are in the original order there, and the token's embedding
# is not called language_model, so that llama.cpp finds it
OWN = Encoder(
    hf_names=("params.json",),
    gguf_arch="clip",
    keys=(
        *coloured(always(CLIP_MEAN), always(CLIP_STD)),
        projector("pixtral"),
        Key("clip.vision.attention.layer_norm_epsilon", "norm_eps", "FLOAT32"),
        Key("clip.rope.freq_base", vision("rope_theta"), "FLOAT32"),
        flag("clip.use_silu"),
        Key("clip.vision.spatial_merge_size", _merge),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "merged": lambda c: c.one(*vision("hidden_size")) * (_merge(c) or 1) ** 2,
        "vocab": lambda c: c.one("vocab_size"),
        "img_break": _break,
    },
    layers={**KINDS, "merges": lambda c, bid: _merges(c)},
    maps=(
        Map(f"{E}.patch_conv.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        *lin(f"{E}.ln_pre", ("v",), "v.pre_ln", "", False),
        *_mistrals("attention_norm", ("v",), "ln1"),
        *_mistrals("attention.wq", ("v", "v"), "attn_q"),
        *_mistrals("attention.wk", ("v", "v"), "attn_k"),
        *_mistrals("attention.wv", ("v", "v"), "attn_v"),
        *_mistrals("attention.wo", ("v", "v"), "attn_out"),
        *_mistrals("ffn_norm", ("v",), "ln2"),
        *_mistrals("feed_forward.w1", ("ffn", "v"), "ffn_gate"),
        *_mistrals("feed_forward.w3", ("ffn", "v"), "ffn_up"),
        *_mistrals("feed_forward.w2", ("v", "ffn"), "ffn_down"),
        Map("pre_mm_projector_norm.weight", ("v",), whole("mm.input_norm.weight"), optional=True),
        *lin("patch_merger.merging_layer", ("v", "merged"), "mm.patch_merger", "merges", False),
        *lin("vision_language_adapter.w_in", ("text", "v"), "mm.1", "", None),
        *lin("vision_language_adapter.w_out", ("text", "text"), "mm.2", "", None),
        Map("tok_embeddings.weight", ("vocab", "text"),
            one_row("v.token_embd.img_break", "img_break")),
    ),
    drops=(rf"(?!({E}|pre_mm_projector_norm|patch_merger|vision_language_adapter)\b).*",),
    tables={VISION: E},
    aliases={"text_config.hidden_size": "dim"},
    tokens=_break_token,
    forced=KERNELS,
)  # fmt: skip

FAMILY = (MISTRAL3, PIXTRAL, LIGHTON_OCR, OWN)
