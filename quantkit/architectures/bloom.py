"""BLOOM, whose positions are biases of attention. llama.cpp: `conversion/bloom.py`."""

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


def _ffn(config: Config) -> int:
    n: int = 4 * config.get("hidden_size")
    return n


BLOOM = Architecture(
    hf_names=("BloomForCausalLM", "BloomModel"),
    gguf_arch="bloom",
    keys=(
        Key("{arch}.context_length", ("seq_length", "hidden_size")),
        *text_keys("embedding_length"),
        Key("{arch}.feed_forward_length", _ffn),
        *text_keys("block_count", "head_count"),
        Key("{arch}.attention.head_count_kv", "num_attention_heads"),
        *text_keys("layer_norm_epsilon"),
    ),
    late_keys=(),
    expects=(Expect("apply_residual_connection_post_layernorm", (False,)),),
    aliases={
        "hidden_size": lambda c: c.get("hidden_size", "n_embed"),
        "num_attention_heads": lambda c: c.get("n_head", "num_attention_heads", default=8),
        "num_hidden_layers": lambda c: c.get("n_layer", "num_hidden_layers"),
    },
    dims={
        **DIMS,
        "ffn": _ffn,
        "kv_heads": lambda c: c.get("num_attention_heads"),
        "3hidden": lambda c: 3 * c.get("hidden_size"),
    },
    maps=(
        Map("transformer.word_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        *layer_norm("transformer.word_embeddings_layernorm", "token_embd_norm"),
        *layer_norm("transformer.ln_f", "output_norm"),
        EMBEDDINGS[2],
        *layer_norm(f"{H}.input_layernorm", "attn_norm"),
        *layer_norm(f"{H}.post_attention_layernorm", "ffn_norm"),
        *linear(f"{H}.self_attention.query_key_value", ("3hidden", "hidden"), "attn_qkv", grouped,
                bias=True),
        *linear(f"{H}.self_attention.dense", ("hidden", "hidden"), "attn_output", bias=True),
        *plain_mlp(f"{H}.mlp", ("dense_h_to_4h", "dense_4h_to_h"), bias=True),
    ),
    renames=((r"^(?=(h\.\d+|word_embeddings|word_embeddings_layernorm|ln_f)\.)", "transformer."),),
    defaults={"vocab_size": 250880, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
)  # fmt: skip

FAMILY = (BLOOM,)
