"""Nemotron 51B, 49B and Ultra 253B, whose layers were thinned out one by one, and DeciLM 7B.

llama.cpp: `conversion/deci.py`. A layer may have attention, a matrix in its place, or neither; and
may lack its network, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    EMBEDDINGS,
    NORMS,
    ROPE_DIMENSION,
    SILU,
    VOCAB_SIZE,
    L,
    attention,
    gated_mlp,
    text_keys,
)
from quantkit.architectures.llama import LLAMA
from quantkit.architectures.rules import Config, Key, Map, whole
from quantkit.errors import ConfigError


def _part(config: Config, bid: int, name: str) -> Mapping[str, Any]:
    """`attention` or `ffn` of a layer. Raises ConfigError."""
    blocks = config.find("block_configs")
    if not isinstance(blocks, list) or len(blocks) != config.layers:
        raise ConfigError(f"{config.where}: 'block_configs' must describe {config.layers} layers")
    part = blocks[bid].get(name) if isinstance(blocks[bid], dict) else None
    if not isinstance(part, dict):
        raise ConfigError(f"{config.where}: 'block_configs' has no '{name}' of layer {bid}")
    return part


def _attends(config: Config, bid: int) -> bool:
    return _kv_heads(config)[bid] > 0


def _linear(config: Config, bid: int) -> bool:
    return not _attends(config, bid) and bool(
        _part(config, bid, "attention")["replace_with_linear"]
    )


def _kv_heads(config: Config) -> list[int]:
    """Raises ConfigError."""
    if config.find("block_configs") is None:
        several = config.get("num_key_value_heads_per_layer", "num_key_value_heads")
        return several if isinstance(several, list) else [several] * config.layers
    sizes = [
        _part(config, bid, "attention").get("n_heads_in_group") for bid in range(config.layers)
    ]
    if not all(n is None or (isinstance(n, int) and n > 0) for n in sizes):
        raise ConfigError(f"{config.where}: 'n_heads_in_group' must be a number of heads or null")
    heads = config.one("num_attention_heads")
    return [0 if n is None else heads // n for n in sizes]


def _heads(config: Config) -> list[int]:
    n = config.one("num_attention_heads")
    return [
        n if _attends(config, bid) or _linear(config, bid) else 0 for bid in range(config.layers)
    ]


def _widths(config: Config) -> list[int]:
    """Raises ConfigError."""
    if config.find("block_configs") is None:
        return [config.one("intermediate_size")] * config.layers
    out = []
    for bid in range(config.layers):
        ratio = _part(config, bid, "ffn").get("ffn_mult") or 0.0
        if not isinstance(ratio, int | float) or isinstance(ratio, bool):
            raise ConfigError(f"{config.where}: 'ffn_mult' must be a number or null")
        width = int(2 * ratio * config.one("hidden_size") / 3)
        out.append(-(-width // 256) * 256)
    return out


def _length(config: Config) -> int:
    return config.one("hidden_size") // config.one("num_attention_heads")


def _seven(config: Config) -> Any:
    return None if config.find("block_configs") is not None else DECILM_7B


DECI = replace(
    LLAMA,
    hf_names=("DeciLMForCausalLM",),
    gguf_arch="deci",
    keys=(
        *text_keys("freq_base"),
        Key("{arch}.attention.head_count_kv", _kv_heads),
        Key("{arch}.attention.head_count", _heads),
        Key("{arch}.feed_forward_length", _widths),
        *text_keys("block_count", "context_length", "embedding_length", "layer_norm_rms_epsilon"),
        Key("{arch}.attention.key_length", _length),
        Key("{arch}.attention.value_length", _length),
    ),
    late_keys=(VOCAB_SIZE, ROPE_DIMENSION),
    expects=(SILU,),
    dims={
        **LLAMA.dims,
        "head": _length,
        "kv_heads": _kv_heads,
        "kv": lambda c: [n * _length(c) for n in _kv_heads(c)],
        "ffn": _widths,
    },
    maps=(
        *EMBEDDINGS,
        replace(NORMS[0], layers="attention or a matrix"),
        replace(NORMS[1], layers="MLP"),
        *attention(rotated=True, bias=None, out_bias=None, layers="attention"),
        Map(f"{L}.self_attn.linear_attn.weight", ("hidden", "hidden"), whole("attn_output.weight"),
            "a matrix"),
        *gated_mlp(layers="MLP", bias=None),
    ),
    layers={
        "attention": _attends,
        "a matrix": _linear,
        "attention or a matrix": lambda c, bid: _attends(c, bid) or _linear(c, bid),
        "MLP": lambda c, bid: _widths(c)[bid] > 0,
    },
    renames=(),
    variant=_seven,
    defaults={},
)  # fmt: skip

DECILM_7B = replace(
    DECI,
    keys=LLAMA.keys,
    late_keys=(
        Key("{arch}.attention.head_count_kv", "num_key_value_heads_per_layer", default=None),
        VOCAB_SIZE, ROPE_DIMENSION,
    ),
    variant=lambda config: None,
)  # fmt: skip

FAMILY = (DECI,)
