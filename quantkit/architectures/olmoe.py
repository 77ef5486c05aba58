"""OLMoE: norms over all queries and all keys. llama.cpp: `conversion/olmo.py`, OlmoeModel."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    NORMS,
    NOT_NORMALIZED,
    SILU,
    TEXT_KEYS,
    attention,
    expert_dims,
    experts,
    qk_norms,
    router,
)
from quantkit.architectures.rules import Architecture, Expect, Key

OLMOE = Architecture(
    hf_names=("OlmoeForCausalLM",),
    gguf_arch="olmoe",
    keys=TEXT_KEYS,
    # the same for every model, whatever config.json says
    late_keys=(Key("{arch}.attention.layer_norm_rms_epsilon", lambda c: 1e-5, "FLOAT32"),),
    expects=(SILU, Expect("clip_qkv", (None,)), Expect("rms_norm_eps", (1e-5,))),
    assumes=(NOT_NORMALIZED,),
    dims={**DIMS, **expert_dims("intermediate_size")},
    maps=(
        *EMBEDDINGS, *NORMS, *attention(), *qk_norms(("q", "kv")), router(), *experts(),
    ),
    expert_order=DOWN_GATE_UP,
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (OLMOE,)
