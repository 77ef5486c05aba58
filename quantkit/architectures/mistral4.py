"""Mistral 4: DeepSeek's latent attention, and experts whose gates and ups stay in one tensor.

llama.cpp: `conversion/mistral3.py` (Mistral4Model).
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import TEXT_KEYS, L, no_key
from quantkit.architectures.deepseek import DEEPSEEK_V2, LENGTHS, early
from quantkit.architectures.rules import Map, tied_head_dropped, whole

X = f"{L}.mlp.experts"


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
))  # fmt: skip

FAMILY = (MISTRAL4,)
