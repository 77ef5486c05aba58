"""BERT and the encoders that are laid out as it is: DistilBERT, RoBERTa, XLM-RoBERTa, Jina 2 and 3,
Nomic; as embedding models and as classifiers. llama.cpp: `conversion/bert.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import DIMS, TEXT_KEYS, layer_norm, no_key, plain_mlp
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    linear,
    piece,
    whole,
)
from quantkit.errors import ConfigError

E, F = "encoder.layer.{bid}", "encoder.layers.{bid}"
GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")
GELU = Expect("hidden_act", GELUS)
NOT_CAUSAL = Key("{arch}.attention.causal", lambda c: False, "BOOL")
POSITIONS = "embeddings.position_embeddings.weight"


def classifies(config: Config) -> bool:
    """Whether the model is a classifier (a reranker, mostly)."""
    return str(config.values["architectures"][0]).endswith("ForSequenceClassification")


def labels(config: Config) -> list[str] | None:
    """A classifier's, in the order of their numbers; of other models what config.json lists. Two
    that have no names of their own are transformers' default, and mean nothing there."""
    found = config.find("id2label")
    if found is None:
        n = config.get("num_labels", default=2)
        found = {str(i): f"LABEL_{i}" for i in range(n)}
    if not isinstance(found, dict) or not all(
        str(i).isdecimal() and isinstance(name, str) for i, name in found.items()
    ):
        raise ConfigError(f"{config.where}: 'id2label' is not a table of numbers and names")
    names = [name for _, name in sorted(found.items(), key=lambda item: int(item[0]))]
    default = len(names) == 2 and names[0] == "LABEL_0" and not classifies(config)
    return None if default else names or None


LABELS = Key("{arch}.classifier.output_labels", labels, "STRINGS")
ENCODER_KEYS = (NOT_CAUSAL, *POOLING_KEYS, LABELS)


