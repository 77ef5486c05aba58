"""Jais, which grew from GPT-2, and Jais 2. llama.cpp: `conversion/jais.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    ROPE_DIMENSION,
    TEXT_KEYS,
    L,
    attention,
    layer_norm,
    plain_mlp,
    text_keys,
)
from quantkit.architectures.gpt2 import GPT2, H, turned
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Values, edited
from quantkit.errors import ConfigError
from quantkit.source.tensors import SourceTensor

JAIS2 = Architecture(
    hf_names=("Jais2ForCausalLM",),
    gguf_arch="jais2",
    keys=TEXT_KEYS,
    late_keys=(ROPE_DIMENSION,),
    expects=(Expect("hidden_act", ("relu2",)),),
    dims=DIMS,
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *layer_norm("model.norm", "output_norm"),
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        *layer_norm(f"{L}.post_attention_layernorm", "ffn_norm"),
        *attention(bias=True, out_bias=True),
        *plain_mlp(bias=True),
    ),
    defaults={"layer_norm_eps": 1e-5, "hidden_act": "relu2"},
    fuses=("qkv",),
)  # fmt: skip


def _scaled(config: Config) -> Architecture:
    """With the factors of the embeddings and of the logits put in."""
    embeddings = config.get("mup_embeddings_scale", "embeddings_scale", kind="FLOAT32")
    if (logits := config.find("mup_output_alpha")) is not None:
        logits *= config.get("mup_width_scale", kind="FLOAT32")
    else:
        logits = config.get("width_scale", kind="FLOAT32")
    factors = {"transformer.wte.weight": embeddings, "lm_head.weight": logits}
    return replace(
        JAIS,
        maps=tuple(
            replace(m, rows=edited(m.rows, ("scale", factors[m.source])))
            if m.source in factors
            else m
            for m in JAIS.maps
        ),
        variant=lambda c: None,
    )


def _slopes(sources: Mapping[str, SourceTensor], values: Values) -> dict[str, Any]:
    found = next((t for name, t in sources.items() if name.endswith("relative_pe.slopes")), None)
    return {} if found is None else {"slopes": values(found)}


def _bias(config: Config) -> float:
    """The largest bias of ALiBi, 8 where there are no slopes. Raises ConfigError."""
    slopes, n = config.find("slopes"), config.get("num_attention_heads")
    if slopes is None:
        return 8.0
    if len(slopes) != n or not 0 < slopes[0] < 1:
        raise ConfigError(f"{config.where}: {len(slopes)} slopes of ALiBi for {n} heads")
    return float(-round(math.log2(slopes[0]) * 2 ** int(math.log2(n))))


JAIS = replace(
    GPT2,
    hf_names=("JAISLMHeadModel",),
    gguf_arch="jais",
    first_keys=(Key("{arch}.attention.max_alibi_bias", _bias, "FLOAT32"),),
    keys=(
        *text_keys("block_count", "context_length", "embedding_length"),
        Key("{arch}.feed_forward_length", "n_inner"),
        *text_keys("head_count", "layer_norm_epsilon"),
    ),
    expects=(
        Expect("activation_function", ("swiglu",), required=True),
        Expect("position_embedding_type", ("alibi",), required=True),
    ),
    # scores are divided by the width of a head, not by its root
    assumes=(Expect("scale_qk_dot_by_d", (True,)), Expect("mup_scale_qk_dot_by_d", (True,))),
    dims={**GPT2.dims, "ffn": lambda c: c.get("n_inner")},
    maps=(
        *(m for m in GPT2.maps if "wpe" not in m.source),
        *turned(f"{H}.mlp.c_fc2", ("hidden", "ffn"), "ffn_gate"),
    ),
    drops=(*GPT2.drops, r"transformer\.relative_pe\.slopes"),
    learned=_slopes,
    variant=_scaled,
    defaults={"layer_norm_epsilon": 1e-5},
)

FAMILY = (JAIS, JAIS2)
