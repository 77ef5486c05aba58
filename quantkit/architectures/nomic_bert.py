"""Nomic's BERT, dense and with experts in every second layer. llama.cpp: `conversion/bert.py`
(NomicBertModel)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.bert import ENCODER_KEYS, NO_WEIGHTS, F, embeddings
from quantkit.architectures.common import (
    DIMS,
    TEXT_KEYS,
    layer_norm,
    no_key,
    plain_mlp,
    router,
)
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
    transposed,
    whole,
)


def _context(config: Config) -> int:
    """Tokens that the released models were trained with: config.json says what they may be
    stretched to, for the dense ones, or four times as many."""
    n: int = config.one("n_positions")
    trained = config.get("max_trained_positions", default=2048)
    return {(8192, 2048): 2048, (2048, 2048): 512}.get((n, trained)) or min(n, int(trained))


def _stacked_columns(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """Experts one below another, of which each is kept as `[in, out]`."""
    shape = (dims["experts"], dims["ffn"], dims["hidden"])
    return transposed("ffn_down_exps.weight")(dims, shape, xid)


def _layer(bias: bool) -> tuple[Map, ...]:
    return (
        *linear(f"{F}.attn.Wqkv", ("3hidden", "hidden"), "attn_qkv", bias=bias),
        *linear(f"{F}.attn.out_proj", ("hidden", "hidden"), "attn_output", bias=bias),
        *layer_norm(f"{F}.norm1", "attn_output_norm"),
        *layer_norm(f"{F}.norm2", "layer_output_norm"),
    )


def _variant(config: Config) -> Architecture | None:
    return NOMIC_BERT_MOE if config.find("moe_every_n_layers") else None


NOMIC_BERT = Architecture(
    hf_names=("NomicBertModel",),
    gguf_arch="nomic-bert",
    keys=no_key(TEXT_KEYS, ".head_count_kv", ".expert_used_count"),
    late_keys=ENCODER_KEYS,
    expects=(
        Expect("activation_function", ("swiglu",)),
        Expect("causal", (False,)),
        Expect("prenorm", (False,)),
        Expect("rotary_emb_fraction", (1.0,)),
        Expect("rotary_emb_interleaved", (False,)),
        Expect("rotary_emb_scale_base", (None,)),
    ),
    aliases={
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "intermediate_size": "n_inner", "max_position_embeddings": _context,
    },
    dims={
        **DIMS,
        "types": lambda c: c.get("type_vocab_size", default=1),
        "3hidden": lambda c: 3 * c.get("hidden_size"),
    },
    maps=(
        *embeddings("emb_ln"),
        *_layer(bias=False),
        *linear(f"{F}.mlp.fc11", ("ffn", "hidden"), "ffn_up", bias=False),
        *linear(f"{F}.mlp.fc12", ("ffn", "hidden"), "ffn_gate", bias=False),
        *linear(f"{F}.mlp.fc2", ("hidden", "ffn"), "ffn_down", bias=False),
    ),
    variant=_variant,
    renames=((r"^bert\.", ""),),
    drops=(*NO_WEIGHTS, r"pooler\..*", r"cls\..*"),
    defaults={"tie_word_embeddings": True},
)  # fmt: skip


def _sparse(config: Config, bid: int) -> bool:
    every: int = config.get("moe_every_n_layers")
    return bid % every == 1


def _dense(config: Config, bid: int) -> bool:
    return not _sparse(config, bid)


NOMIC_BERT_MOE = replace(
    NOMIC_BERT,
    gguf_arch="nomic-bert-moe",
    variant=lambda c: None,
    late_keys=(
        *ENCODER_KEYS,
        Key("{arch}.moe_every_n_layers", "moe_every_n_layers"),
        Key("{arch}.expert_used_count", "moe_top_k"),
    ),
    expects=(Expect("activation_function", ("gelu",)), *NOMIC_BERT.expects[1:]),
    dims={
        **NOMIC_BERT.dims,
        "experts": lambda c: c.get("num_local_experts", "num_experts"),
        "used": lambda c: c.get("moe_top_k"),
        "experts x ffn": lambda c: c.get("num_local_experts", "num_experts") * c.get("n_inner"),
    },
    maps=(
        *embeddings("emb_ln"),
        *_layer(bias=True),
        *(replace(m, layers="dense MLP") for m in plain_mlp(f"{F}.mlp", ("fc1", "fc2"), bias=True)),
        router(f"{F}.mlp.router.layer", "experts"),
        Map(f"{F}.mlp.experts.mlp.w1", ("experts x ffn", "hidden"),
            whole("ffn_up_exps.weight", "experts", "ffn", "hidden"), "experts"),
        Map(f"{F}.mlp.experts.mlp.w2", ("experts x ffn", "hidden"), _stacked_columns, "experts"),
    ),
    layers={"experts": _sparse, "dense MLP": _dense},
    drops=(*NOMIC_BERT.drops, r".*mlp\.experts\.bias"),  # which llama.cpp has no place for
)  # fmt: skip

FAMILY = (NOMIC_BERT,)
