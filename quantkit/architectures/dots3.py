"""dots3.note: latent attention of two sizes, over the tokens that an indexer chooses or a sliding
window, gated by head. llama.cpp: `conversion/dots3.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from quantkit.architectures.common import (
    DENSE_FIRST,
    EMBEDDINGS,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    NORMS,
    TEXT_KEYS,
    no_key,
)
from quantkit.architectures.deepseek import ATTN, DEEPSEEK_V3, LATENT
from quantkit.architectures.deepseek_sparse import INDEXER_DIMS, INDEXER_KEYS, indexer
from quantkit.architectures.rules import (
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    edited,
    reading,
    tied_head_dropped,
    vector,
    whole,
)
from quantkit.errors import ConfigError


def _slides(config: Config, bid: int) -> bool:
    """Whether a layer has a sliding window; those that predict further tokens have."""
    types = config.find("layer_types") or ()
    if len(types) < config.layers:
        raise ConfigError(f"{config.where}: 'layer_types' names fewer than {config.layers} layers")
    return bid >= config.layers or types[bid] == "sliding_attention"


def _two(read: Callable[[Callable[[str], int]], int]) -> Callable[[Config], list[int]]:
    """A size of each layer, computed from config values that have twins called `swa_...`."""

    def dims(config: Config) -> list[int]:
        full = read(lambda name: config.get(name))
        sliding = read(lambda name: config.get(f"swa_{name}"))
        return [sliding if _slides(config, bid) else full for bid in range(config.blocks)]

    return dims


HEADS, NOPE, ROPE, VALUE, RANK = (
    "num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank",
)  # fmt: skip


def _same(name: str) -> Key:
    """No key: llama.cpp has one value for both kinds of layers."""

    def read(config: Config) -> None:
        if config.get(name) != config.get(f"swa_{name}"):
            raise ConfigError(f"{config.where}: '{name}' and 'swa_{name}' must be the same")

    return Key("", read)


def _rescaled(role: str, rank: str) -> RowMap:
    """A norm that takes in the factor by which the model scales the latent after it."""
    rows = whole(role)

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        factor = math.sqrt(dims["hidden"] / dims[rank])
        scaled = edited(rows, ("scale", factor)) if dims["rescale"] else rows
        return scaled(dims, source, xid)

    return pieces


_NORMS = {
    "q_a_layernorm": _rescaled("attn_q_a_norm.weight", "q_lora"),
    "kv_a_layernorm": _rescaled("attn_kv_a_norm.weight", "kv_lora"),
}


def _swa(name: str, read: Callable[[Config], int]) -> Key:
    return Key(f"{{arch}}.attention.{name}_swa", read)


DOTS3 = replace(
    DEEPSEEK_V3,
    hf_names=("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration",
              "Dots3NoteTextForCausalLM"),
    gguf_arch="dots3note",
    keys=reading(no_key(TEXT_KEYS, ".key_length", ".value_length"), ".head_count",
                 config=_two(lambda n: n(HEADS))),
    late_keys=(
        _same("q_lora_rank"),
        _same(ROPE),
        *DEEPSEEK_V3.late_keys,
        Key("{arch}.attention.sliding_window", "sliding_window_size"),
        Key("{arch}.attention.sliding_window_pattern",
            lambda c: [_slides(c, bid) for bid in range(c.layers)], "BOOL"),
        _swa("kv_lora_rank", lambda c: c.get("swa_kv_lora_rank")),
        _swa("key_length", lambda c: c.get("swa_kv_lora_rank") + c.get("swa_qk_rope_head_dim")),
        _swa("value_length", lambda c: c.get("swa_kv_lora_rank")),
        _swa("key_length_mla",
             lambda c: c.get("swa_qk_nope_head_dim") + c.get("swa_qk_rope_head_dim")),
        _swa("value_length_mla", lambda c: c.get("swa_v_head_dim")),
        NEXTN_KEY_IF_ANY,
        *INDEXER_KEYS,
        Key("{arch}.attention.indexer.types",
            lambda c: [not _slides(c, bid) for bid in range(c.layers)], "BOOL"),
    ),
    expects=(
        *DEEPSEEK_V3.expects,
        Expect("use_dsa", (True,)),
        Expect("normalization", ("RMSNorm",)),
        Expect("final_norm", ("RMSNorm",)),
        Expect("k_rope_only_layernorm", (True,)),
        Expect("topk_method", ("noaux_tc",)),
        Expect("scoring_func", ("sigmoid",), required=True),
        Expect("n_group", (1,)),
        Expect("topk_group", (1,)),
        Expect("use_dynamic_rsf", (False,)),
        Expect("moe_gating_fp32", (False,)),
        Expect("attention_gate_type", ("headwise",)),
        Expect("swa_attention_gate_type", ("headwise",)),
    ),
    dims={
        **DEEPSEEK_V3.dims,
        **INDEXER_DIMS,
        "heads": _two(lambda n: n(HEADS)),
        "kv_heads": _two(lambda n: n(HEADS)),
        "nope": _two(lambda n: n(NOPE)),
        "value": _two(lambda n: n(VALUE)),
        "kv_lora": _two(lambda n: n(RANK)),
        "q": _two(lambda n: n(HEADS) * (n(NOPE) + n(ROPE))),
        "kv_a": _two(lambda n: n(RANK) + n(ROPE)),
        "kv_b": _two(lambda n: n(HEADS) * (n(NOPE) + n(VALUE))),
        "values": _two(lambda n: n(HEADS) * n(VALUE)),
        "rope": lambda c: c.get(ROPE),
        "rescale": lambda c: int(bool(c.find("apply_mla_qkv_lora_rescale"))),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *(replace(m, rows=_NORMS.get(m.source.split(".")[-2], m.rows)) for m in LATENT),
        Map(f"{ATTN}.g_proj.weight", ("heads", "hidden"), whole("attn_gate.weight")),
        vector(f"{ATTN}.k_rope_only_layernorm", "attn_k_norm", "rope"),
        *indexer("indexer"),
        *DEEPSEEK_V3.maps[len(EMBEDDINGS) + len(NORMS) + len(LATENT):],
        *NEXTN_MAPS,
        Map("model.mtp.embed_tokens.weight", ("vocab", "hidden"),
            whole("nextn.embed_tokens.weight"), "mtp"),
    ),
    layers={
        **DEEPSEEK_V3.layers,
        **MTP_LAYERS,
        "indexer": lambda c, bid: not _slides(c, bid),
        "experts": lambda c, bid: DENSE_FIRST["experts"](c, bid) and bid < c.layers,
        "shared experts": lambda c, bid: (
            DEEPSEEK_V3.layers["shared experts"](c, bid) and bid < c.layers
        ),
        "dense MLP": lambda c, bid: DENSE_FIRST["dense MLP"](c, bid) or bid >= c.layers,
    },
    defaults={"rms_norm_eps": 1e-6},
    mtp=lambda c: 1,  # config.json does not tell
    keeps_mtp=True,
)  # fmt: skip

FAMILY = (tied_head_dropped(DOTS3),)
