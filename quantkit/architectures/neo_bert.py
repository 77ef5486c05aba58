"""NeoBERT. llama.cpp: `conversion/bert.py` (NeoBert).

The matrix of query, key and value has them head by head, and llama.cpp's graph wants all queries
first: its converter leaves them as they are, and its vectors are not the model's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.bert import BERT, NO_WEIGHTS, classifies, labels
from quantkit.architectures.common import DIMS
from quantkit.architectures.rules import Config, Expect, Key, Map, grouped, linear, vector, whole

T = "transformer_encoder.{bid}"


def _ffn(config: Config) -> int:
    """Two thirds of what config.json says, as the gate takes a third of the weights."""
    return int(2 * config.one("intermediate_size") / 3)


_HEAD: dict[str, Any] = {"layers": "head", "bias": True}

NEO_BERT = replace(
    BERT,
    hf_names=("NeoBERT", "NeoBERTLMHead", "NeoBERTForSequenceClassification"),
    gguf_arch="neo-bert",
    late_keys=(
        *BERT.late_keys,
        Key("{arch}.feed_forward_length", _ffn),
        Key("{arch}.rope.freq_base", lambda c: 10000.0, "FLOAT32"),
        Key("{arch}.rope.scaling.type", lambda c: "none", "STRING"),
        Key("{arch}.attention.layer_norm_rms_epsilon", "norm_eps", "FLOAT32", default=1e-6),
        Key("{arch}.pooling_type", lambda c: 2),
    ),
    expects=(Expect("hidden_act", ("SwiGLU", "swiglu")), Expect("rope", (True,)),
             Expect("rms_norm", (True,)), Expect("ngpt", (False,))),
    aliases={"max_position_embeddings": lambda c: c.get("max_length", "max_position_embeddings",
                                                        default=None)},
    dims={
        **DIMS,
        "kv_heads": lambda c: c.get("num_attention_heads"),
        "ffn": _ffn,
        "2ffn": lambda c: 2 * _ffn(c),
        "3hidden": lambda c: 3 * c.get("hidden_size"),
        "labels": lambda c: len(labels(c) or ()),
    },
    maps=(
        Map("encoder.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("layer_norm", "enc.output_norm"),
        vector(f"{T}.attention_norm", "attn_norm"),
        vector(f"{T}.ffn_norm", "ffn_norm"),
        Map(f"{T}.qkv.weight", ("3hidden", "hidden"), grouped("attn_qkv.weight")),
        *linear(f"{T}.wo", ("hidden", "hidden"), "attn_output", bias=False),
        *linear(f"{T}.ffn.w12", ("2ffn", "hidden"), "ffn_up", bias=False),
        *linear(f"{T}.ffn.w3", ("hidden", "ffn"), "ffn_down", bias=False),
        *linear("dense", ("hidden", "hidden"), "cls", **_HEAD),
        *linear("classifier", ("labels", "hidden"), "cls.output", **_HEAD),
    ),
    layers={"head": lambda c, bid: classifies(c)},
    renames=((r"^model\.", ""),),
    drops=(r"decoder\..*", r"pooler\..*", r"freqs_cis", *NO_WEIGHTS),
    defaults={"tie_word_embeddings": True},
    fuses=(),
)  # fmt: skip

FAMILY = (NEO_BERT,)
