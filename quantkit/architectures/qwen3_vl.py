"""The text parts of Qwen3-VL, Qwen3-ASR and Qwen3-Omni, dense and with experts.

llama.cpp: `conversion/qwen3vl.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantkit.architectures.common import (
    EMBEDDINGS,
    EXPERT_FFN,
    NORMS,
    L,
    attention,
    experts,
    qk_norms,
    router,
    transposed_experts,
    with_head_dim,
)
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.qwen import QWEN2, QWEN3, QWEN3_MOE, SHARED_FFN_IF_SAID
from quantkit.architectures.rules import Architecture, Config, Key, Shape

# llama.cpp runs these with experts in every layer, or in none


def _deepstack(config: Config) -> int:
    """What the encoder hands to the first layers: three, to transformers' class, if not said."""
    vision = config.values.get("vision_config") or {}
    known = str(config.values.get("model_type")).startswith("qwen3_vl")
    return len(vision.get("deepstack_visual_indexes", (8, 16, 24) if known else ()))


DEEPSTACK = Key("{arch}.n_deepstack_layers", _deepstack)

QWEN3_VL = replace(
    QWEN3,
    hf_names=("Qwen3VLForConditionalGeneration",),
    gguf_arch="qwen3vl",
    late_keys=(*POOLING_KEYS, DEEPSTACK),
    defaults={**QWEN3.defaults, "rope_theta": 5e6},
)

# what writes down speech, without the encoder of sound
QWEN3_ASR = replace(
    QWEN3_VL,
    hf_names=("Qwen3ASRForConditionalGeneration",),
    late_keys=(*POOLING_KEYS, Key("{arch}.n_deepstack_layers", lambda c: 0)),
    renames=((r"^thinker\.", ""),),
)


def _turned(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """Newer releases of transformers keep the matrices of experts as `[out, in]`."""
    hidden, ffn = config.get("hidden_size"), config.get("moe_intermediate_size")
    as_linear = {"gate_up_proj": (2 * ffn, hidden), "down_proj": (hidden, ffn)}
    found = {
        part: shape[1:]
        for name, shape in shapes.items()
        if (part := name.rpartition(".")[2]) in as_linear and ".mlp.experts." in name
    }
    if not found or any(found[part] != as_linear[part] for part in found):
        return None
    base = f"{L}.mlp.experts"
    maps = (m for m in QWEN3_VL_MOE.maps if not m.source.startswith(base))
    return replace(QWEN3_VL_MOE, maps=(*maps, *experts(like=False)))


QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    hf_names=("Qwen3VLMoeForConditionalGeneration",),
    gguf_arch="qwen3vlmoe",
    late_keys=(EXPERT_FFN, SHARED_FFN_IF_SAID, DEEPSTACK),
    maps=(
        *EMBEDDINGS, *NORMS, *attention(bias=None), *qk_norms(), router(), *transposed_experts(),
        *experts()[:3],  # as quantizers take them apart
    ),
    respelled=_turned,
    keys=with_head_dim(QWEN3_MOE.keys, "qwen3_vl_moe", "qwen3_vl_moe_text"),
    defaults={**QWEN2.defaults, "rope_theta": 5e6},
)  # fmt: skip

# the part of Qwen3-Omni that thinks; its names lie below `thinker.`
QWEN3_OMNI = replace(
    QWEN3_VL_MOE,
    hf_names=("Qwen3OmniMoeForConditionalGeneration",),
    keys=QWEN3_MOE.keys,
    late_keys=(*QWEN3_MOE.late_keys, Key("{arch}.n_deepstack_layers", lambda c: 0)),
    maps=QWEN3_MOE.maps,
    renames=((r"^thinker\.", ""),),
    respelled=QWEN3_MOE.respelled,
    defaults={**QWEN2.defaults, "rope_theta": 1e6},
)

FAMILY = (QWEN3_VL, QWEN3_VL_MOE, QWEN3_ASR, QWEN3_OMNI)
