"""K2-Horizon, dense or with experts, of values too (MoVA). llama.cpp:
`conversion/k2_horizon.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_COUNT,
    EXPERT_FFN,
    EXPERT_USED,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    experts,
    gated_mlp,
    optional_key,
    qk_norms,
    router,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    stack,
    whole,
)
from quantkit.errors import ConfigError

A = f"{L}.self_attn"


def _experts(config: Config) -> int:
    n: int = config.get(*EXPERT_COUNT, default=0)
    return n


def _dense(config: Config) -> int:
    """How many layers at the beginning have no experts. Raises ConfigError."""
    if not _experts(config):
        return config.layers
    said, dense = config.get("num_dense_layers", default=None), config.find("mlp_only_layers") or []
    n: int = said if said is not None else len(dense)
    if said is None and sorted(dense) != [*range(n)]:
        raise ConfigError(
            f"{config.where}: 'mlp_only_layers' is {dense}; llama.cpp runs dense "
            "layers at the beginning"
        )
    return n


def _values(config: Config) -> int:
    """Experts of values, none if a token uses none."""
    used = config.get("mova_num_experts_per_tok", default=0)
    n: int = config.get("mova_num_experts", default=0)
    if used > n:
        raise ConfigError(f"{config.where}: {used} experts of values are used of {n}")
    return n if used else 0


def _shared(config: Config) -> int:
    n: int = config.get("num_shared_experts", default=0)
    return n


def _shared_ffn(config: Config) -> int:
    n: int = _shared(config) * config.get("moe_intermediate_size", default=0)
    return n


def _sparse(config: Config, bid: int) -> bool:
    return bid >= _dense(config)


def _if_sparse(key: Key) -> Key:
    def read(config: Config) -> Any:
        return key.read(config) if _experts(config) else None

    return replace(key, config=read)


K2_HORIZON = Architecture(
    hf_names=("K2HorizonForCausalLM",),
    gguf_arch="k2-horizon",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.attention.group_norm_groups", "layernorm_num_groups", default=1),
        optional_key("rope.dimension_count", "rope_head_dim"),
        *map(_if_sparse, (
            EXPERT_FFN,
            Key("{arch}.leading_dense_block_count", _dense),
            Key("{arch}.moe_every_n_layers", "decoder_sparse_step", default=1),
            Key("{arch}.expert_shared_count", _shared),
            Key("{arch}.expert_weights_norm", "norm_topk_prob", "BOOL", default=False),
            Key("{arch}.expert_shared_feed_forward_length", lambda c: _shared_ffn(c) or None),
            optional_key("expert_weights_scale", "router_scaling_factor", kind="FLOAT32"),
        )),
        Key("{arch}.attention.value_expert_count", lambda c: _values(c) or None),
        Key("{arch}.attention.value_expert_used_count",
            lambda c: c.get("mova_num_experts_per_tok") if _values(c) else None),
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("attention_gate_func", ("softplus",)),
        Expect("decoder_sparse_step", (1,)),
        Expect("attention_bias", (False,)),
    ),
    dims={
        **DIMS,
        "experts": _experts,
        "used": lambda c: c.get(*EXPERT_USED, default=0),
        "expert_ffn": lambda c: c.get("moe_intermediate_size", default=0),
        "2expert_ffn": lambda c: 2 * c.get("moe_intermediate_size", default=0),
        "shared_ffn": _shared_ffn,
        "value experts": _values,
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *(replace(m, layers="one value" if ".v_proj." in m.source else "") for m in attention()),
        *qk_norms(("q", "kv"), "norms of queries and keys"),
        *linear(f"{A}.gate_proj", ("q", "hidden"), "attn_gate", layers="gate", bias=False),
        *linear(f"{A}.attn_gate_proj", ("q", "hidden"), "attn_gate", layers="gate", bias=False),
        *linear(f"{A}.v_router", ("value experts", "hidden"), "attn_v_gate", layers="values"),
        Map(f"{A}.v_experts.{{xid}}.weight", ("kv", "hidden"),
            stack("attn_v_exps.weight", "value experts"), "values", experts="value experts"),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        Map(f"{L}.mlp.gate.bias", ("experts",), whole("exp_probs_b.bias"), "experts", True),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "shared experts"),
    ),
    layers={
        "dense MLP": lambda c, bid: not _sparse(c, bid),
        "experts": _sparse,
        "shared experts": lambda c, bid: bool(_shared(c)) and _sparse(c, bid),
        "values": lambda c, bid: bool(_values(c)) and _sparse(c, bid),
        "one value": lambda c, bid: not (_values(c) and _sparse(c, bid)),
        "gate": lambda c, bid: bool(c.find("attention_gate_func")),
        "norms of queries and keys": lambda c, bid: bool(c.find("query_key_norm")),
    },
    expert_order=DOWN_GATE_UP,
)  # fmt: skip

FAMILY = (K2_HORIZON,)
