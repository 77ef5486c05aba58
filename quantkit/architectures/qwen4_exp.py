"""Qwen3.8-Flash-Next (`qwen4_exp`): Qwen3.5's linear attention, full attention over the tokens that
an indexer chooses, several residual streams in place of norms, and embeddings of hashed n-grams.

llama.cpp: `conversion/qwen4exp.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import EMBEDDINGS, L, shifted
from quantkit.architectures.deepseek_sparse import INDEXER_DIMS
from quantkit.architectures.mtp_head import in_mtp_head
from quantkit.architectures.qwen_next import (
    FULL_ATTENTION,
    QWEN35_MOE,
    SPARSE,
    TILED,
    is_linear,
)
from quantkit.architectures.rules import (
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    Values,
    parts,
    piece,
    vector,
    whole,
)
from quantkit.errors import ConfigError
from quantkit.source.tensors import SourceTensor

PLE = f"{L}.ple"
TABLE = "ple.ple_embedding.ngram_embedding.shard_0.weight"
# config values that tensors hold: numbers of up to 45 bits, which float32 does not
HASHES = {
    "layer_multipliers": "layer_multipliers",
    "head_offsets": "ngram_heads_offsets",
    "head_vocab_sizes": "ngram_heads_vocab_sizes",
}


def _mixer(source: str, role: str, layers: str = "") -> tuple[Map, ...]:
    """How the residual streams become one: through a narrow matrix and a wide one."""
    return (
        *shifted(vector(f"{source}.hc_norm", f"{role}_norm", "streams", layers)),
        Map(
            f"{source}.input_mix_weight_down.weight",
            ("low rank", "streams"),
            whole(f"{role}_down.weight"),
            layers,
        ),
        Map(
            f"{source}.input_mix_weight_up.weight",
            ("streams", "low rank"),
            whole(f"{role}_up.weight"),
            layers,
        ),
    )


def _half(source: str, role: str) -> tuple[Map, ...]:
    """The streams before and after one half of a layer."""
    return (
        *_mixer(source, role),
        Map(
            f"{source}.block_inject_weight.weight",
            ("n streams", "streams"),
            whole(f"{role}_inject.weight"),
        ),
    )


_I = f"{L}.self_attn.indexer"
_LAYER = (
    *_half(f"{L}.attn_hyper_connection", "hc_attn"),
    *_half(f"{L}.mlp_hyper_connection", "hc_ffn"),
    *FULL_ATTENTION,
    Map(f"{_I}.index_qk_proj.weight", ("i_qk", "hidden"),
        parts(("indexer.q_proj.weight", "i_q"), ("indexer.k_proj.weight", "i_k")),
        "full attention"),
    *shifted(
        vector(f"{_I}.q_layernorm", "indexer.q_norm", "i_head", "full attention"),
        vector(f"{_I}.k_layernorm", "indexer.k_norm", "i_head", "full attention"),
    ),
    *SPARSE,
)  # fmt: skip


def _table(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """The rows of a shard, which are of no layer in the file."""
    rows, width = source
    shape = (dims["shards"] * rows, width)
    return (piece("per_layer_token_embd.weight", shape, rows, xid * rows),)


def _has_table(config: Config) -> bool:
    return bool(config.find("ple_layer_ids"))


def _if_table(key: Key) -> Key:
    def read(config: Config) -> Any:
        return key.read(config) if _has_table(config) and not config.find("only_mtp") else None

    return replace(key, config=read)


def _tables(config: Config) -> list[int]:
    """The layers that add embeddings of n-grams; the config counts from one. Raises ConfigError."""
    layers = [n - 1 for n in config.find("ple_layer_ids") or []]
    if any(not is_linear(config, bid) for bid in layers):
        raise ConfigError(
            f"{config.where}: 'ple_layer_ids' names a layer with full attention; llama.cpp runs "
            "embeddings of n-grams in layers with linear attention"
        )
    return layers


def _last_eos(config: Config) -> int:
    found = config.find("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    if not ids or not isinstance(ids[-1], int):
        raise ConfigError(f"{config.where}: 'eos_token_id' is missing; n-grams end with it")
    return ids[-1]


def _ratios(config: Config) -> list[int]:
    ratio = config.get("indexer_compress_ratio")
    return [0 if is_linear(config, bid) else ratio for bid in range(config.blocks)]


def learned(sources: Mapping[str, SourceTensor], integers: Values) -> dict[str, Any]:
    """What the tensors tell and the config does not: the hashes, and the size of a shard."""
    out: dict[str, Any] = {}
    for name, t in sources.items():
        for key, suffix in HASHES.items():
            if name.endswith(f"ple_embedding.{suffix}"):
                out[f"ple_{key}"] = integers(t)
        if name.endswith(TABLE):
            out["ple_shard_rows"], out["ple_row_dim"] = t.shape
    return out


QWEN4_EXP = replace(
    QWEN35_MOE,
    hf_names=("Qwen4ExpForConditionalGeneration", "Qwen4ExpForCausalLM"),
    gguf_arch="qwen4exp",
    late_keys=(
        *QWEN35_MOE.late_keys,
        Key("{arch}.hyper_connection.count", "hc_count"),
        Key("{arch}.hyper_connection.low_rank", "hc_lowrank"),
        Key("{arch}.attention.indexer.head_count", "indexer_n_heads"),
        Key("{arch}.attention.indexer.key_length", "indexer_head_dim"),
        Key("{arch}.attention.indexer.top_k", "indexer_budget"),
        Key("{arch}.attention.compress_ratios", _ratios),
        *map(_if_table, (
            Key("{arch}.ple.layers", _tables),
            Key("{arch}.ple.ngram_size", "ngram_size"),
            Key("{arch}.ple.heads_per_ngram", "heads_per_ngram"),
            Key("{arch}.ple.conv_kernel", "ple_conv_kernel_size"),
            Key("{arch}.ple.eos_token_id", _last_eos),
            Key("{arch}.ple.image_token_id", "image_token_id", default=None),
            Key("{arch}.embedding_length_per_layer_input", "ple_row_dim"),
            *(Key(f"{{arch}}.ple.{key}", f"ple_{key}", "UINT64") for key in HASHES),
        )),
    ),
    expects=(*QWEN35_MOE.expects, Expect("layer_types", required=True)),
    dims={
        **QWEN35_MOE.dims,
        **INDEXER_DIMS,
        "i_heads": lambda c: c.get("indexer_n_heads"),
        "i_head": lambda c: c.get("indexer_head_dim"),
        "i_q": lambda c: c.get("indexer_n_heads") * c.get("indexer_head_dim"),
        "i_k": lambda c: c.get("indexer_kv_heads", default=1) * c.get("indexer_head_dim"),
        "i_qk": lambda c: c.get("indexer_head_dim")
        * (c.get("indexer_n_heads") + c.get("indexer_kv_heads", default=1)),
        "n streams": lambda c: c.get("hc_count"),
        "streams": lambda c: c.get("hc_count") * c.get("hidden_size"),
        "low rank": lambda c: c.get("hc_lowrank"),
        "ple kernel": lambda c: c.get("ple_conv_kernel_size", default=0),
        "ple": lambda c: c.get("ple_embed_dim", default=0),
        "shards": lambda c: c.get("split_ngram_parts", default=0),
        "shard rows": lambda c: c.get("ple_shard_rows", default=0),
        "shard row": lambda c: c.get("ple_row_dim", default=0),
    },
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *_mixer("model.hyper_connection_mixer", "output_hc", "trunk"),
        *_LAYER,
        *TILED,
        Map(f"{PLE}.conv1d.weight", ("streams", "one", "ple kernel"),
            whole("ple_conv1d.weight", "streams", "ple kernel"), "n-grams"),
        Map(f"{PLE}.key_proj.weight", ("streams", "ple"), whole("ple_key.weight"), "n-grams"),
        Map(f"{PLE}.value_proj.weight", ("hidden", "ple"), whole("ple_value.weight"), "n-grams"),
        *shifted(*(
            vector(f"{PLE}.norm_{name}", f"ple_norm_{name}", "streams", "n-grams")
            for name in ("key", "query", "conv")
        )),
        Map("model.layers.{any}.ple.ple_embedding.ngram_embedding.shard.{xid}.weight",
            ("shard rows", "shard row"), _table, "a table", experts="shards"),
        Map("mtp.fc_embedding.weight", ("hidden", "2hidden"), whole("nextn.eh_proj.weight"), "mtp",
            beside="mtp.fc_hidden.weight"),
        *shifted(
            vector("mtp.pre_fc_norm_embedding", "nextn.enorm", layers="mtp"),
            vector("mtp.pre_fc_norm_hidden", "nextn.hnorm", "streams", "mtp"),
        ),
        *_mixer("mtp.hyper_connection_mixer", "nextn.hc_head", "mtp"),
        *in_mtp_head(*_LAYER),
    ),
    layers={
        **QWEN35_MOE.layers,
        "n-grams": lambda c, bid: bid < c.layers and bid in _tables(c),
        # not of a file of the head that predicts further tokens alone
        "a table": lambda c, bid: _has_table(c) and not c.find("only_mtp"),
        "trunk": lambda c, bid: not c.find("only_mtp"),
    },
    drops=(
        *QWEN35_MOE.drops,
        rf".*\.ple_embedding\.({'|'.join(HASHES.values())})",
        r".*\.(ngram_embedding|hyper_connection_mixer)\..*",
    ),
    rounds=frozenset({"indexer.q_proj", "indexer.k_proj"}),
    rounds_ahead=frozenset({"indexer.q_proj", "indexer.k_proj"}),
    renames=((r"\.shard_(\d+)\.", r".shard.\1."),),
    learned=learned,
)  # fmt: skip

FAMILY = (QWEN4_EXP,)
