"""HunYuan with experts (A13B). llama.cpp: `conversion/hunyuan.py`, HunYuanMoEModel."""

from __future__ import annotations

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
    tied_head_dropped,
)
from quantkit.architectures.rules import Architecture, Config, Key, vector
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

FAMILY = (HUNYUAN_MOE,)
