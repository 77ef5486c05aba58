"""DeepSeek-V4: attention over a window and what is compressed of the tokens before it, several
residual streams, and first layers that choose experts by a table of tokens.

llama.cpp: `conversion/deepseek.py` (DeepseekV4Model). Names are those of DeepSeek's own code, and
every tensor stays in the type that it is released in: FP8 becomes Q8_0, experts stay in MXFP4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EXPERT_FFN,
    GATE_DOWN_UP,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    RMS_NORM,
    SHARED_COUNT,
    SILU,
    TEXT_KEYS,
    W123,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    expert_dims,
    experts,
    gated_mlp,
    nextn_layers,
)
from quantkit.architectures.deepseek_sparse import INDEXER_DIMS, INDEXER_KEYS
from quantkit.architectures.glm5_next import CLAMP_KEYS, HYPER_DIMS, HYPER_KEYS, hyper_connections
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    Shape,
    linear,
    vector,
    whole,
)
from quantkit.errors import ConfigError

L = "layers.{bid}"
A, F = f"{L}.attn", f"{L}.ffn"
COMPRESSED, INDEXED, HASHED, SCORED = "a compressor", "an indexer", "a table of tokens", "scores"
POOLED = 4  # tokens that are compressed into one, in layers with an indexer


def _ratios(config: Config) -> list[int]:
    """How many tokens each layer compresses into one; 0: none. Raises ConfigError."""
    found: list[int] = config.get("compress_ratios")
    if not isinstance(found, list) or len(found) < config.layers or {*found} - {0, POOLED, 128}:
        raise ConfigError(
            f"{config.where}: 'compress_ratios' must be 0, {POOLED} or 128 for each of "
            f"{config.layers} layers"
        )
    return found


def _by_ratio(value: Callable[[Config, int], int]) -> Callable[[Config], list[int]]:
    """A dimension that depends on how much a layer compresses; 1 where it does not."""
    return lambda c: [value(c, ratio) if ratio else 1 for ratio in _ratios(c)]


def _compressor(base: str, role: str, dims: tuple[str, str], layers: str) -> tuple[Map, ...]:
    """Keys and gates of `dims[0]` channels, a place for each token of a pool, and a norm."""
    wide, head = dims
    return (
        Map(f"{base}.ape", ("ratio", wide), whole(f"{role}_ape.weight"), layers),
        vector(f"{base}.norm", f"{role}_norm", head, layers),
        *linear(f"{base}.wgate", (wide, "hidden"), f"{role}_gate", layers=layers, bias=False),
        *linear(f"{base}.wkv", (wide, "hidden"), f"{role}_kv", layers=layers, bias=False),
    )


def _is_hashed(config: Config, bid: int) -> bool:
    return bool(bid < config.get("num_hash_layers"))


def _alone(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """The layers ahead alone, if those are wanted. Raises ConfigError."""
    if config.find("only_mtp"):
        return DEEPSEEK_V4_AHEAD
    if not any(_ratios(config)[: config.layers]):
        raise ConfigError(
            f"{config.where}: 'compress_ratios' are all 0; llama.cpp divides by zero where no "
            "layer compresses"
        )
    return None


_RATES = {"sliding_attention": 0, "compressed_sparse_attention": POOLED,
          "heavily_compressed_attention": 128}  # fmt: skip


def _saved_ratios(config: Config) -> list[int] | None:
    """`compress_ratios`, which transformers 5 saves as kinds of layers and a table of
    rates. Raises ConfigError."""
    kinds = config.find("layer_types")
    if config.find("compress_ratios") is not None or not isinstance(kinds, list):
        return None
    rates = {**_RATES, **(config.find("compress_rates") or {})}
    if odd := [kind for kind in kinds if kind not in rates]:
        raise ConfigError(f"{config.where}: 'layer_types' has {odd[0]!r}, which compresses as none")
    ahead = config.one("num_nextn_predict_layers", default=0)
    return [*(rates[kind] for kind in kinds), *[0] * ahead]


def _saved_tables(config: Config) -> int | None:
    """`num_hash_layers`, of the first layers, as transformers 5 saves it. Raises ConfigError."""
    kinds = config.find("mlp_layer_types")
    if config.find("num_hash_layers") is not None or not isinstance(kinds, list):
        return None
    n = kinds.count("hash_moe")
    if kinds[:n] != ["hash_moe"] * n:
        raise ConfigError(f"{config.where}: 'mlp_layer_types' has 'hash_moe' after other layers")
    return n


def _saved_rope(config: Config) -> dict[str, Any] | None:
    """Scaling, which transformers 5 saves for layers that compress. It does not sharpen: an
    `attention_factor` of 1 says so, and llama.cpp's file says nothing. Raises ConfigError."""
    main, scaled = (config.find(f"rope_parameters.{kind}") for kind in ("main", "compress"))
    if main is None and scaled is None:
        return None
    if not isinstance(main, dict) or not isinstance(scaled, dict):
        raise ConfigError(f"{config.where}: 'rope_parameters' must have 'main' and 'compress'")
    if main.get("rope_type", "default") != "default" or scaled.get("attention_factor", 1) != 1:
        raise ConfigError(f"{config.where}: 'rope_parameters' are not those of DeepSeek-V4")
    own = ("rope_theta", "attention_factor", "partial_rotary_factor")
    return {k: v for k, v in scaled.items() if k not in own} | {"rope_theta": main["rope_theta"]}


