"""Refact: one head of keys and values, ALiBi. llama.cpp: `conversion/refact.py`."""

from __future__ import annotations

from quantkit.architectures.common import DIMS, EMBEDDINGS, text_keys
from quantkit.architectures.gpt2 import ALIASES, H
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    halves,
    parts,
    vector,
    whole,
)


def _ffn(config: Config) -> int:
    """Two thirds of four times the width, up to a multiple of 256: the class computes it."""
    n: int = int(2 * 4 * config.get("hidden_size") / 3)
    return -(-n // 256) * 256


REFACT = Architecture(
    hf_names=("GPTRefactForCausalLM",),
    gguf_arch="refact",
    keys=(
        *text_keys("context_length", "embedding_length"),
        Key("{arch}.feed_forward_length", _ffn),
        *text_keys("block_count", "head_count"),
        Key("{arch}.attention.head_count_kv", lambda c: 1),
        Key("{arch}.attention.layer_norm_rms_epsilon", "layer_norm_epsilon", "FLOAT32"),
    ),
    late_keys=(),
    expects=(Expect("multi_query", (True,)), Expect("attention_bias_in_fp32", (True,))),
    aliases=ALIASES,
    dims={
        **DIMS,
        "ffn": _ffn,
        "2ffn": lambda c: 2 * _ffn(c),
        "2head": lambda c: 2 * c.head_dim,
    },
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("ln_f", "output_norm"),
        EMBEDDINGS[2],
        vector(f"{H}.ln_1", "attn_norm"),
        vector(f"{H}.ln_2", "ffn_norm"),
        Map(f"{H}.attn.q.weight", ("hidden", "hidden"), whole("attn_q.weight")),
        Map(f"{H}.attn.kv.weight", ("2head", "hidden"),
            parts(("attn_k.weight", "head"), ("attn_v.weight", "head"))),
        Map(f"{H}.attn.c_proj.weight", ("hidden", "hidden"), whole("attn_output.weight")),
        Map(f"{H}.mlp.gate_up_proj.weight", ("2ffn", "hidden"),
            halves("ffn_gate.weight", "ffn_up.weight")),
        Map(f"{H}.mlp.c_proj.weight", ("hidden", "ffn"), whole("ffn_down.weight")),
    ),
    defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": False},
)  # fmt: skip

FAMILY = (REFACT,)
