"""Ling and Ring (BailingMoE): one tensor for queries, keys and values. llama.cpp:
`conversion/bailingmoe.py`."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.architectures.common import (
    DENSE_FIRST,
    DIMS,
    DOWN_GATE_UP,
    EXPERT_FFN,
    LEADING_DENSE,
    NORMS,
    RMS_NORM,
    ROPE_DIMENSION,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    WEIGHTS_NORM,
    L,
    expert_dims,
    experts,
    gated_mlp,
    router,
)
from quantkit.rules import (
    Architecture,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    edited,
    parts,
    vector,
    whole,
)


def _head(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """The output matrix, whose columns the model brings to length one as it runs."""
    rows = whole("output.weight")
    return (edited(rows, ("unit_columns",)) if dims["norm_head"] else rows)(dims, source, xid)


BAILING = Architecture(
    hf_names=("BailingMoeForCausalLM",),
    gguf_arch="bailingmoe",
    keys=TEXT_KEYS,
    late_keys=(
        ROPE_DIMENSION,
        LEADING_DENSE,
        VOCAB_SIZE,
        EXPERT_FFN,
        Key("{arch}.expert_weights_scale", lambda c: 1.0, "FLOAT32"),
        Key("{arch}.expert_shared_count", "num_shared_experts"),
        WEIGHTS_NORM,
    ),
    expects=(RMS_NORM, SILU, Expect("use_bias", (False,)), Expect("use_qkv_bias", (False,))),
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("num_shared_experts") * c.get("moe_intermediate_size"),
        "norm_head": lambda c: int(c.get("norm_head", kind="BOOL", default=False)),
        "qkv": lambda c: c.head_dim
        * (c.get("num_attention_heads") + 2 * c.get("num_key_value_heads")),
    },
    maps=(
        Map("model.word_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("model.norm", "output_norm"),
        Map("lm_head.weight", ("vocab", "hidden"), _head),
        *NORMS,
        Map(f"{L}.attention.query_key_value.weight", ("qkv", "hidden"),
            parts(("attn_q.weight", "q", "heads"), ("attn_k.weight", "kv", "kv_heads"),
                  ("attn_v.weight", "kv"))),
        Map(f"{L}.attention.dense.weight", ("hidden", "q"), whole("attn_output.weight")),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
    ),
    layers=DENSE_FIRST,
    expert_order=DOWN_GATE_UP,
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (BAILING,)