def cut_positions(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """The rows of positions that are used: RoBERTa counts from the padding token on."""
    n = dims["positions"] - dims["unused"]
    return (piece("position_embd.weight", (n, source[1]), n, at=dims["unused"]),)


def embeddings(norm: str) -> tuple[Map, ...]:
    """Of tokens and their types, and the norm of their sum."""
    return (
        Map("embeddings.word_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        Map("embeddings.token_type_embeddings.weight", ("types", "hidden"),
            whole("token_types.weight"), optional=True),
        *layer_norm(norm, "token_embd_norm"),
    )  # fmt: skip


def head(direct: bool) -> tuple[Map, ...]:
    """A classifier's: one matrix, or one of its width before that."""
    names = ("", "classifier") if direct else ("classifier.dense", "classifier.out_proj")
    more: dict[str, Any] = {"layers": "head", "bias": True}
    dense = linear(names[0], ("hidden", "hidden"), "cls", **more) if names[0] else ()
    return (*dense, *linear(names[1], ("labels", "hidden"), "cls.output", **more))


ATTENTION = tuple(
    m
    for name, role in (("query", "attn_q"), ("key", "attn_k"), ("value", "attn_v"))
    for m in linear(f"{E}.attention.self.{name}", ("hidden", "hidden"), role, bias=True)
)
LAYER = (
    *ATTENTION,
    *linear(f"{E}.attention.output.dense", ("hidden", "hidden"), "attn_output", bias=True),
    *layer_norm(f"{E}.attention.output.LayerNorm", "attn_output_norm"),
    *linear(f"{E}.intermediate.dense", ("ffn", "hidden"), "ffn_up", bias=True),
    *linear(f"{E}.output.dense", ("hidden", "ffn"), "ffn_down", bias=True),
    *layer_norm(f"{E}.output.LayerNorm", "layer_output_norm"),
)
LAYERS = {"head": lambda c, bid: classifies(c)}

# numbers that are no weights, in checkpoints of older versions of transformers
NO_WEIGHTS = (r"(.*\.)?embeddings\.position_ids",)

BERT = Architecture(
    hf_names=("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
    gguf_arch="bert",
    # without key-value heads: every one has its own
    keys=no_key(TEXT_KEYS, ".head_count_kv"),
    late_keys=ENCODER_KEYS,
    expects=(GELU, Expect("position_embedding_type", ("absolute",))),
    dims={
        **DIMS,
        "types": lambda c: c.get("type_vocab_size", default=1),
        "positions": lambda c: c.get("table of positions", "max_position_embeddings"),
        "unused": lambda c: c.get("unused positions", default=0),
        "labels": lambda c: len(labels(c) or ()),
    },
    maps=(
        *embeddings("embeddings.LayerNorm"),
        Map(POSITIONS, ("positions", "hidden"), cut_positions),
        *LAYER,
        # what llama.cpp runs before a classifier's last matrix, with the same tanh behind it
        *linear("pooler.dense", ("hidden", "hidden"), "cls", layers="head", bias=True),
        *head(direct=True),
    ),
    layers=LAYERS,
    renames=(
        (r"^(bert|distilbert|roberta)\.", ""), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias"),
    ),
    # the pooler of a model that is no classifier, and what predicts masked tokens
    drops=(*NO_WEIGHTS, r"pooler\..*", r"cls\..*", r"vocab_.*", r"lm_head\..*"),
    defaults={
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "tie_word_embeddings": True,
    },
    fuses=("qkv",),
)  # fmt: skip

WITHOUT_HEAD = tuple(m for m in BERT.maps if m.layers != "head")

T = "transformer.layer.{bid}"
DISTILBERT = replace(
    BERT,
    hf_names=("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"),
    keys=(Key("{arch}.attention.layer_norm_epsilon", lambda c: 1e-12, "FLOAT32"),
          *no_key(BERT.keys, ".layer_norm_epsilon")),
    aliases={
        "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim", "hidden_act": "activation",
    },
    maps=(
        *(m for m in BERT.maps[:5] if "types" not in m.shape),
        *(
            m
            for name, role in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"),
                               ("out", "attn_output"))
            for m in linear(f"{T}.attention.{name}_lin", ("hidden", "hidden"), role, bias=True)
        ),
        *layer_norm(f"{T}.sa_layer_norm", "attn_output_norm"),
        *plain_mlp(f"{T}.ffn", ("lin1", "lin2"), bias=True),
        *layer_norm(f"{T}.output_layer_norm", "layer_output_norm"),
        *linear("pre_classifier", ("hidden", "hidden"), "cls", layers="head", bias=True),
        *head(direct=True),
    ),
    defaults={
        "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
)  # fmt: skip


def _unused(config: Config) -> int | None:
    """Rows of positions before the first that is used."""
    pad = config.find("pad_token_id")
    return None if pad is None else 1 + config.one("pad_token_id")


def _context(config: Config) -> int:
    n: int = config.one("max_position_embeddings") - (_unused(config) or 0)
    return n


ROBERTA = replace(
    BERT,
    hf_names=("RobertaModel", "RobertaForSequenceClassification"),
    aliases={
        "table of positions": "max_position_embeddings", "unused positions": _unused,
        "max_position_embeddings": _context,
    },
    maps=(*WITHOUT_HEAD, *head(direct=False)),
    cuts=frozenset({POSITIONS}),
    defaults={**BERT.defaults, "vocab_size": 50265, "pad_token_id": 1},
)  # fmt: skip

# XLM-RoBERTa as FlashAttention's code has it: Jina's reranker 2, and Jina 3 without positions
FLASH_LAYER = (
    *linear(f"{F}.mixer.Wqkv", ("3hidden", "hidden"), "attn_qkv", bias=True),
    *linear(f"{F}.mixer.out_proj", ("hidden", "hidden"), "attn_output", bias=True),
    *layer_norm(f"{F}.norm1", "attn_output_norm"),
    *plain_mlp(f"{F}.mlp", ("fc1", "fc2"), bias=True),
    *layer_norm(f"{F}.norm2", "layer_output_norm"),
)
FLASH_DIMS = {**BERT.dims, "3hidden": lambda c: 3 * c.get("hidden_size")}


def _variant(config: Config) -> Architecture | None:
    return JINA_BERT_V3 if config.find("lora_adaptations") else None


def _respelled(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    return FLASH_XLM_ROBERTA if "encoder.layers.0.mixer.Wqkv.weight" in shapes else None


XLM_ROBERTA = replace(
    ROBERTA,
    # CamemBERT has the same positions; llama.cpp's converter takes it for BERT
    hf_names=("XLMRobertaModel", "XLMRobertaForSequenceClassification", "CamembertModel"),
    variant=_variant,
    respelled=_respelled,
    defaults={**ROBERTA.defaults, "vocab_size": 250002},
)
FLASH_XLM_ROBERTA = replace(
    XLM_ROBERTA,
    dims=FLASH_DIMS,
    maps=(
        *embeddings("emb_ln"),
        Map(POSITIONS, ("positions", "hidden"), cut_positions),
        *FLASH_LAYER,
        *head(direct=False),
    ),
)
JINA_BERT_V3 = replace(
    FLASH_XLM_ROBERTA,
    gguf_arch="jina-bert-v3",
    expects=(GELU, Expect("position_embedding_type", ("rotary",))),
    variant=lambda c: None,
    respelled=lambda c, shapes: None,
    maps=(*embeddings("emb_ln"), *FLASH_LAYER),
    renames=(*XLM_ROBERTA.renames, (r"\.parametrizations\.", "."), (r"\.original$", "")),
    drops=(*XLM_ROBERTA.drops, r".*\.lora_[AB]"),
)

FAMILY = (BERT, DISTILBERT, ROBERTA, XLM_ROBERTA)
