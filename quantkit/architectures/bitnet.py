"""BitNet b1.58, whose matrices have three values. llama.cpp: `conversion/bitnet.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMS,
    TEXT_KEYS,
    L,
    attention,
    gated_mlp,
    with_head_dim,
)
from quantkit.architectures.llama import kv_heads_if_said
from quantkit.architectures.rules import Architecture, Config, Expect, Key, edited, vector

_MATRICES = (*attention(), *gated_mlp())
_OTHERS = (
    *EMBEDDINGS[:2],
    *NORMS,
    vector(f"{L}.self_attn.inner_attn_ln", "attn_sub_norm"),
    vector(f"{L}.mlp.ffn_layernorm", "ffn_sub_norm", "ffn"),
)


def _packed(config: Config) -> Architecture | None:
    """Where the three values are what is stored, they are taken as they are."""
    offline = config.find("quantization_config.quantization_mode") != "online"
    packed = config.find("quantization_config.quant_method") == "bitnet" and offline
    return replace(BITNET, maps=(*_OTHERS, *_MATRICES), variant=lambda c: None) if packed else None


BITNET = Architecture(
    hf_names=("BitnetForCausalLM", "BitNetForCausalLM"),
    gguf_arch="bitnet",
    keys=with_head_dim(kv_heads_if_said(TEXT_KEYS), "llama"),
    late_keys=(
        Key("{arch}.rope.scaling.type", lambda c: "linear", "STRING"),
        Key("{arch}.rope.scaling.factor", lambda c: 1.0, "FLOAT32"),
    ),
    expects=(Expect("tie_word_embeddings", (True,)), Expect("attention_bias", (False,))),
    # the 2B is trained with the square of ReLU
    assumes=(Expect("hidden_act", ("silu",)),),
    dims=DIMS,
    maps=(*_OTHERS, *(replace(m, rows=edited(m.rows, ("ternary",))) for m in _MATRICES)),
    renames=((r"\.attn_sub_norm\.", ".inner_attn_ln."), (r"\.ffn_sub_norm\.", ".ffn_layernorm.")),
    variant=_packed,
    drops=(r"lm_head\.weight",),
)

FAMILY = (BITNET,)
