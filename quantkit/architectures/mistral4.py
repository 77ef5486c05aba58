"""Mistral 4: DeepSeek's latent attention, and experts whose gates and ups stay in one tensor.

llama.cpp: `conversion/mistral3.py` (Mistral4Model).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import TEXT_KEYS, L, no_key
from quantkit.architectures.deepseek import DEEPSEEK_V2, LENGTHS, early
from quantkit.architectures.rules import Config, Map, tied_head_dropped, whole

X = f"{L}.mlp.experts"


def rope_of_mistral4(config: Config) -> dict[str, Any] | None:
    """The rotary settings of transformers' class, for a config.json that has none. None
    for other models, and where there are some."""
    said = config.first(("rope_parameters", "rope_scaling"))
    if said is not None or config.find("model_type") != "mistral4":
        return None
    return {
        "rope_type": "yarn", "factor": 128.0, "original_max_position_embeddings": 8192,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    }  # fmt: skip


MISTRAL4 = tied_head_dropped(replace(
    DEEPSEEK_V2,
    hf_names=("Mistral4ForCausalLM",),
    gguf_arch="mistral4",
    keys=(*no_key(TEXT_KEYS, ".key_length", ".value_length"), *map(early, LENGTHS)),
    maps=(
        *(m for m in DEEPSEEK_V2.maps if not m.source.startswith(X)),
        Map(f"{X}.gate_up_proj", ("experts", "2expert_ffn", "hidden"),
            whole("ffn_gate_up_exps.weight"), "experts"),
        Map(f"{X}.down_proj", ("experts", "hidden", "expert_ffn"),
            whole("ffn_down_exps.weight"), "experts"),
    ),
    defaults={"rms_norm_eps": 1e-6, "first_k_dense_replace": 0, "norm_topk_prob": True,
              "n_shared_experts": 1},
    aliases={**DEEPSEEK_V2.aliases, "rope_parameters": rope_of_mistral4},
))  # fmt: skip

FAMILY = (MISTRAL4,)
