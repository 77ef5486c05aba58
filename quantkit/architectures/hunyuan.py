"""HunYuan, dense and with experts (A13B). llama.cpp: `conversion/hunyuan.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    no_key,
    router,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Key,
    reading,
    tied_head_dropped,
    vector,
)
from quantkit.errors import ConfigError

LENGTH = 256 * 1024  # what the scaling of the rotary base is for, whatever config.json says


def _same(name: str, config: Config) -> int:
    """A value that config.json keeps for every layer, and that must not differ."""
    value: Any = config.get(name)
    values = value if isinstance(value, list) else [value]
    if len(set(values)) != 1:
        raise ConfigError(f"{config.where}: '{name}' differs between layers")
    n: int = values[0]
    return n


def _scaled(config: Config, value: Any) -> Any:
    """`value` where the rotary base is scaled; only as the release scales it."""
    rope = config.rope
    if rope.get("rope_type") != "dynamic":
        return None
    found = (rope.get("alpha", 1000), rope.get("rope_theta", 10000.0), config.head_dim)
    if found != (1000, 10000.0, 128):
        raise ConfigError(
            f"{config.where}: alpha {found[0]}, rope_theta {found[1]} and heads of {found[2]} "
            "channels; llama.cpp runs 1000, 10000 and 128"
        )
    return value


HUNYUAN_MOE = tied_head_dropped(Architecture(
    hf_names=("HunYuanMoEV1ForCausalLM",),
    gguf_arch="hunyuan-moe",
    keys=no_key(TEXT_KEYS, ".expert_used_count"),
    late_keys=(
        Key("{arch}.expert_shared_feed_forward_length", "intermediate_size"),
        Key("{arch}.expert_feed_forward_length", lambda c: _same("moe_intermediate_size", c)),
        Key("{arch}.expert_used_count", lambda c: _same("moe_topk", c)),
        Key("{arch}.expert_shared_count", lambda c: _same("num_shared_expert", c)),
        # ten thousand times alpha to the power of n / (n - 2)
        Key("{arch}.rope.freq_base", lambda c: _scaled(c, 10000.0 * 1000 ** (128 / 126)),
            "FLOAT32"),
        Key("{arch}.rope.scaling.type", lambda c: _scaled(c, "none"), "STRING"),
        Key("{arch}.rope.scaling.factor", lambda c: _scaled(c, 1.0), "FLOAT32"),
        Key("{arch}.rope.scaling.original_context_length", lambda c: _scaled(c, LENGTH)),
        Key("{arch}.context_length", lambda c: _scaled(c, LENGTH)),
    ),
    expects=(RMS_NORM, SILU),
    dims={
        **DIMS,
        **expert_dims(),
        "used": lambda c: _same("moe_topk", c),
        "expert_ffn": lambda c: _same("moe_intermediate_size", c),
        "2expert_ffn": lambda c: 2 * _same("moe_intermediate_size", c),
        "shared_ffn": lambda c: _same("num_shared_expert", c) * c.get("intermediate_size"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        vector(f"{L}.self_attn.query_layernorm", "attn_q_norm", "head"),
        vector(f"{L}.self_attn.key_layernorm", "attn_k_norm", "head"),
        router(f"{L}.mlp.gate.wg"),
        *experts(),
        *gated_mlp(f"{L}.mlp.shared_mlp", "_shexp", "shared_ffn"),
    ),
    expert_order=DOWN_GATE_UP,
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    fuses=("qkv",),
))  # fmt: skip


def _ntk(config: Config, value: Any) -> Any:
    """`value` where the rotary base is scaled by alpha."""
    return value if config.rope.get("rope_type") in ("dynamic", "xdrope") else None


def _longest(config: Config) -> int | None:
    """llama.cpp's context length, whatever config.json says."""
    if config.rope.get("rope_type") != "dynamic":
        return None
    base, length = config.rope.get("rope_theta", 10000.0), config.get("max_position_embeddings")
    if base != 10000.0 or length not in (LENGTH, 32 * 1024):
        raise ConfigError(
            f"{config.where}: rope_theta {base} and max_position_embeddings {length}; llama.cpp "
            f"scales 10000 and {32 * 1024} or {LENGTH}"
        )
    return LENGTH


