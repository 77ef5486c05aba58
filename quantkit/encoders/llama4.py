"""The encoder of images of Llama 4. llama.cpp: `conversion/llama4.py`."""

from __future__ import annotations

from quantkit.architectures.rules import Config, Expect, Key, Map, whole
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
    positions,
    projector,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder

W = "vision_model"
B = f"{W}.model.layers.{{bid}}"


def _ratio(config: Config) -> float:
    ratio: float = config.get(*vision("pixel_shuffle_ratio"), kind="NUMBER")
    return ratio


def _factor(config: Config) -> int:
    """Patches of a side that become one."""
    return int(1.0 / _ratio(config)) if _ratio(config) > 0 else 0


LLAMA4 = Encoder(
    hf_names=("Llama4ForConditionalGeneration",),
    gguf_arch="clip",
    keys=(
        *VISION_KEYS,
        projector("llama4"),
        eps(vision("norm_eps")),
        Key("clip.vision.projector.scale_factor", _factor),
        flag("clip.use_gelu"),
    ),
    late_keys=(),
    expects=(Expect(f"{VISION}.hidden_act", ("gelu",)),),
    dims={
        **DIMS,
        "patch3": lambda c: c.one(*vision("num_channels"), default=3)
        * c.one(*vision("patch_size")) ** 2,
        "positions": lambda c: positions(c) + 1,
        "shuffled": lambda c: int(c.one(*vision("hidden_size")) / _ratio(c) ** 2),
        "adapted": width("projector_input_dim"),
        "out": width("projector_output_dim"),
        "seen": width("vision_output_dim"),
    },
    layers=KINDS,
    maps=(
        Map(f"{W}.class_embedding", ("v",), whole("v.class_embd")),
        Map(f"{W}.patch_embedding.linear.weight", ("v", "patch3"), whole("v.patch_embd.weight")),
        Map(f"{W}.positional_embedding_vlm", ("positions", "v"), whole("v.position_embd.weight")),
        *lin(f"{W}.layernorm_pre", ("v",), "v.pre_ln", ""),
        *lin(f"{W}.layernorm_post", ("v",), "v.post_ln", ""),
        *lin(f"{B}.input_layernorm", ("v",), f"{V}.ln1"),
        *lin(f"{B}.self_attn.q_proj", ("v", "v"), f"{V}.attn_q"),
        *lin(f"{B}.self_attn.k_proj", ("v", "v"), f"{V}.attn_k"),
        *lin(f"{B}.self_attn.v_proj", ("v", "v"), f"{V}.attn_v"),
        *lin(f"{B}.self_attn.o_proj", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{B}.post_attention_layernorm", ("v",), f"{V}.attn_post_norm"),
        *lin(f"{B}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{B}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down"),
        *lin(f"{W}.vision_adapter.mlp.fc1", ("adapted", "shuffled"), "mm.model.mlp.1", "", False),
        *lin(f"{W}.vision_adapter.mlp.fc2", ("out", "adapted"), "mm.model.mlp.2", "", False),
        *lin("multi_modal_projector.linear_1", ("text", "seen"), "mm.model.fc", "", False),
    ),
    drops=(r"(?!.*(multi_modal_projector|vision_model)).*",),
    defaults={
        VISION: {
            "hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34,
            "num_attention_heads": 16, "image_size": 448, "patch_size": 14, "norm_eps": 1e-5,
            "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096, "projector_output_dim": 4096,
            "vision_output_dim": 7680, "hidden_act": "gelu",
        },
        "text_config": {"hidden_size": 5120},
    },
    forced=KERNELS,
    note=(
        "llama.cpp's converter names the norms before the MLP of Llama 4's image encoder "
        "attn_post_norm, and its runtime takes them for Gemma 4's norms after attention: what it "
        "sees differs from the checkpoint"
    ),
)  # fmt: skip

FAMILY = (LLAMA4,)
