"""The first Qwen, without what it does in texts that are longer than those of its training (its
`use_dynamic_ntk` and `use_logn_attn`). llama.cpp: `conversion/qwen.py`, QwenModel.
"""

from __future__ import annotations

from quantkit.architectures.common import DIMS, EMBEDDINGS, TEXT_KEYS
from quantkit.architectures.gpt2 import H
from quantkit.architectures.llama import kv_heads_if_said
from quantkit.architectures.rules import Architecture, Expect, Key, Map, linear, vector, whole

QWEN = Architecture(
    hf_names=("QWenLMHeadModel",),
    gguf_arch="qwen",
    keys=kv_heads_if_said(TEXT_KEYS),
    # what its loader asks for; the converter has it under the other name alone
    late_keys=(Key("{arch}.attention.layer_norm_rms_epsilon", "layer_norm_epsilon", "FLOAT32"),),
    expects=(Expect("rotary_pct", (1.0,)), Expect("no_bias", (True,))),
    dims={
        **DIMS,
        "3q": lambda c: 3 * c.get("hidden_size"),
        "half": lambda c: c.get("intermediate_size") // 2,
    },
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("transformer.ln_f", "output_norm"),
        EMBEDDINGS[2],
        vector(f"{H}.ln_1", "attn_norm"),
        vector(f"{H}.ln_2", "ffn_norm"),
        *linear(f"{H}.attn.c_attn", ("3q", "hidden"), "attn_qkv", bias=True),
        *linear(f"{H}.attn.c_proj", ("hidden", "hidden"), "attn_output", bias=False),
        *linear(f"{H}.mlp.w1", ("half", "hidden"), "ffn_up", bias=False),
        *linear(f"{H}.mlp.w2", ("half", "hidden"), "ffn_gate", bias=False),
        *linear(f"{H}.mlp.c_proj", ("hidden", "half"), "ffn_down", bias=False),
    ),
    drops=(r"transformer\.visual\..*",),
)

FAMILY = (QWEN,)
