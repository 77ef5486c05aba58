"""StarCoder 1 (one head of keys and values, learned positions) and StarCoder 2. llama.cpp:
`conversion/starcoder.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    TEXT_KEYS,
    L,
    attention,
    layer_norm,
    plain_mlp,
    text_keys,
)
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Map, linear, whole

H = "transformer.h.{bid}"
GELU = Expect("hidden_act", ("gelu_pytorch_tanh", "gelu", "gelu_new"))


def _ffn(config: Config) -> int:
    n: int = config.get("n_inner", default=0)
    return n or 4 * config.get("hidden_size")


STARCODER = Architecture(
    hf_names=("GPTBigCodeForCausalLM",),
    gguf_arch="starcoder",
    keys=(
        *text_keys("context_length", "embedding_length"),
        Key("{arch}.feed_forward_length", _ffn),
        *text_keys("block_count", "head_count"),
        Key("{arch}.attention.head_count_kv", lambda c: 1),
        Key("{arch}.attention.layer_norm_epsilon", "layer_norm_epsilon", "FLOAT32"),
    ),
    late_keys=(),
    expects=(Expect("multi_query", (True,)), Expect("scale_attn_weights", (True,))),
    aliases={
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    dims={
        **DIMS,
        "ffn": _ffn,
        "positions": lambda c: c.get("n_positions"),
        "qkv": lambda c: c.get("hidden_size") + 2 * c.head_dim,
    },
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        Map("transformer.wpe.weight", ("positions", "hidden"), whole("position_embd.weight")),
        *layer_norm("transformer.ln_f", "output_norm"),
        EMBEDDINGS[2],
        *layer_norm(f"{H}.ln_1", "attn_norm"),
        *layer_norm(f"{H}.ln_2", "ffn_norm"),
        *linear(f"{H}.attn.c_attn", ("qkv", "hidden"), "attn_qkv", bias=True),
        *linear(f"{H}.attn.c_proj", ("hidden", "hidden"), "attn_output", bias=True),
        *plain_mlp(f"{H}.mlp", ("c_fc", "c_proj"), bias=True),
    ),
    drops=(r".*\.attn\.(masked_)?bias",),
    defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
)  # fmt: skip

STARCODER2 = Architecture(
    hf_names=("Starcoder2ForCausalLM",),
    gguf_arch="starcoder2",
    keys=TEXT_KEYS,
    late_keys=(),
    expects=(GELU, Expect("norm_type", ("layer_norm",)), Expect("mlp_type", ("default",))),
    dims=DIMS,
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *layer_norm("model.norm", "output_norm"),
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        *layer_norm(f"{L}.post_attention_layernorm", "ffn_norm"),
        *attention(bias=None, out_bias=None),
        *plain_mlp(names=("c_fc", "c_proj"), bias=None),
    ),
    defaults={"rope_theta": 10000.0, "norm_epsilon": 1e-5, "tie_word_embeddings": True},
    fuses=("qkv",),
)

FAMILY = (STARCODER, STARCODER2)
