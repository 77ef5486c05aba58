"""The encoder of images of Muse Glimmer. llama.cpp: `conversion/muse_glimmer.py`."""

from __future__ import annotations

from quantkit.architectures.rules import Key, Map, rotary, whole
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    lin,
    patch_convolution,
    projector,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder

T = "model.vision_tower"
L = f"{T}.layers.{{bid}}"
_A = "model.vision_adapter"


MUSE_GLIMMER = Encoder(
    hf_names=("MuseGlimmerForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("muse-glimmer"),
        Key("clip.vision.attention.layer_norm_epsilon", vision("layer_norm_eps"), "FLOAT32"),
        Key("clip.vision.spatial_merge_size", vision("merge_size")),
    ),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "moments": lambda c: c.one(*vision("patch_temporal")),
        "pixels": lambda c: c.one(*vision("patch_temporal"))
        * 3
        * c.one(*vision("patch_size")) ** 2,
        "places": lambda c: c.one(*vision("pos_emb_height")) * c.one(*vision("pos_emb_width")),
        "merged": told(f"{_A}.fc1.weight", 1),
        "adapted": told(f"{_A}.fc1.weight"),
        "out": told(f"{_A}.fc2.weight"),
    },
    layers=KINDS,
    maps=(
        Map(f"{T}.patch_embedder.patch_embedding.weight", ("v", "pixels"), patch_convolution,
            summed="moments"),
        Map(f"{T}.patch_embedder.position_embedding_table.weight", ("places", "v"),
            whole("v.position_embd.weight")),
        *lin(f"{T}.ln_pre", ("v",), "v.pre_ln", "", None),
        *lin(f"{T}.ln_post", ("v",), "v.post_ln", "", None),
        *lin(f"{L}.norm1", ("v",), f"{V}.ln1", "vision", None),
        *lin(f"{L}.norm2", ("v",), f"{V}.ln2", "vision", None),
        *lin(f"{L}.attn.q_proj", ("v", "v"), f"{V}.attn_q", "vision", None, rotary, "heads"),
        *lin(f"{L}.attn.k_proj", ("v", "v"), f"{V}.attn_k", "vision", None, rotary, "heads"),
        *lin(f"{L}.attn.v_proj", ("v", "v"), f"{V}.attn_v", "vision", None),
        *lin(f"{L}.attn.proj", ("v", "v"), f"{V}.attn_out", "vision", None),
        *lin(f"{L}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_up", "vision", None),
        *lin(f"{L}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down", "vision", None),
        *lin(f"{_A}.fc1", ("adapted", "merged"), "mm.0", "", None),
        *lin(f"{_A}.fc2", ("out", "adapted"), "mm.1", "", None),
        *lin("model.vision_projection", ("text", "out"), "mm.2", "", None),
        Map(f"{T}.patch_embedder.patch_embedding.bias", ("v",), whole("v.patch_embd.bias"),
            optional=True),
    ),
    drops=(r"(?!model\.vision_(tower|adapter|projection)\.).*",),
    # images of any size: that of the table of positions for the key
    aliases={
        f"{VISION}.image_size": lambda c: (
            c.one(*vision("pos_emb_height"))
            * c.one(*vision("patch_size"))
            * c.one(*vision("merge_size"))
        ),
    },
    defaults={
        VISION: {
            "patch_size": 14, "patch_temporal": 2, "pos_emb_height": 32, "pos_emb_width": 32,
            "merge_size": 2, "num_attention_heads": 16, "num_hidden_layers": 50,
            "hidden_size": 1536, "intermediate_size": 8960, "layer_norm_eps": 1e-5,
        },
        "text_config": {"hidden_size": 6656},
    },
    forced=KERNELS,
)  # fmt: skip

FAMILY = (MUSE_GLIMMER,)
