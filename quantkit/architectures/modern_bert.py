"""ModernBERT. llama.cpp: `conversion/bert.py` (ModernBertModel)."""

from __future__ import annotations

from quantkit.architectures.bert import ENCODER_KEYS, NO_WEIGHTS, classifies, labels
from quantkit.architectures.common import DIMS, TEXT_KEYS, VOCAB_SIZE, no_key
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    vector,
    whole,
)
from quantkit.errors import ConfigError

N = "layers.{bid}"


def _head(config: Config, bid: int) -> bool:
    return classifies(config)


def _normed(config: Config, bid: int) -> bool:
    return bid > 0


def _period(config: Config) -> int | None:
    """Of how many layers the first sees all of the text; transformers 5 saves the kind of each.
    Raises ConfigError where they are in another order, which llama.cpp does not run."""
    kinds = config.find("layer_types")
    if not isinstance(kinds, list):
        return None
    said: int = config.one("global_attn_every_n_layers", default=3)
    full = [bid for bid, kind in enumerate(kinds) if kind == "full_attention"]
    for n in (said, *full[1:2]):
        if n > 0 and full == [*range(0, len(kinds), n)]:
            return n
    raise ConfigError(
        f"{config.where}: 'layer_types' must have full attention in the first of every so many "
        "layers: llama.cpp runs no others"
    )


MODERN_BERT = Architecture(
    hf_names=(
        "ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification",
    ),
    gguf_arch="modern-bert",
    keys=no_key(TEXT_KEYS, ".head_count_kv"),
    late_keys=(
        *ENCODER_KEYS,
        Key("{arch}.attention.sliding_window", "local_attention"),
        Key("{arch}.attention.sliding_window_pattern", "global_attn_every_n_layers", default=None),
        Key("{arch}.rope.scaling.type", lambda c: "none", "STRING"),
        VOCAB_SIZE,
        Key("{arch}.hidden_activation", "hidden_activation", "STRING", default=None),
    ),
    expects=(
        Expect("hidden_activation", ("gelu", "silu")),
        Expect("attention_bias", (False,)),
        Expect("mlp_bias", (False,)),
        Expect("norm_bias", (False,)),
    ),
    dims={
        **DIMS,
        "3hidden": lambda c: 3 * c.get("hidden_size"),
        "2ffn": lambda c: 2 * c.get("intermediate_size"),
        "labels": lambda c: len(labels(c) or ()),
    },
    maps=(
        Map("embeddings.tok_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("embeddings.norm", "token_embd_norm"),
        vector("final_norm", "output_norm"),
        vector(f"{N}.attn_norm", "attn_norm", layers="normed"),
        vector(f"{N}.mlp_norm", "ffn_norm"),
        *linear(f"{N}.attn.Wqkv", ("3hidden", "hidden"), "attn_qkv", bias=False),
        *linear(f"{N}.attn.Wo", ("hidden", "hidden"), "attn_output", bias=False),
        *linear(f"{N}.mlp.Wi", ("2ffn", "hidden"), "ffn_up", bias=False),
        *linear(f"{N}.mlp.Wo", ("hidden", "ffn"), "ffn_down", bias=False),
        *linear("head.dense", ("hidden", "hidden"), "cls", layers="head", bias=False),
        vector("head.norm", "cls.norm", layers="head"),
        *linear("classifier", ("labels", "hidden"), "cls.output", layers="head", bias=True),
    ),
    layers={"head": _head, "normed": _normed},
    renames=((r"^model\.", ""),),
    # what predicts masked tokens
    drops=(r"decoder\..*", r"head\..*", r"pooler\.dense\..*", *NO_WEIGHTS),
    aliases={"global_attn_every_n_layers": _period},
    defaults={
        "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152,
        "num_hidden_layers": 22, "num_attention_heads": 12, "max_position_embeddings": 8192,
        "norm_eps": 1e-5, "hidden_activation": "gelu", "global_attn_every_n_layers": 3,
        "local_attention": 128, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
        "classifier_pooling": "cls", "classifier_activation": "gelu", "tie_word_embeddings": True,
    },
)  # fmt: skip

FAMILY = (MODERN_BERT,)
