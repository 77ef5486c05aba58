"""OLMo 1 (norms without weights) and OLMo 2 and 3 (norms after attention and network only), and
Seed-OSS. llama.cpp: `conversion/olmo.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    gated_mlp,
    optional_key,
    qk_norms,
    slides,
)
from quantkit.architectures.rules import Architecture, Config, Expect, Key, vector

OLMO = Architecture(
    hf_names=("OlmoForCausalLM", "OLMoForCausalLM"),
    gguf_arch="olmo",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32"),
        optional_key("attention.clamp_kqv", "clip_qkv", kind="FLOAT32"),
    ),
    expects=(SILU, Expect("attention_bias", (False,))),
    dims=DIMS,
    maps=(EMBEDDINGS[0], EMBEDDINGS[2], *attention(rotated=True), *gated_mlp()),
    defaults={"rope_theta": 10000.0},
    fuses=("qkv",),
)


def _windows(config: Config) -> list[bool] | None:
    return None if config.find("sliding_window") is None else slides(config, 4)


NORMS_AFTER = (
    vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
    vector(f"{L}.post_feedforward_layernorm", "post_ffw_norm"),
)

OLMO2 = replace(
    OLMO,
    hf_names=("Olmo2ForCausalLM",),
    gguf_arch="olmo2",
    late_keys=(
        optional_key("attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", _windows, "BOOL"),
    ),
    maps=(*EMBEDDINGS, *NORMS_AFTER, *attention(), *qk_norms(("q", "kv")), *gated_mlp()),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
)

OLMO3 = replace(
    OLMO2,
    hf_names=("Olmo3ForCausalLM",),
    defaults={"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "sliding_window": 4096},
)

SEED_OSS = replace(
    OLMO,
    hf_names=("SeedOssForCausalLM",),
    gguf_arch="seed_oss",
    late_keys=(),
    expects=(SILU, Expect("mlp_bias", (False,)), Expect("attention_out_bias", (False,))),
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        NORMS_AFTER[0],
        *attention(bias=None),
        *gated_mlp(),
    ),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "head_dim": 128},
)

FAMILY = (OLMO, OLMO2, OLMO3, SEED_OSS)
