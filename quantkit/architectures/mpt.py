"""MPT, whose positions are biases of attention. llama.cpp: `conversion/mpt.py`."""

from __future__ import annotations

from quantkit.architectures.bloom import BLOOM
from quantkit.architectures.common import EMBEDDINGS, layer_norm, text_keys
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Map, linear, whole

B = "transformer.blocks.{bid}"


def _kv_heads(config: Config) -> int:
    n: int = config.get("attn_config.kv_n_heads", "num_attention_heads")
    return n


def _bias(config: Config) -> float:
    if not config.get("attn_config.alibi", kind="BOOL", default=True):
        return 0.0
    return float(config.get("attn_config.alibi_bias_max", kind="FLOAT32", default=8))


MPT = Architecture(
    hf_names=("MPTForCausalLM",),
    gguf_arch="mpt",
    keys=(
        *text_keys("context_length", "embedding_length", "block_count"),
        Key("{arch}.feed_forward_length", BLOOM.dims["ffn"]),
        *text_keys("head_count"),
        Key("{arch}.attention.head_count_kv", "attn_config.kv_n_heads", default=None),
        Key("{arch}.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32"),
        Key("{arch}.attention.clamp_kqv", "attn_config.clip_qkv", "FLOAT32", default=None),
        Key("{arch}.attention.max_alibi_bias", _bias, "FLOAT32"),
    ),
    late_keys=(),
    says_file_type=False,
    expects=(
        Expect("attn_config", required=True), Expect("expansion_ratio", (4,)),
        Expect("logit_scale", (None,)), Expect("norm_type", ("low_precision_layernorm",
               "layernorm")),
        Expect("attn_config.softmax_scale", (None,)), Expect("attn_config.prefix_lm", (False,)),
        Expect("attn_config.rope", (False,)),
        # llama.cpp ends at norms of queries and keys (ggml_reshape of what is not contiguous)
        Expect("attn_config.qk_ln", (False,)), Expect("attn_config.qk_gn", (False,)),
    ),
    aliases={
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
    },
    dims={
        **BLOOM.dims,
        "kv_heads": _kv_heads,
        "qkv": lambda c: c.head_dim * (c.get("num_attention_heads") + 2 * _kv_heads(c)),
        "positions": lambda c: c.get("max_seq_len"),
    },
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        Map("transformer.wpe.weight", ("positions", "hidden"), whole("position_embd.weight"),
            optional=True),
        *layer_norm("transformer.norm_f", "output_norm", bias=None),
        EMBEDDINGS[2],
        *layer_norm(f"{B}.norm_1", "attn_norm", bias=None),
        *layer_norm(f"{B}.norm_2", "ffn_norm", bias=None),
        *linear(f"{B}.attn.Wqkv", ("qkv", "hidden"), "attn_qkv"),
        *linear(f"{B}.attn.out_proj", ("hidden", "hidden"), "attn_output"),
        *linear(f"{B}.ffn.up_proj", ("ffn", "hidden"), "ffn_up"),
        *linear(f"{B}.ffn.down_proj", ("hidden", "ffn"), "ffn_down"),
    ),
    defaults={"tie_word_embeddings": True},
)  # fmt: skip

FAMILY = (MPT,)
