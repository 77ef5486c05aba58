"""Spark X2.5: windows in some layers, and a gate for each head. llama.cpp:
`conversion/spark2_5.py`."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMS,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    gated_mlp,
    kv_heads,
    slides,
)
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Map, linear, whole


def _rotated(kind: str) -> Callable[[Config], int]:
    def read(config: Config) -> int:
        part = config.get(f"rope_parameters.{kind}.partial_rotary_factor", kind="FLOAT32")
        return int(config.head_dim * part)

    return read


SPARK = Architecture(
    hf_names=("Spark2_5ForCausalLM",),
    gguf_arch="spark2_5",
    keys=TEXT_KEYS,
    late_keys=(
        VOCAB_SIZE,
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", slides, "BOOL"),
        Key("{arch}.rope.dimension_count", _rotated("full_attention")),
        Key("{arch}.rope.dimension_count_swa", _rotated("sliding_attention")),
    ),
    expects=(
        Expect("hidden_act", ("gelu",), required=True), Expect("layer_types", required=True),
        Expect("gate_attn_act_mode", ("sigmoid",), required=True),
        Expect("headwise_attn_output_gate", (True,), required=True),
    ),
    dims={
        **DIMS,
        "qkv": lambda c: c.head_dim * (c.get("num_attention_heads") + 2 * kv_heads(c)),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        Map(f"{L}.self_attn.q_k_v_proj.weight", ("qkv", "hidden"), whole("attn_qkv.weight")),
        *linear(f"{L}.self_attn.g_proj", ("heads", "hidden"), "attn_gate", bias=False),
        *linear(f"{L}.self_attn.o_proj", ("hidden", "q"), "attn_output", bias=False),
        *gated_mlp(),
    ),
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (SPARK,)