DEEPSEEK_V4 = Architecture(
    hf_names=("DeepseekV4ForCausalLM",),
    gguf_arch="deepseek4",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.rope.dimension_count", "qk_rope_head_dim"),
        Key("{arch}.attention.q_lora_rank", "q_lora_rank"),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        EXPERT_FFN,
        SHARED_COUNT,
        WEIGHTS_SCALE,
        WEIGHTS_NORM,
        *CLAMP_KEYS,
        *INDEXER_KEYS,
        Key("{arch}.attention.output_group_count", "o_groups"),
        Key("{arch}.attention.output_lora_rank", "o_lora_rank"),
        Key("{arch}.attention.compress_ratios", _ratios),
        Key("{arch}.attention.compress_rope_freq_base", "compress_rope_theta", "FLOAT32"),
        *HYPER_KEYS,
        Key("{arch}.hash_layer_count", "num_hash_layers"),
        Key("{arch}.embedding_length_out", lambda c: c.get("hidden_size") * c.get("hc_mult")),
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("scoring_func", ("sqrtsoftplus",), required=True),
        Expect("swiglu_limit", required=True),
    ),
    dims={
        **DIMS, **expert_dims(), **INDEXER_DIMS, **HYPER_DIMS,
        "ffn": lambda c: c.get("moe_intermediate_size"),
        "shared_ffn": lambda c: c.get("n_shared_experts") * c.get("moe_intermediate_size"),
        "q_lora": lambda c: c.get("q_lora_rank"),
        "hc": lambda c: c.get("hc_mult"),
        "groups": lambda c: c.get("o_groups") * c.get("o_lora_rank"),
        "group": lambda c: c.get("num_attention_heads") * c.head_dim // c.get("o_groups"),
        "ratio": _by_ratio(lambda c, ratio: ratio),
        "wide": _by_ratio(lambda c, ratio: c.head_dim * (2 if ratio == POOLED else 1)),
        "i_wide": lambda c: 2 * c.get("index_head_dim"),
    },
    maps=(
        Map("embed.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("norm", "output_norm"),
        Map("head.weight", ("vocab", "hidden"), whole("output.weight")),
        Map("hc_head_fn", ("hc", "streams"), whole("output_hc_fn.weight")),
        Map("hc_head_base", ("hc",), whole("output_hc_base.weight")),
        Map("hc_head_scale", ("one",), whole("output_hc_scale.weight")),
        *hyper_connections(L),
        vector(f"{L}.attn_norm", "attn_norm"),
        vector(f"{L}.ffn_norm", "ffn_norm"),
        Map(f"{A}.attn_sink", ("heads",), whole("attn_sinks.weight")),
        *linear(f"{A}.wq_a", ("q_lora", "hidden"), "attn_q_a", bias=False),
        vector(f"{A}.q_norm", "attn_q_a_norm", "q_lora"),
        *linear(f"{A}.wq_b", ("q", "q_lora"), "attn_q_b", bias=False),
        *linear(f"{A}.wkv", ("head", "hidden"), "attn_kv", bias=False),
        vector(f"{A}.kv_norm", "attn_kv_a_norm", "head"),
        *linear(f"{A}.wo_a", ("groups", "group"), "attn_output_a", bias=False),
        *linear(f"{A}.wo_b", ("hidden", "groups"), "attn_output_b", bias=False),
        *_compressor(f"{A}.compressor", "attn_compressor", ("wide", "head"), COMPRESSED),
        *_compressor(f"{A}.indexer.compressor", "indexer_compressor", ("i_wide", "i_head"),
                     INDEXED),
        *linear(f"{A}.indexer.wq_b", ("i_q", "q_lora"), "indexer.attn_q_b", layers=INDEXED,
                bias=False),
        *linear(f"{A}.indexer.weights_proj", ("i_heads", "hidden"), "indexer.proj",
                layers=INDEXED, bias=False),
        Map(f"{F}.gate.weight", ("experts", "hidden"), whole("ffn_gate_inp.weight")),
        Map(f"{F}.gate.bias", ("experts",), whole("exp_probs_b.bias"), SCORED),
        Map(f"{F}.gate.bias_vl", ("experts",), whole("exp_probs_b_vl.bias"), optional=True),
        Map(f"{F}.gate.tid2eid", ("vocab", "used"), whole("ffn_gate_tid2eid.weight"), HASHED,
            indices="experts"),
        *experts(f"{F}.experts", W123),
        *gated_mlp(f"{F}.shared_experts", "_shexp", "shared_ffn", names=W123),
    ),
    layers={
        COMPRESSED: lambda c, bid: _ratios(c)[bid] > 0,
        INDEXED: lambda c, bid: _ratios(c)[bid] == POOLED,
        HASHED: _is_hashed,
        SCORED: lambda c, bid: not _is_hashed(c, bid),
    },
    expert_order=GATE_DOWN_UP,
    drops=(r"(mtp|aligner)\..*", r"image_.*", r"layers\.\d+\.ffn\.gate\.bias"),
    unread=(r"aligner\..*", r"image_.*"),
    mtp=nextn_layers,
    keeps_types=True,
    template_first=True,
    aliases={
        "compress_ratios": _saved_ratios, "num_hash_layers": _saved_tables,
        "compress_rope_theta": lambda c: (
            c.get("compress_rope_theta", "rope_parameters.compress.rope_theta", kind="FLOAT32",
                  default=None)
        ),
        "rope_parameters": _saved_rope,
    },
    defaults={"rms_norm_eps": 1e-6, "scoring_func": "sqrtsoftplus"},
    draft="DeepseekV4DSparkModel",
    respelled=_alone,
)  # fmt: skip