def _scaled_base(config: Config) -> float | None:
    """The base times alpha to the power of n / (n - 2)."""
    rope, n = config.rope, config.head_dim
    base, alpha = rope.get("rope_theta", 10000.0), rope.get("alpha", 50)
    return None if _ntk(config, 1) is None else base * alpha ** (n / (n - 2))


def _tied(config: Config) -> Architecture | None:
    """An output that is tied is left out, though a checkpoint may have it."""
    if not config.get("tie_word_embeddings", kind="BOOL", default=False):
        return None
    name = config.values["architectures"][0]
    arch = HUNYUAN_VL if name in HUNYUAN_VL.hf_names else HUNYUAN_DENSE
    maps = tuple(m for m in arch.maps if m.source != "lm_head.weight")
    drops = (*arch.drops, r"lm_head\.weight")
    return replace(arch, maps=maps, drops=drops, variant=lambda c: None)


HUNYUAN_DENSE = replace(
    HUNYUAN_MOE,
    hf_names=("HunYuanDenseV1ForCausalLM",),
    gguf_arch="hunyuan-dense",
    keys=no_key(TEXT_KEYS, ".expert_count"),
    late_keys=(
        Key("{arch}.rope.freq_base", _scaled_base, "FLOAT32"),
        Key("{arch}.rope.scaling.type", lambda c: _ntk(c, "none"), "STRING"),
        Key("{arch}.rope.scaling.factor", lambda c: _ntk(c, 1.0), "FLOAT32"),
        Key("{arch}.rope.scaling.original_context_length", _longest),
        Key("{arch}.context_length", _longest),
    ),
    dims=DIMS,
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(bias=None, out_bias=None),
        vector(f"{L}.self_attn.query_layernorm", "attn_q_norm", "head", optional=True),
        vector(f"{L}.self_attn.key_layernorm", "attn_k_norm", "head", optional=True),
        *gated_mlp(),
    ),
    expert_order=(),
    variant=_tied,
)


def _is_xd(config: Config) -> bool:
    """transformers writes it as scaling by alpha with sections."""
    kind = config.rope.get("rope_type")
    return bool(kind == "xdrope" or (kind == "dynamic" and "mrope_section" in config.rope))


def _alpha(config: Config) -> float:
    found = config.rope.get("alpha")
    if found is None:
        raise ConfigError(f"{config.where}: 'alpha' of the rotary settings is missing")
    return float(found)


def _whole_length(config: Config) -> int | None:
    found: int | None = config.get("max_position_embeddings")
    return found if _is_xd(config) else _longest(config)


def _sections(config: Config) -> Any:
    rope = config.rope
    return rope.get("mrope_section", rope.get("xdrope_section"))


HUNYUAN_VL = replace(
    HUNYUAN_DENSE,
    hf_names=("HunYuanVLForConditionalGeneration",),
    gguf_arch="hunyuan_vl",
    keys=reading(HUNYUAN_DENSE.keys, ".dimension_sections", config=_sections),
    late_keys=(
        Key("{arch}.rope.freq_base",
            lambda c: c.rope.get("rope_theta", 10000.0) if _is_xd(c) else _scaled_base(c),
            "FLOAT32"),
        Key("{arch}.rope.scaling.type", lambda c: _ntk(c, "none"), "STRING"),
        Key("{arch}.rope.scaling.factor",
            lambda c: c.rope.get("factor", 1) if _is_xd(c) else _ntk(c, 1.0), "FLOAT32"),
        Key("{arch}.rope.scaling.alpha", lambda c: _alpha(c) if _is_xd(c) else None, "FLOAT32"),
        Key("{arch}.rope.scaling.original_context_length", _whole_length),
        Key("{arch}.context_length", _whole_length),
    ),
)  # fmt: skip

FAMILY = (HUNYUAN_DENSE, HUNYUAN_VL, HUNYUAN_MOE)
