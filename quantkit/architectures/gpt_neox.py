"""GPT-NeoX and Pythia. llama.cpp: `conversion/gptneox.py`."""

from __future__ import annotations

from quantkit.architectures.bloom import BLOOM
from quantkit.architectures.common import layer_norm, plain_mlp, text_keys
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

N = "gpt_neox.layers.{bid}"


def _rotated(config: Config) -> int:
    head: int = config.get("hidden_size") // config.get("num_attention_heads")
    part = config.rope.get("partial_rotary_factor", 0.25)  # transformers 5 renames it
    return int(config.get("rotary_pct", kind="FLOAT32", default=part) * head)


def _theta(config: Config) -> float | None:
    """Where it is not what llama.cpp takes; its converter never writes it."""
    theta = config.rope.get("rope_theta")
    return None if theta == 10000 else theta


GPT_NEOX = Architecture(
    hf_names=("GPTNeoXForCausalLM",),
    gguf_arch="gptneox",
    keys=(
        *text_keys("context_length", "embedding_length", "block_count"),
        Key("{arch}.feed_forward_length", "intermediate_size"),
        Key("{arch}.rope.dimension_count", _rotated),
        *text_keys("head_count"),
        Key("{arch}.use_parallel_residual", "use_parallel_residual", "BOOL", default=True),
        Key("{arch}.attention.layer_norm_epsilon", "layer_norm_eps", "FLOAT32"),
        Key("{arch}.rope.freq_base", _theta, "FLOAT32"),
    ),
    late_keys=(),
    says_file_type=False,
    expects=(
        Expect("hidden_act", ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")),
        Expect("attention_bias", (True,)),
    ),
    dims={**BLOOM.dims, "ffn": lambda c: c.get("intermediate_size")},
    maps=(
        Map("gpt_neox.embed_in.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        *layer_norm("gpt_neox.final_layer_norm", "output_norm"),
        Map("embed_out.weight", ("vocab", "hidden"), whole("output.weight")),
        # as transformers 5 keeps it
        Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight"), like="embed_out.weight"),
        *layer_norm(f"{N}.input_layernorm", "attn_norm"),
        *layer_norm(f"{N}.post_attention_layernorm", "ffn_norm"),
        *linear(f"{N}.attention.query_key_value", ("3hidden", "hidden"), "attn_qkv", grouped,
                bias=True),
        *linear(f"{N}.attention.dense", ("hidden", "hidden"), "attn_output", bias=True),
        *plain_mlp(f"{N}.mlp", ("dense_h_to_4h", "dense_4h_to_h"), bias=True),
    ),
    defaults={"layer_norm_eps": 1e-5},
)  # fmt: skip

FAMILY = (GPT_NEOX,)
