"""GPT-2, whose matrices are kept as `[in, out]`, and ruGPT3-XL, which is run as if it were one.

llama.cpp: `conversion/gpt2.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    TEXT_KEYS,
    L,
    layer_norm,
    plain_mlp,
    text_keys,
)
from quantkit.architectures.llama import kv_heads_if_said
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    padded,
    transposed,
    whole,
)

H = "transformer.h.{bid}"
ALIASES: dict[str, Any] = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    # the table of positions is as long as n_positions says; n_ctx is the same, or left out
    "max_position_embeddings": lambda c: c.get("n_positions", "n_ctx"),
}  # fmt: skip


def _ffn(config: Config) -> int:
    n: int = config.get("n_inner", default=0)
    return n or 4 * config.get("hidden_size")


def turned(source: str, shape: tuple[str, str], role: str) -> tuple[Map, ...]:
    weight, bias = linear(source, shape, role, transposed, bias=True)
    return weight, Map(bias.source, shape[1:], whole(f"{role}.bias"))


GPT2 = Architecture(
    hf_names=("GPT2LMHeadModel",),
    gguf_arch="gpt2",
    keys=(
        *text_keys("block_count", "context_length", "embedding_length"),
        Key("{arch}.feed_forward_length", _ffn),
        *text_keys("head_count", "layer_norm_epsilon"),
    ),
    late_keys=(),
    expects=(
        Expect("activation_function", ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh")),
        Expect("scale_attn_weights", (True,)),
        Expect("scale_attn_by_inverse_layer_idx", (False,)),
        Expect("add_cross_attention", (False,)),
    ),
    aliases=ALIASES,
    dims={
        **DIMS,
        "ffn": _ffn,
        "positions": lambda c: c.get("max_position_embeddings"),
        "3hidden": lambda c: 3 * c.get("hidden_size"),
    },
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        Map("transformer.wpe.weight", ("positions", "hidden"), whole("position_embd.weight")),
        *layer_norm("transformer.ln_f", "output_norm"),
        EMBEDDINGS[2],
        *layer_norm(f"{H}.ln_1", "attn_norm"),
        *layer_norm(f"{H}.ln_2", "ffn_norm"),
        *turned(f"{H}.attn.c_attn", ("hidden", "3hidden"), "attn_qkv"),
        *turned(f"{H}.attn.c_proj", ("hidden", "hidden"), "attn_output"),
        *turned(f"{H}.mlp.c_fc", ("hidden", "ffn"), "ffn_up"),
        *turned(f"{H}.mlp.c_proj", ("ffn", "hidden"), "ffn_down"),
    ),
    renames=((r"^(?=(h\.\d+|wte|wpe|ln_f)\.)", "transformer."),),
    drops=(r".*\.attn\.(masked_)?bias",),
    defaults={
        "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    },
)  # fmt: skip


def _below(part: str, after: str) -> tuple[Map, ...]:
    """The rows of queries, keys or values in the one matrix that holds them all."""
    weight, bias = linear(f"{L}.self_attn.{part}_proj", ("hidden", "hidden"), "attn_qkv", bias=True)
    return (
        replace(weight, rows=padded("attn_qkv.weight", "3hidden", after)),
        replace(bias, rows=padded("attn_qkv.bias", "3hidden", after)),
    )


RUGPT3_XL = replace(
    GPT2,
    hf_names=("RuGPT3XLForCausalLM",),
    keys=kv_heads_if_said(TEXT_KEYS),
    expects=(Expect("hidden_act", ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh")),),
    # every other layer of the model sees blocks of the text alone
    assumes=(Expect("sparse_mode", ("none", "dense", "all")),),
    aliases={},
    dims={**DIMS, "positions": GPT2.dims["positions"], "3hidden": GPT2.dims["3hidden"],
          "2hidden": lambda c: 2 * c.get("hidden_size")},
    maps=(
        EMBEDDINGS[0],
        Map("model.embed_positions.weight", ("positions", "hidden"), whole("position_embd.weight")),
        *layer_norm("model.norm", "output_norm"),
        EMBEDDINGS[2],
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        *layer_norm(f"{L}.post_attention_layernorm", "ffn_norm"),
        *_below("q", ""),
        *_below("k", "hidden"),
        *_below("v", "2hidden"),
        *linear(f"{L}.self_attn.o_proj", ("hidden", "hidden"), "attn_output", bias=True),
        *plain_mlp(bias=True),
    ),
    renames=(),
    defaults={},
)  # fmt: skip

FAMILY = (GPT2, RUGPT3_XL)
