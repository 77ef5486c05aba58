"""Nemotron-H: a layer is Mamba 2, attention, or a network of squared ReLUs, dense or with experts.

llama.cpp: `conversion/nemotron.py`, `conversion/granite.py` and `conversion/mamba.py`.
"""

from __future__ import annotations

from collections.abc import Callable
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
from quantkit.architectures.mamba import mamba2, mamba2_dims, per_layer, ssm_keys
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    stack,
    vector,
    whole,
)
from quantkit.errors import ConfigError

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


def _is(kind: str) -> Callable[[Config, int], bool]:
    return lambda config, bid: _kind(config, bid) == kind


_SIZES = ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel")

NEMOTRON_H_KEYS = (
    VOCAB_SIZE,
    Key("{arch}.rope.dimension_count",
        lambda c: c.get("hidden_size") // c.get("num_attention_heads")),
    *ssm_keys(*_SIZES),
    per_layer("attention.head_count_kv", "num_key_value_heads", _is("attention")),
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
    *mamba2(M, "Mamba"),
)  # fmt: skip


NEMOTRON_H = Architecture(
    hf_names=("NemotronHForCausalLM",),
    gguf_arch="nemotron_h",
    keys=no_key(TEXT_KEYS, ".key_length", ".value_length"),
    late_keys=(
        *NEMOTRON_H_KEYS,
        per_layer("feed_forward_length", "intermediate_size", _is("MLP")),
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
        **mamba2_dims(*_SIZES),
    },
    maps=(
        *_SHARED,
        *linear(f"{M}.up_proj", ("ffn", "hidden"), "ffn_up", layers="MLP", bias=False),
        *linear(f"{M}.down_proj", ("hidden", "ffn"), "ffn_down", layers="MLP", bias=False),
    ),
    layers={kind: _is(kind) for kind in ("Mamba", "attention", "MLP", "experts")},
    variant=_experts_of,
)

NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    gguf_arch="nemotron_h_moe",
    late_keys=(
        *NEMOTRON_H_KEYS,
        per_layer("feed_forward_length", "moe_intermediate_size", _is("experts")),
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