def _ahead(m: Map) -> Map:
    """The row in the layer that predicts further tokens, which has no table and no compressor."""
    return replace(m, source=m.source.replace(L, P), layers="" if m.layers == SCORED else m.layers)


# that layer alone, with what it shares with the model: in one file llama.cpp does not run it
P = "mtp.{mid}"
_KEPT = ("embed.weight", "norm.weight", "head.weight")
DEEPSEEK_V4_AHEAD = replace(
    DEEPSEEK_V4,
    late_keys=(*DEEPSEEK_V4.late_keys, NEXTN_KEY_IF_ANY),
    maps=(
        *(m for m in DEEPSEEK_V4.maps if m.source in _KEPT),
        *(replace(m, source=f"mtp.{{any}}.{m.source}")
          for m in DEEPSEEK_V4.maps if m.source.startswith("hc_head")),
        *(_ahead(m) for m in DEEPSEEK_V4.maps if L in m.source and m.layers in ("", SCORED)),
        Map(f"{P}.e_proj.weight", ("hidden", "2hidden"), whole("nextn.eh_proj.weight"),
            beside=f"{P}.h_proj.weight"),
        vector(f"{P}.enorm", "nextn.enorm"),
        vector(f"{P}.hnorm", "nextn.hnorm"),
        vector(f"{P}.norm", "nextn.shared_head_norm"),
    ),
    layers=MTP_LAYERS,
    drops=(*DEEPSEEK_V4.drops[1:], r"aligner\..*", r"hc_head_\w+", r"layers\..*"),
    keeps_mtp=True,
)  # fmt: skip

FAMILY = (DEEPSEEK_V4,)
