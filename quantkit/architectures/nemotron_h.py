"""Nemotron-H: a layer is Mamba 2, attention, or a network of squared ReLUs, dense or with experts.

llama.cpp: `conversion/nemotron.py`, `conversion/granite.py` and `conversion/mamba.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EXPERT_FFN,
    SHARED_COUNT,
    TEXT_KEYS,
    VOCAB_SIZE,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    attention,
    expert_dims,
    no_key,
    router,
    router_bias,
)
from quantkit.errors import ConfigError
from quantkit.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    edited,
    linear,
    stack,
    vector,
    whole,
)

L = "backbone.layers.{bid}"
M = f"{L}.mixer"

_KINDS = {"M": "Mamba", "mamba": "Mamba", "*": "attention", "attention": "attention",
          "-": "MLP", "mlp": "MLP", "E": "experts", "moe": "experts"}  # fmt: skip


def _kind(config: Config, bid: int) -> str:
    """What layer `bid` is."""
    pattern = config.find("hybrid_override_pattern") or config.find("layers_block_type") or ()
    if len(pattern) != config.layers or pattern[bid] not in _KINDS:
        raise ConfigError(
            f"{config.where}: 'hybrid_override_pattern' names no kind for layer {bid} of "
            f"{config.layers}"
        )
    return _KINDS[pattern[bid]]


def _per_layer(key: str, kind: str, name: str) -> Key:
    """A value for the layers of one kind, zero for the others."""

    def read(config: Config) -> list[int]:
        n = config.get(name)
        return [n if _kind(config, bid) == kind else 0 for bid in range(config.layers)]

    return Key("{arch}." + key, read)


def _inner(config: Config) -> int:
    n: int = config.get("mamba_num_heads") * config.get("mamba_head_dim")
    return n


NEMOTRON_H_KEYS = (
    VOCAB_SIZE,
    Key("{arch}.rope.dimension_count",
        lambda c: c.get("hidden_size") // c.get("num_attention_heads")),
    Key("{arch}.ssm.conv_kernel", "conv_kernel"),
    Key("{arch}.ssm.state_size", "ssm_state_size"),
    Key("{arch}.ssm.group_count", "n_groups"),
    Key("{arch}.ssm.inner_size", _inner),
    Key("{arch}.ssm.time_step_rank", "mamba_num_heads"),
    _per_layer("attention.head_count_kv", "attention", "num_key_value_heads"),
    Key("{arch}.rope.scaling.finetuned", lambda c: False, "BOOL"),
    Key("{arch}.context_length", lambda c: 1 << 20),
    Key("{arch}.attention.key_length", lambda c: c.head_dim),
    Key("{arch}.attention.value_length", lambda c: c.head_dim),
)  # fmt: skip


def _experts_of(config: Config) -> Architecture | None:
    return NEMOTRON_H_MOE if config.find("num_experts_per_tok") else None


_SHARED = (
    Map("backbone.embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
    vector("backbone.norm_f", "output_norm"),
    Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight")),
    vector(f"{L}.norm", "attn_norm"),
    *attention(M, rotated=True, layers="attention"),
    Map(f"{M}.A_log", ("ssm_heads",), edited(whole("ssm_a", "ssm_heads", "one"), ("minus_exp",)),
        "Mamba"),
    Map(f"{M}.D", ("ssm_heads",), whole("ssm_d", "ssm_heads", "one"), "Mamba"),
    Map(f"{M}.dt_bias", ("ssm_heads",), whole("ssm_dt.bias"), "Mamba"),
    Map(f"{M}.conv1d.weight", ("conv", "one", "kernel"),
        whole("ssm_conv1d.weight", "conv", "kernel"), "Mamba"),
    Map(f"{M}.conv1d.bias", ("conv",), whole("ssm_conv1d.bias"), "Mamba", optional=True),
    *linear(f"{M}.in_proj", ("ssm_in", "hidden"), "ssm_in", layers="Mamba", bias=False),
    *linear(f"{M}.out_proj", ("hidden", "inner"), "ssm_out", layers="Mamba", bias=False),
    Map(f"{M}.norm.weight", ("inner",), whole("ssm_norm.weight", "groups", "group"), "Mamba"),
)  # fmt: skip


NEMOTRON_H = Architecture(
    hf_names=("NemotronHForCausalLM",),
    gguf_arch="nemotron_h",
    keys=no_key(TEXT_KEYS, ".key_length", ".value_length"),
    late_keys=(
        *NEMOTRON_H_KEYS,
        _per_layer("feed_forward_length", "MLP", "intermediate_size"),
    ),
    expects=(
        Expect("mlp_hidden_act", ("relu2",)),
        Expect("mamba_hidden_act", ("silu",)),
        Expect("use_bias", (False,)),
        Expect("mlp_bias", (False,)),
        Expect("mamba_proj_bias", (False,)),
        Expect("moe_latent_size", (None,)),
    ),
    dims={
        **DIMS,
        "ssm_heads": lambda c: c.get("mamba_num_heads"),
        "groups": lambda c: c.get("n_groups"),
        "group": lambda c: _inner(c) // c.get("n_groups"),
        "inner": _inner,
        "kernel": lambda c: c.get("conv_kernel"),
        "conv": lambda c: _inner(c) + 2 * c.get("n_groups") * c.get("ssm_state_size"),
        "ssm_in": lambda c: 2 * (_inner(c) + c.get("n_groups") * c.get("ssm_state_size"))
        + c.get("mamba_num_heads"),
    },
    maps=(
        *_SHARED,
        *linear(f"{M}.up_proj", ("ffn", "hidden"), "ffn_up", layers="MLP", bias=False),
        *linear(f"{M}.down_proj", ("hidden", "ffn"), "ffn_down", layers="MLP", bias=False),
    ),
    layers={
        "Mamba": lambda c, bid: _kind(c, bid) == "Mamba",
        "attention": lambda c, bid: _kind(c, bid) == "attention",
        "MLP": lambda c, bid: _kind(c, bid) == "MLP",
        "experts": lambda c, bid: _kind(c, bid) == "experts",
    },
    variant=_experts_of,
)

NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    gguf_arch="nemotron_h_moe",
    late_keys=(
        *NEMOTRON_H_KEYS,
        _per_layer("feed_forward_length", "experts", "moe_intermediate_size"),
        EXPERT_FFN,
        Key("{arch}.expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
        SHARED_COUNT,
        WEIGHTS_NORM,
        WEIGHTS_SCALE,
    ),
    dims={
        **NEMOTRON_H.dims,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("moe_shared_expert_intermediate_size"),
    },
    maps=(
        *_SHARED,
        router(f"{M}.gate", "experts"),
        router_bias(f"{M}.gate.e_score_correction_bias", "experts"),
        Map(f"{M}.experts.{{xid}}.up_proj.weight", ("expert_ffn", "hidden"),
            stack("ffn_up_exps.weight"), "experts"),
        Map(f"{M}.experts.{{xid}}.down_proj.weight", ("hidden", "expert_ffn"),
            stack("ffn_down_exps.weight"), "experts"),
        Map(f"{M}.experts.up_proj", ("experts", "expert_ffn", "hidden"),
            whole("ffn_up_exps.weight"), "experts", like=f"{M}.experts.{{xid}}.up_proj.weight"),
        Map(f"{M}.experts.down_proj", ("experts", "hidden", "expert_ffn"),
            whole("ffn_down_exps.weight"), "experts",
            like=f"{M}.experts.{{xid}}.down_proj.weight"),
        *linear(f"{M}.shared_experts.up_proj", ("shared_ffn", "hidden"), "ffn_up_shexp",
                layers="experts", bias=False),
        *linear(f"{M}.shared_experts.down_proj", ("hidden", "shared_ffn"), "ffn_down_shexp",
                layers="experts", bias=False),
    ),
    expert_order=("ffn_down_exps", "ffn_up_exps"),
    variant=lambda config: None,
)  # fmt: skip

FAMILY = (NEMOTRON_H,)
