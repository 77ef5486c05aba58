"""PLM: latent attention with one query matrix, and a network of squared ReLU. llama.cpp:
`conversion/plm.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import EMBEDDINGS, NORMS, TEXT_KEYS, VOCAB_SIZE, plain_mlp
from quantkit.architectures.deepseek import DEEPSEEK_V2, LATENT
from quantkit.architectures.rules import Expect, Key, whole

EXPERT_DIMS = ("experts", "used", "expert_ffn", "2expert_ffn", "shared_ffn")

PLM = replace(
    DEEPSEEK_V2,
    hf_names=("PLMForCausalLM",),
    gguf_arch="plm",
    keys=TEXT_KEYS,
    late_keys=(
        VOCAB_SIZE,
        Key("{arch}.attention.kv_lora_rank", "kv_lora_rank"),
        Key("{arch}.attention.key_length",
            lambda c: c.get("qk_nope_head_dim") + c.get("qk_rope_head_dim")),
        Key("{arch}.attention.value_length", "v_head_dim"),
        Key("{arch}.rope.dimension_count", "qk_rope_head_dim"),
    ),
    expects=(
        Expect("hidden_act", ("relu2",)), Expect("q_lora_rank", (None,)),
        Expect("rope_scaling", (None,)), Expect("tie_word_embeddings", (True,)),
    ),
    maps=(
        *EMBEDDINGS[:2],
        *NORMS,
        # keys and values are made where they are used, so that their matrix stays as it is
        *(
            replace(m, rows=whole("attn_kv_b.weight") if "kv_b" in m.source else m.rows, layers="")
            for m in LATENT
            if m.layers != "two"
        ),
        *plain_mlp(),
    ),
    dims={k: v for k, v in DEEPSEEK_V2.dims.items() if k not in EXPERT_DIMS},
    layers={},
    drops=(*DEEPSEEK_V2.drops, r"lm_head\.weight"),
    defaults={},
    expert_order=(),
    assumes=(),
)  # fmt: skip

FAMILY = (PLM,)
