"""Baichuan 1 and 2: query, key and value are one matrix. llama.cpp: `conversion/baichuan.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    EMBEDDINGS,
    NORMS,
    ROPE_DIMENSION,
    TEXT_KEYS,
    L,
    gated_mlp,
)
from quantkit.architectures.llama import LLAMA, kv_heads_if_said
from quantkit.architectures.rules import Config, Expect, Key, Map, linear, parts
from quantkit.errors import ConfigError

LAYOUT = Key("{arch}.tensor_data_layout", lambda c: "Meta AI original pth", "STRING")


def _heads(config: Config) -> int:
    """Every head has its own keys and values: a third of the matrix is each. Raises ConfigError."""
    heads: int = config.get("num_attention_heads")
    if config.get("num_key_value_heads", default=heads) != heads:
        raise ConfigError(f"{config.where}: 'num_key_value_heads' must be 'num_attention_heads'")
    return heads


BAICHUAN = replace(
    LLAMA,
    hf_names=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    gguf_arch="baichuan",
    keys=kv_heads_if_said(TEXT_KEYS),
    late_keys=(LAYOUT, ROPE_DIMENSION),
    expects=(
        *LLAMA.expects,
        Expect("rope_scaling", (None,)),
        # how positions are encoded follows from this, and llama.cpp ends at other numbers
        Expect("num_hidden_layers", (32, 40)),
    ),
    aliases={"max_position_embeddings": lambda c: c.get("max_position_embeddings",
                                                        "model_max_length", default=None)},
    dims={
        **LLAMA.dims, "kv_heads": _heads, "3hidden": lambda c: 3 * c.get("hidden_size"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        Map(f"{L}.self_attn.W_pack.weight", ("3hidden", "hidden"),
            parts(("attn_q.weight", "hidden", "heads"), ("attn_k.weight", "hidden", "heads"),
                  ("attn_v.weight", "hidden"))),
        *linear(f"{L}.self_attn.o_proj", ("hidden", "q"), "attn_output", bias=False),
        *gated_mlp(),
    ),
    renames=(),
    defaults={},
    computed={},
)  # fmt: skip

FAMILY = (BAICHUAN,)
