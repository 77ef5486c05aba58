"""CodeShell. llama.cpp: `conversion/codeshell.py`."""

from __future__ import annotations

from quantkit.architectures.bloom import BLOOM
from quantkit.architectures.common import text_keys
from quantkit.architectures.rules import Architecture, Expect, Key
from quantkit.architectures.starcoder import STARCODER

CODESHELL = Architecture(
    hf_names=("CodeShellForCausalLM",),
    gguf_arch="codeshell",
    keys=(
        *text_keys("context_length", "embedding_length"),
        Key("{arch}.feed_forward_length", BLOOM.dims["ffn"]),
        *text_keys("block_count", "head_count", "head_count_kv", "layer_norm_epsilon"),
    ),
    late_keys=(
        Key("{arch}.rope.freq_base", lambda c: 10000.0, "FLOAT32"),
        Key("{arch}.rope.scaling.type", lambda c: "linear", "STRING"),
        Key("{arch}.rope.scaling.factor", lambda c: 1.0, "FLOAT32"),
    ),
    expects=(
        Expect("position_embedding_type", ("rope",)), Expect("rope_scaling", (None,)),
        Expect("group_query_attention", (True,)), Expect("scale_attn_weights", (True,)),
    ),
    aliases={**STARCODER.aliases, "num_key_value_heads": "num_query_groups"},
    dims={
        **BLOOM.dims,
        "kv_heads": lambda c: c.get("num_key_value_heads"),
        "qkv": lambda c: c.head_dim
        * (c.get("num_attention_heads") + 2 * c.get("num_key_value_heads")),
    },
    # no table of positions, and a head of its own
    maps=tuple(m for m in STARCODER.maps if "wpe" not in m.source),
    renames=((r"^(?=(h\.\d+|wte|ln_f)\.)", "transformer."),),
    defaults={"layer_norm_epsilon": 1e-5, "num_query_groups": 4},
)  # fmt: skip

FAMILY = (CODESHELL,)
