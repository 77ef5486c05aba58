"""Jamba: Mamba 1 in most layers, experts in every second. llama.cpp: `conversion/jamba.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EXPERT_COUNT,
    RMS_NORM,
    SILU,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    router,
    text_keys,
)
from quantkit.architectures.mamba import per_layer
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    edited,
    linear,
    vector,
    whole,
)

FF, M = f"{L}.feed_forward", f"{L}.mamba"


def _attends(config: Config, bid: int) -> bool:
    period, offset = config.get("attn_layer_period"), config.get("attn_layer_offset")
    return bool(bid >= offset and (bid - offset) % max(period, 1) == 0)


def _sparse(config: Config, bid: int) -> bool:
    if config.get(*EXPERT_COUNT) == 1:
        return False
    period, offset = config.get("expert_layer_period"), config.get("expert_layer_offset")
    return bool(bid >= offset and (bid - offset) % max(period, 1) == 0)


def _inner(config: Config) -> int:
    n: int = config.get("mamba_expand") * config.get("hidden_size")
    return n


def _rank(config: Config) -> int:
    """Channels that the time steps go through; "auto" is a sixteenth."""
    if config.find("mamba_dt_rank") in (None, "auto"):
        return int(-(-config.get("hidden_size") // 16))
    return config.one("mamba_dt_rank")


JAMBA = Architecture(
    hf_names=("JambaForCausalLM",),
    gguf_arch="jamba",
    keys=(
        *text_keys("block_count", "context_length", "embedding_length", "feed_forward_length",
                   "head_count"),
        per_layer("attention.head_count_kv", "num_key_value_heads", _attends),
        Key("{arch}.ssm.conv_kernel", "mamba_d_conv"),
        Key("{arch}.ssm.inner_size", _inner),
        Key("{arch}.ssm.state_size", "mamba_d_state"),
        Key("{arch}.ssm.time_step_rank", _rank),
        *text_keys("layer_norm_rms_epsilon", "expert_count", "expert_used_count"),
    ),
    late_keys=(),
    expects=(RMS_NORM, SILU, Expect("mamba_proj_bias", (False,))),
    dims={
        **DIMS,
        **expert_dims("intermediate_size"),
        "inner": _inner,
        "2inner": lambda c: 2 * _inner(c),
        "kernel": lambda c: c.get("mamba_d_conv"),
        "state": lambda c: c.get("mamba_d_state"),
        "rank": _rank,
        "x": lambda c: _rank(c) + 2 * c.get("mamba_d_state"),
    },
    maps=(
        Map("model.embed_tokens.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("model.final_layernorm", "output_norm"),
        Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight")),
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.pre_ff_layernorm", "ffn_norm"),
        *attention(layers="attention"),
        Map(f"{M}.A_log", ("inner", "state"), edited(whole("ssm_a"), ("minus_exp",)), "Mamba"),
        Map(f"{M}.D", ("inner",), whole("ssm_d"), "Mamba"),
        vector(f"{M}.b_layernorm", "ssm_b_norm", "state", "Mamba"),
        vector(f"{M}.c_layernorm", "ssm_c_norm", "state", "Mamba"),
        vector(f"{M}.dt_layernorm", "ssm_dt_norm", "rank", "Mamba"),
        Map(f"{M}.conv1d.weight", ("inner", "one", "kernel"),
            whole("ssm_conv1d.weight", "inner", "kernel"), "Mamba"),
        Map(f"{M}.conv1d.bias", ("inner",), whole("ssm_conv1d.bias"), "Mamba", optional=True),
        *linear(f"{M}.in_proj", ("2inner", "hidden"), "ssm_in", layers="Mamba", bias=False),
        *linear(f"{M}.x_proj", ("x", "inner"), "ssm_x", layers="Mamba", bias=False),
        *linear(f"{M}.dt_proj", ("inner", "rank"), "ssm_dt", layers="Mamba", bias=True),
        *linear(f"{M}.out_proj", ("hidden", "inner"), "ssm_out", layers="Mamba", bias=False),
        *gated_mlp(FF, layers="dense MLP"),
        router(f"{FF}.router", "experts"),
        *experts(f"{FF}.experts", layers="experts"),
    ),
    layers={
        "attention": _attends,
        "Mamba": lambda c, bid: not _attends(c, bid),
        "experts": _sparse,
        "dense MLP": lambda c, bid: not _sparse(c, bid),
    },
    expert_order=DOWN_GATE_UP,
    defaults={"rms_norm_eps": 1e-6},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (JAMBA,)
