"""EuroBERT and Jina's embeddings 5: Llama's parts in an encoder. llama.cpp: `conversion/bert.py`
(EuroBertModel)."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.bert import NOT_CAUSAL
from quantkit.architectures.common import (
    EMBEDDINGS,
    NORMS,
    SILU,
    attention,
    gated_mlp,
    with_head_dim,
)
from quantkit.architectures.llama import LLAMA
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.rules import Config, Key
from quantkit.errors import ConfigError


def _no_scaling(config: Config) -> str:
    """Raises ConfigError: positions are scaled, and llama.cpp's converter says they are not."""
    if config.rope.get("rope_type") not in (None, "default"):
        raise ConfigError(
            f"{config.where}: EuroBERT with scaled positions is not one llama.cpp runs"
        )
    return "none"


# transformers 5 gives every config a way to classify that llama.cpp's converter stops at ("late"),
# which is of no effect in a model that does not classify
_POOLING = (
    POOLING_KEYS[0],
    replace(
        POOLING_KEYS[1],
        config=lambda c: {"mean": 1, "cls": 2}.get(str(c.find("classifier_pooling"))),
    ),
    *POOLING_KEYS[2:],
)

EUROBERT = replace(
    LLAMA,
    hf_names=("EuroBertModel", "JinaEmbeddingsV5Model"),
    gguf_arch="eurobert",
    keys=with_head_dim(LLAMA.keys, "eurobert"),
    late_keys=(NOT_CAUSAL, Key("{arch}.rope.scaling.type", _no_scaling, "STRING"), *_POOLING),
    expects=(SILU,),
    maps=(*EMBEDDINGS[:2], *NORMS, *attention(), *gated_mlp()),
    # without its head for masked tokens
    renames=(),
    drops=(r"lm_head\..*",),
    defaults={
        "rope_theta": 250000.0, "rms_norm_eps": 1e-5, "vocab_size": 128256, "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    computed={},
)  # fmt: skip

FAMILY = (EUROBERT,)
