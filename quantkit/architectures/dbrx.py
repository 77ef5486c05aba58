"""DBRX: experts stacked as rows of one matrix. llama.cpp: `conversion/dbrx.py`."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.architectures.common import text_keys
from quantkit.architectures.rules import (
    Architecture,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    piece,
    vector,
    whole,
)

L = "transformer.blocks.{bid}"
MLP = f"{L}.ffn.experts.mlp"
ATTN = f"{L}.norm_attn_norm"


def _down(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """Every expert's rows `[ffn, hidden]` become columns."""
    ffn, hidden = dims["ffn"], dims["hidden"]
    shape = (dims["experts"], hidden, ffn)
    return [
        piece("ffn_down_exps.weight", shape, hidden, x * hidden, x * ffn, height=ffn)
        for x in range(dims["experts"])
    ]


DBRX = Architecture(
    hf_names=("DbrxForCausalLM",),
    gguf_arch="dbrx",
    keys=(
        *text_keys("block_count", "context_length", "embedding_length", "feed_forward_length",
                   "head_count", "head_count_kv", "freq_base"),
        Key("{arch}.attention.clamp_kqv", "attn_config.clip_qkv", "FLOAT32"),
        *text_keys("expert_count", "expert_used_count"),
        Key("{arch}.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32"),
    ),
    late_keys=(
        # transformers 5 writes a table of rotary settings beside it, which has its own default
        Key("{arch}.rope.freq_base", "rope_theta", "FLOAT32", default=10000.0),
    ),
    expects=(Expect("ffn_config.ffn_act_fn.name", ("silu",)),),
    assumes=(Expect("ffn_config.moe_normalize_expert_weights", (1.0,)),),
    aliases={
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_seq_len",
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "attn_config.kv_n_heads",
        "rope_theta": "attn_config.rope_theta",
        "intermediate_size": "ffn_config.ffn_hidden_size",
        "num_experts": "ffn_config.moe_num_experts",
        "num_experts_per_tok": "ffn_config.moe_top_k",
    },
    dims={
        "vocab": lambda c: c.get("vocab_size"),
        "hidden": lambda c: c.get("hidden_size"),
        "ffn": lambda c: c.get("intermediate_size"),
        "experts": lambda c: c.get("num_experts"),
        "used": lambda c: c.get("num_experts_per_tok"),
        "experts_ffn": lambda c: c.get("num_experts") * c.get("intermediate_size"),
        "qkv": lambda c: c.head_dim
        * (c.get("num_attention_heads") + 2 * c.get("num_key_value_heads")),
    },
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("transformer.norm_f", "output_norm"),
        Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight")),
        vector(f"{ATTN}.norm_1", "attn_norm"),
        vector(f"{ATTN}.norm_2", "attn_output_norm"),
        Map(f"{ATTN}.attn.Wqkv.weight", ("qkv", "hidden"), whole("attn_qkv.weight")),
        Map(f"{ATTN}.attn.out_proj.weight", ("hidden", "hidden"), whole("attn_output.weight")),
        Map(f"{L}.ffn.router.layer.weight", ("experts", "hidden"), whole("ffn_gate_inp.weight")),
        Map(f"{MLP}.w1", ("experts_ffn", "hidden"),
            whole("ffn_gate_exps.weight", "experts", "ffn", "hidden")),
        Map(f"{MLP}.v1", ("experts_ffn", "hidden"),
            whole("ffn_up_exps.weight", "experts", "ffn", "hidden")),
        Map(f"{MLP}.w2", ("experts_ffn", "hidden"), _down),
    ),
    defaults={"num_experts": 4, "num_experts_per_tok": 1, "num_key_value_heads": 1},
    rounds=frozenset({"ffn_gate_inp", "token_embd", "output"}),
    takes_fp8_as_q8=False,
)  # fmt: skip

FAMILY = (DBRX,)
