"""InternLM 2 and 3. llama.cpp: `conversion/internlm.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    RMS_NORM,
    ROPE_DIMENSION,
    TEXT_KEYS,
    VOCAB_SIZE,
    W123,
    L,
    gated_mlp,
    kv_heads,
)
from quantkit.architectures.llama import LLAMA
from quantkit.architectures.rules import (
    Architecture,
    Dims,
    Expect,
    Map,
    Piece,
    Shape,
    linear,
    piece,
    rotary_order,
    vector,
    whole,
)


def _groups(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """A group of each key-value head: its queries, its keys and its values."""
    groups, n = dims["kv_heads"], dims["head"]
    queries = dims["heads"] // groups
    order = rotary_order(n)
    q, kv = (groups * queries * n, source[1]), (groups * n, source[1])
    out = []
    for g in range(groups):
        at = g * (queries + 2) * n
        out += [
            piece("attn_q.weight", q, queries * n, g * queries * n, at, order=order),
            piece("attn_k.weight", kv, n, g * n, at + queries * n, order=order),
            piece("attn_v.weight", kv, n, g * n, at + (queries + 1) * n),
        ]
    return out


INTERNLM2 = Architecture(
    hf_names=("InternLM2ForCausalLM",),
    gguf_arch="internlm2",
    keys=TEXT_KEYS,
    late_keys=(),
    expects=(RMS_NORM, Expect("hidden_act", ("silu",)), Expect("bias", (False,))),
    dims={
        **DIMS,
        "qkv": lambda c: c.head_dim * (c.get("num_attention_heads") + 2 * kv_heads(c)),
    },
    maps=(
        Map("model.tok_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        EMBEDDINGS[1],
        Map("output.weight", ("vocab", "hidden"), whole("output.weight")),
        vector(f"{L}.attention_norm", "attn_norm"),
        vector(f"{L}.ffn_norm", "ffn_norm"),
        Map(f"{L}.attention.wqkv.weight", ("qkv", "hidden"), _groups),
        *linear(f"{L}.attention.wo", ("hidden", "q"), "attn_output", bias=False),
        *gated_mlp(f"{L}.feed_forward", names=W123),
    ),
)

INTERNLM3 = replace(
    LLAMA,
    hf_names=("InternLM3ForCausalLM",),
    keys=TEXT_KEYS,
    late_keys=(VOCAB_SIZE, ROPE_DIMENSION),
    renames=(),
    defaults={},
    computed={},
)

FAMILY = (INTERNLM2, INTERNLM3)
