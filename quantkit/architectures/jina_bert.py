"""Jina 2: a BERT with ALiBi and gated networks.

llama.cpp: `conversion/bert.py`, JinaBertV2Model.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.bert import BERT, LAYER, E, embeddings
from quantkit.architectures.common import layer_norm
from quantkit.architectures.rules import Expect, linear

JINA_BERT_V2 = replace(
    BERT,
    hf_names=("JinaBertModel", "JinaBertForMaskedLM"),
    gguf_arch="jina-bert-v2",
    expects=(
        Expect("position_embedding_type", ("alibi",)), Expect("feed_forward_type", ("geglu",)),
    ),
    dims={**BERT.dims, "2ffn": lambda c: 2 * c.get("intermediate_size")},
    maps=(
        *embeddings("embeddings.LayerNorm"),
        *LAYER[:10],  # of attention
        *(
            replace(m, optional=True)  # of the model for code
            for name, role in (("attention.self.layer_norm_q", "attn_q_norm"),
                               ("attention.self.layer_norm_k", "attn_k_norm"),
                               ("layer_norm_1", "attn_norm_2"))
            for m in layer_norm(f"{E}.{name}", role)
        ),
        *layer_norm(f"{E}.mlp.layernorm", "layer_output_norm"),
        *layer_norm(f"{E}.layer_norm_2", "layer_output_norm"),
        *linear(f"{E}.mlp.gated_layers", ("2ffn", "hidden"), "ffn_up", bias=None),
        *linear(f"{E}.mlp.up_gated_layer", ("2ffn", "hidden"), "ffn_up", bias=None),
        *linear(f"{E}.mlp.wo", ("hidden", "ffn"), "ffn_down", bias=True),
        *linear(f"{E}.mlp.down_layer", ("hidden", "ffn"), "ffn_down", bias=True),
    ),
)  # fmt: skip

FAMILY = (JINA_BERT_V2,)
