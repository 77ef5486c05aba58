"""Falcon 7b, 40b and 11b. llama.cpp: `conversion/falcon.py`."""

from __future__ import annotations

from quantkit.architectures.common import DIMS, EMBEDDINGS, layer_norm, plain_mlp, text_keys
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    grouped,
    linear,
    whole,
)

H = "transformer.h.{bid}"


def _kv_heads(config: Config) -> int:
    """Old configs name them; in newer ones `num_kv_heads` counts for the new layout alone."""
    if config.find("new_decoder_architecture"):
        n: int = config.get("num_kv_heads", "n_head_kv", "num_attention_heads")
        return n
    several = config.get("multi_query", kind="BOOL", default=True) is False
    return int(config.get("n_head_kv", default=config.get("num_attention_heads") if several else 1))


def _ffn(config: Config) -> int:
    n: int = config.get("ffn_hidden_size", default=0)
    return n or 4 * config.get("hidden_size")


def _theta(config: Config) -> float | None:
    """The base of the rotary positions, where it is not the one that llama.cpp takes (Falcon 2's,
    which its converter forgets)."""
    theta = config.rope.get("rope_theta")
    return None if theta == 10000 else theta


FALCON = Architecture(
    hf_names=("FalconForCausalLM", "RWForCausalLM"),
    gguf_arch="falcon",
    keys=(
        Key("{arch}.context_length", lambda c: 2048),
        Key("{arch}.tensor_data_layout", lambda c: "jploski", "STRING"),
        *text_keys("embedding_length"),
        Key("{arch}.feed_forward_length", _ffn),
        *text_keys("block_count", "head_count"),
        Key("{arch}.attention.head_count_kv", _kv_heads),
        *text_keys("layer_norm_epsilon"),
    ),
    late_keys=(Key("{arch}.rope.freq_base", _theta, "FLOAT32"),),
    expects=(
        Expect("alibi", (False,)),
        Expect("bias", (False,)),
        Expect("parallel_attn", (True,)),
        Expect("activation", ("gelu",)),
    ),
    aliases={"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    dims={
        **DIMS,
        "ffn": _ffn,
        "kv_heads": _kv_heads,
        "qkv": lambda c: c.head_dim * (c.get("num_attention_heads") + 2 * _kv_heads(c)),
    },
    maps=(
        Map("transformer.word_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        *layer_norm("transformer.ln_f", "output_norm"),
        EMBEDDINGS[2],
        *layer_norm(f"{H}.input_layernorm", "attn_norm"),
        *layer_norm(f"{H}.ln_mlp", "attn_norm"),
        *(
            Map(m.source, m.shape, m.rows, optional=True)
            for m in layer_norm(f"{H}.ln_attn", "attn_norm_2")
        ),
        Map(f"{H}.self_attention.query_key_value.weight", ("qkv", "hidden"),
            grouped("attn_qkv.weight")),
        *linear(f"{H}.self_attention.dense", ("hidden", "hidden"), "attn_output", bias=False),
        *plain_mlp(f"{H}.mlp", ("dense_h_to_4h", "dense_4h_to_h")),
    ),
    defaults={
        "vocab_size": 65024, "hidden_size": 4544, "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True,
    },
)  # fmt: skip

FAMILY = (FALCON,)
