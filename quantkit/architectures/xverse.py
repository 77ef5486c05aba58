"""XVERSE. llama.cpp: `conversion/xverse.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    EMBEDDINGS,
    NORMS,
    ROPE_DIMENSION,
    TEXT_KEYS,
    attention,
    gated_mlp,
)
from quantkit.architectures.llama import LLAMA, kv_heads_if_said
from quantkit.architectures.rules import Key

XVERSE = replace(
    LLAMA,
    hf_names=("XverseForCausalLM",),
    gguf_arch="xverse",
    keys=kv_heads_if_said(TEXT_KEYS),
    late_keys=(
        Key("{arch}.tensor_data_layout", lambda c: "Meta AI original pth", "STRING"),
        ROPE_DIMENSION,
    ),
    maps=(*EMBEDDINGS, *NORMS, *attention(rotated=True), *gated_mlp()),
    renames=(),
    defaults={},
    computed={},
)

FAMILY = (XVERSE,)
