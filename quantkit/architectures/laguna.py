"""Laguna: gated attention, with a number of heads of its own in each layer.

llama.cpp: `conversion/laguna.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    EXPERT_FFN,
    GATE_UP_DOWN,
    GATING,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    dense_said,
    expert_dims,
    experts,
    gated_mlp,
    qk_norms,
    router,
    router_bias,
)
from quantkit.architectures.rope import rope_of_class
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    reading,
    whole,
)
from quantkit.errors import ConfigError

BIAS = f"{L}.mlp.experts.e_score_correction_bias"
SHARED = f"{L}.mlp.shared_expert"


def _heads(config: Config) -> list[int]:
    found = config.find("num_attention_heads_per_layer")
    heads = found or [config.get("num_attention_heads")] * config.layers
    if len(heads) != config.layers:
        raise ConfigError(
            f"{config.where}: 'num_attention_heads_per_layer' must have a number for "
            f"each of {config.layers} layers"
        )
    return [int(n) for n in heads]


def _gates(config: Config) -> list[int]:
    """Gates of each layer: one a head, or one a channel. Raises ConfigError."""
    gating, types = config.find("gating"), config.find("gating_types")
    kinds = {"per_head": False, "per_element": True, "True": False}
    names = [str(t).replace("-", "_") for t in types or [gating] * config.layers]
    if len(names) != config.layers or not {*names} <= kinds.keys():
        raise ConfigError(
            f"{config.where}: 'gating' must be per-head or per-element, not {gating!r}"
        )
    if "per_element" in names and str(gating).replace("-", "_") != "per_element":
        raise ConfigError(
            f"{config.where}: 'gating_types' has per-element gates and 'gating' says {gating!r}, "
            "which other software goes by; say per-element there"
        )
    return [
        n * (config.head_dim if kinds[name] else 1)
        for n, name in zip(_heads(config), names, strict=True)
    ]


def _dense(config: Config) -> int:
    said = dense_said(config)
    if said is None:
        raise ConfigError(f"{config.where}: 'mlp_layer_types' is missing")
    return said


def _rotated(kind: str) -> Key:
    """The channels of a head that are rotated in layers of a kind."""

    def read(config: Config) -> int | None:
        rope = config.rope.get(f"{kind}_attention")
        if rope is None:
            return None
        return int(config.head_dim * float(rope.get("partial_rotary_factor", 1.0)))

    suffix = "_swa" if kind == "sliding" else ""
    return Key(f"{{arch}}.rope.dimension_count{suffix}", read)


LAGUNA = Architecture(
    hf_names=("LagunaForCausalLM",),
    gguf_arch="laguna",
    keys=reading(TEXT_KEYS, ".head_count", config=_heads),
    late_keys=(
        VOCAB_SIZE,
        Key(
            "{arch}.attention.sliding_window", lambda c: c.get("sliding_window", default=0) or None
        ),
        EXPERT_FFN,
        Key("{arch}.expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        Key("{arch}.expert_weights_norm", lambda c: True, "BOOL"),
        Key("{arch}.expert_weights_scale", "moe_routed_scaling_factor", "FLOAT32"),
        Key("{arch}.expert_gating_func", lambda c: GATING["sigmoid"]),
        Key("{arch}.leading_dense_block_count", _dense),
        _rotated("full"),
        _rotated("sliding"),
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("moe_apply_router_weight_on_input", (False,)),
        Expect("moe_router_logit_softcapping", (0,)),
    ),
    dims={
        **DIMS,
        **expert_dims(),
        "heads": _heads,
        "q": lambda c: [n * c.head_dim for n in _heads(c)],
        "gates": _gates,
        "shared_ffn": lambda c: c.get("shared_expert_intermediate_size"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *qk_norms(),
        Map(f"{L}.self_attn.g_proj.weight", ("gates", "hidden"), whole("attn_gate.weight")),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(BIAS, "experts"),
        router_bias(layers="experts", like=BIAS),
        *experts(layers="experts"),
        *gated_mlp(SHARED, "_shexp", "shared_ffn", "experts"),
        *(
            replace(m, source=m.source.replace(SHARED, f"{SHARED}s"), like=m.source)
            for m in gated_mlp(SHARED, "_shexp", "shared_ffn", "experts")
        ),
    ),
    layers={
        "experts": lambda c, bid: bid >= _dense(c),
        "dense MLP": lambda c, bid: bid < _dense(c),
    },
    expert_order=GATE_UP_DOWN,
    defaults={"rms_norm_eps": 1e-6, "head_dim": 128, "moe_routed_scaling_factor": 1.0},
    aliases={"rope_parameters": rope_of_class(5e5, 1e4, rotated=0.5)},
    fuses=(),
)

FAMILY = (LAGUNA,)
