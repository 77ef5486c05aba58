"""The encoders of images of GLM-4V, GLM-OCR and GLM-5.3. llama.cpp: `conversion/qwen3vl.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.rules import Config, Expect, Key, Map, vector, whole
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    QWEN_KEYS,
    VISION,
    V,
    activation,
    eps,
    frames,
    lin,
    positions,
    projector,
    told,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder

B = "visual.blocks.{bid}"
M = "visual.merger"


GLM4V = Encoder(
    hf_names=("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration"),
    gguf_arch="clip",
    keys=(
        *QWEN_KEYS,
        projector("glm4v"),
        activation("gelu", default=""),
        activation("silu", default=""),
        eps(vision("rms_norm_eps"), 1e-5),
    ),
    late_keys=(),
    expects=(Expect(f"{VISION}.temporal_patch_size", (2,)),),
    dims={
        **DIMS,
        "patch2": lambda c: c.one(*vision("patch_size")) ** 2,
        "positions": positions,
        "out": width("out_hidden_size"),
        "merge": width("spatial_merge_size"),
    },
    layers=KINDS,
    maps=(
        frames(),
        Map("visual.patch_embed.proj.bias", ("v",), whole("v.patch_embd.bias")),
        vector("visual.post_conv_layernorm", "v.norm_embd", "v"),
        Map("visual.embeddings.position_embedding.weight", ("positions", "v"),
            whole("v.position_embd.weight")),
        vector(f"{B}.norm1", f"{V}.ln1", "v", "vision"),
        *lin(f"{B}.attn.qkv", ("3v", "v"), f"{V}.attn_qkv", "vision", None),
        *lin(f"{B}.attn.proj", ("v", "v"), f"{V}.attn_out", "vision", None),
        vector(f"{B}.norm2", f"{V}.ln2", "v", "vision"),
        # its MLP is as wide as the text
        *lin(f"{B}.mlp.gate_proj", ("out", "v"), f"{V}.ffn_gate", "vision", None),
        *lin(f"{B}.mlp.up_proj", ("out", "v"), f"{V}.ffn_up", "vision", None),
        *lin(f"{B}.mlp.down_proj", ("v", "out"), f"{V}.ffn_down", "vision", None),
        vector("visual.post_layernorm", "v.post_ln", "v"),
        *lin("visual.downsample", ("out", "v", "merge", "merge"), "mm.patch_merger", "", False),
        Map("visual.downsample.bias", ("out",), whole("mm.patch_merger.bias")),
        *lin(f"{M}.proj", ("out", "out"), "mm.model.fc", "", False),
        *lin(f"{M}.post_projection_norm", ("out",), "mm.post_norm", ""),
        *lin(f"{M}.gate_proj", ("ffn", "out"), "mm.gate", "", None),
        *lin(f"{M}.up_proj", ("ffn", "out"), "mm.up", "", None),
        *lin(f"{M}.down_proj", ("out", "ffn"), "mm.down", "", None),
    ),
    drops=(r"(?!(model\.)?visual\.).*",),
    defaults={
        VISION: {
            "depth": 24, "hidden_size": 1536, "hidden_act": "silu", "image_size": 336,
            "intermediate_size": 13696, "num_heads": 12, "out_hidden_size": 4096,
            "patch_size": 14, "rms_norm_eps": 1e-5, "spatial_merge_size": 2,
        },
        "text_config": {"hidden_size": 4096},
    },
    forced=KERNELS,
)  # fmt: skip

_OTHERS = ("visual.post_conv_layernorm", "visual.embeddings", f"{B}.mlp", f"{M}.gate_proj",
           f"{M}.up_proj", f"{M}.down_proj")  # fmt: skip

GLM_OCR = replace(
    GLM4V,
    hf_names=("GlmOcrForConditionalGeneration",),
    dims={
        **GLM4V.dims,
        "head": lambda c: c.one(*vision("hidden_size"))
        // max(c.one(*vision("num_heads", "num_attention_heads")), 1),
        "wide": lambda c: c.one(*vision("out_hidden_size"))
        * c.one(*vision("in_channels"), default=3),
    },
    maps=(
        *(m for m in GLM4V.maps if not m.source.startswith(_OTHERS)),
        vector(f"{B}.attn.q_norm", f"{V}.attn_q_norm", "head", "vision"),
        vector(f"{B}.attn.k_norm", f"{V}.attn_k_norm", "head", "vision"),
        *lin(f"{B}.mlp.gate_proj", ("ffn", "v"), f"{V}.ffn_gate", "vision", None),
        *lin(f"{B}.mlp.up_proj", ("ffn", "v"), f"{V}.ffn_up", "vision", None),
        *lin(f"{B}.mlp.down_proj", ("v", "ffn"), f"{V}.ffn_down", "vision", None),
        *lin(f"{M}.gate_proj", ("wide", "out"), "mm.gate", "", None),
        *lin(f"{M}.up_proj", ("wide", "out"), "mm.up", "", None),
        *lin(f"{M}.down_proj", ("out", "wide"), "mm.down", "", None),
    ),
    defaults={
        VISION: {
            **GLM4V.defaults[VISION], "hidden_size": 1024, "num_heads": 16,
            "out_hidden_size": 1536, "intermediate_size": 4096,
        },
        "text_config": {"hidden_size": 1024},
    },
)  # fmt: skip


def _budget(end: str) -> Key:
    """The fewest or the most pixels of an image, from its tokens."""

    def read(config: Config) -> int | None:
        tokens: int | None = config.get(f"preprocessor.{end}_image_tokens", default=None)
        if tokens is None:
            return None
        side = config.one("preprocessor.patch_size", default=14)
        return tokens * (side * config.one("preprocessor.merge_size", default=2)) ** 2

    return Key(f"clip.vision.image_{end}_pixels", read)


GLM5_NEXT = replace(
    GLM_OCR,
    hf_names=("Glm5NextForConditionalGeneration",),
    keys=(
        *QWEN_KEYS,
        projector("glm5v"),
        *GLM4V.keys[11:],
        Key("clip.vision.spatial_merge_size", vision("spatial_merge_size"), default=2),
        Key("clip.vision.swiglu_clamp", vision("swiglu_limit"), "FLOAT32", None),
        _budget("min"),
        _budget("max"),
    ),
    dims={**GLM_OCR.dims, "wide": told(f"{M}.gate_proj.weight")},
    defaults={
        VISION: {**GLM_OCR.defaults[VISION], "swiglu_limit": 10.0},
        "text_config": {"hidden_size": 4096},
    },
)

FAMILY = (GLM4V, GLM_OCR, GLM5_NEXT)
