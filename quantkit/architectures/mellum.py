"""Mellum 2 and Maple: Qwen3's experts, and a sliding window in most layers.

llama.cpp: `conversion/mellum.py`, `conversion/maple.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    EMBEDDINGS,
    EXPERT_FFN,
    NORMALIZED,
    NORMS,
    RMS_NORM,
    SILU,
    VOCAB_SIZE,
    attention,
    experts,
    optional_key,
    partial_rope,
    qk_norms,
    router,
)
from quantkit.architectures.qwen import QWEN3_MOE
from quantkit.architectures.rope import rope_of_class
from quantkit.architectures.rules import Config, Expect, Key


def _windows(config: Config) -> list[bool]:
    """Whether each layer has a sliding window."""
    return [kind == "sliding_attention" for kind in config.find("layer_types") or ()]


def _if_sliding(key: Key) -> Key:
    """A key that is written where some layer has one."""

    def read(config: Config) -> Any:
        slides = config.find("sliding_window") is not None
        return (
            key.read(config) if slides and config.find("use_sliding_window") is not False else None
        )

    return replace(key, config=read)


WINDOW_KEYS = (
    Key("{arch}.attention.sliding_window", "sliding_window"),
    Key("{arch}.attention.sliding_window_pattern", _windows, "BOOL"),
)


MAPS = (*EMBEDDINGS, *NORMS, *attention(bias=None), *qk_norms(), router(), *experts())

MELLUM = replace(
    QWEN3_MOE,
    hf_names=("MellumForCausalLM",),
    gguf_arch="mellum",
    late_keys=(
        optional_key("expert_feed_forward_length", "moe_intermediate_size"),
        *map(_if_sliding, WINDOW_KEYS),
    ),
    maps=MAPS,
    defaults={"rms_norm_eps": 1e-6, "head_dim": 128, "norm_topk_prob": True},
    aliases={"rope_parameters": rope_of_class(5e5, 1e4)},
    fuses=(),
)  # fmt: skip

MAPLE = replace(
    QWEN3_MOE,
    hf_names=("MapleForCausalLM",),
    gguf_arch="maple",
    late_keys=(
        VOCAB_SIZE,
        partial_rope(1.0),
        *WINDOW_KEYS,
        EXPERT_FFN,
        Key("{arch}.swiglu_clamp_exp", lambda c: [7.0] * c.layers, "FLOAT32"),
    ),
    expects=(
        RMS_NORM,
        SILU,
        NORMALIZED,
        Expect("num_shared_experts", (0,)),
        Expect("nope_on_global_attention", (True,), required=True),
        Expect("layer_types", required=True),
    ),
    assumes=(),
    maps=MAPS,
    defaults={},
    fuses=(),
)

FAMILY = (MELLUM, MAPLE)
