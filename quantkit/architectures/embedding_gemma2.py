"""EmbeddingGemma 2: vectors of texts, images and sounds, of which the encoders are not read.
llama.cpp: `conversion/gemma.py`, EmbeddingGemma2Model.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import OPTIONAL_HEAD
from quantkit.architectures.gemma4 import GEMMA4, GEMMA4_INPUTS
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.rules import Config, Key, Map, whole


def _unless_listed(config: Config, name: str, default: int) -> int | None:
    """What its class makes the sizes of layers with full attention of."""
    if config.find("per_layer_config") is not None:
        return None
    n: int = config.get(name, default=default)
    return n


EMBEDDING_GEMMA2 = replace(
    GEMMA4_INPUTS,
    hf_names=("EmbeddingGemma2Model",),
    gguf_arch="gemma-embedding2",
    late_keys=(
        *GEMMA4.late_keys,
        # from one side of a window to the other
        Key("{arch}.attention.sliding_window", lambda c: 2 * c.one("sliding_window")),
        Key("{arch}.embedding_length_out", "embedding_dim"),
        Key("{arch}.attention.causal", lambda c: False, "BOOL"),
        *POOLING_KEYS,
    ),
    dims={**GEMMA4_INPUTS.dims, "out": lambda c: c.get("embedding_dim")},
    maps=(
        *(m for m in GEMMA4_INPUTS.maps
          if m is not OPTIONAL_HEAD and "embed_tokens_per_layer" not in m.source),
        Map("model.embedding_projection.weight", ("out", "hidden"), whole("output.weight")),
    ),
    renames=((r"^(model\.)?(?=(layers|norm|embed_tokens|embedding_projection|ple)\.)", "model."),
             (r"\.(ple|ple_block)\.", ".")),
    aliases={
        "num_kv_shared_layers": lambda c: 0,
        "num_global_key_value_heads": lambda c: _unless_listed(c, "num_global_key_value_heads", 1),
        "global_head_dim": lambda c: _unless_listed(c, "global_head_dim", 512),
    },
    defaults={**GEMMA4_INPUTS.defaults, "max_position_embeddings": 262144},
    computed={},
    fuses=(),
)  # fmt: skip

FAMILY = (EMBEDDING_GEMMA2,)
