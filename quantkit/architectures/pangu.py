"""openPangu-Embedded, the dense models. llama.cpp: `conversion/pangu.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    EMBEDDINGS,
    NORMS,
    ROPE_DIMENSION,
    VOCAB_SIZE,
    attention,
    gated_mlp,
)
from quantkit.architectures.llama import LLAMA, kv_heads_if_said
from quantkit.architectures.rules import Key, tied_head_dropped

PANGU = tied_head_dropped(replace(
    LLAMA,
    hf_names=("PanguEmbeddedForCausalLM",),
    gguf_arch="pangu-embedded",
    keys=kv_heads_if_said(LLAMA.keys),
    late_keys=(
        VOCAB_SIZE, ROPE_DIMENSION,
        *(Key(f"{{arch}}.attention.{name}_length", lambda c: c.head_dim)
          for name in ("key", "value")),
    ),
    maps=(*EMBEDDINGS, *NORMS, *attention(bias=None, out_bias=True), *gated_mlp()),
    renames=(),
    defaults={},
))  # fmt: skip

FAMILY = (PANGU,)
