"""Nemotron-H: a layer is Mamba 2, attention, or a network of squared ReLUs, dense or with experts.

llama.cpp: `conversion/nemotron.py`, `conversion/granite.py` and `conversion/mamba.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EXPERT_FFN,
    MTP_LAYERS,
    SHARED_COUNT,
    TEXT_KEYS,
    VOCAB_SIZE,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    attention,
    expert_dims,
    nextn_layers,
    no_key,
    optional_key,
    router,
    router_bias,
    text_keys,
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

_KINDS = {
    "M": "Mamba", "mamba": "Mamba", "linear_attention": "Mamba", "*": "attention",
    "attention": "attention", "full_attention": "attention", "-": "MLP", "mlp": "MLP",
    "E": "experts", "moe": "experts",
}  # fmt: skip


def _pattern(config: Config) -> Any:
    return config.find("hybrid_override_pattern") or config.find("layers_block_type") or ()


def _kind(config: Config, bid: int) -> str:
    """What layer `bid` is."""
    pattern = _pattern(config)
    if len(pattern) != config.layers or pattern[bid] not in _KINDS:
        raise ConfigError(
            f"{config.where}: 'hybrid_override_pattern' names no kind for layer {bid} of "
            f"{config.layers}"
        )
    return _KINDS[pattern[bid]]


def _is(kind: str) -> Callable[[Config, int], bool]:
    """Whether a layer is of a kind. The block that predicts further tokens is of two."""

    def test(config: Config, bid: int) -> bool:
        if bid >= config.layers:
            return kind in ("attention", "experts")
        return _kind(config, bid) == kind

    return test


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
    """Where layers are listed, they tell: transformers 5 gives every model experts' numbers."""
    pattern = _pattern(config)
    sparse = any(_KINDS.get(kind) == "experts" for kind in pattern) or not pattern
    return NEMOTRON_H_MOE if sparse and config.find("num_experts_per_tok") else None


# releases call the trunk one or the other
TRUNKS = ("backbone", "model")


def _trunk(trunk: str) -> tuple[Map, ...]:
    layer = f"{trunk}.layers.{{bid}}"
    return (
        Map(f"{trunk}.embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector(f"{trunk}.norm_f", "output_norm"),
        vector(f"{layer}.norm", "attn_norm"),
        *attention(f"{layer}.mixer", True, bias=None, out_bias=None, layers="attention"),
        *mamba2(f"{layer}.mixer", "Mamba"),
    )


def _mlp(base: str) -> tuple[Map, ...]:
    return (
        *linear(f"{base}.up_proj", ("ffn", "hidden"), "ffn_up", layers="MLP"),
        *linear(f"{base}.down_proj", ("hidden", "ffn"), "ffn_down", layers="MLP"),
    )


def _sparse(base: str, layers: str = "experts", latent: str = "latent experts") -> tuple[Map, ...]:
    """Experts of two matrices; between two more, if they work in a narrower space."""
    x = f"{base}.experts"
    up, down = f"{x}.{{xid}}.up_proj.weight", f"{x}.{{xid}}.down_proj.weight"

    def plain(name: str, shape: tuple[str, str], role: str, layers: str) -> tuple[Map, ...]:
        return linear(f"{base}.{name}", shape, role, layers=layers, bias=False)

    return (
        router(f"{base}.gate", layers),
        router_bias(f"{base}.gate.e_score_correction_bias", layers),
        *plain("fc1_latent_proj", ("latent", "hidden"), "ffn_latent_down", latent),
        *plain("fc2_latent_proj", ("hidden", "latent"), "ffn_latent_up", latent),
        Map(up, ("expert_ffn", "latent"), stack("ffn_up_exps.weight"), layers),
        Map(down, ("latent", "expert_ffn"), stack("ffn_down_exps.weight"), layers),
        Map(f"{x}.up_proj", ("experts", "expert_ffn", "latent"), whole("ffn_up_exps.weight"),
            layers, like=up),
        Map(f"{x}.down_proj", ("experts", "latent", "expert_ffn"), whole("ffn_down_exps.weight"),
            layers, like=down),
        *plain("shared_experts.up_proj", ("shared_ffn", "hidden"), "ffn_up_shexp", layers),
        *plain("shared_experts.down_proj", ("hidden", "shared_ffn"), "ffn_down_shexp", layers),
    )  # fmt: skip


def _ahead(config: Config) -> int | None:
    """Layers that predict further tokens, of which llama.cpp runs one. Raises ConfigError."""
    if config.mtp > 1:
        raise ConfigError(
            f"{config.where}: 'num_nextn_predict_layers' is {config.mtp}; this architecture needs "
            "0 or 1 (--no-mtp leaves them out)"
        )
    return config.mtp or None


_HEAD = Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight"))

_KEYS = no_key(TEXT_KEYS, ".key_length", ".value_length")
# what transformers 5 says of models without experts, too
_OF_EXPERTS = (".expert_count", ".expert_used_count", ".expert_group_count",
               ".expert_group_used_count", ".expert_gating_func")  # fmt: skip

NEMOTRON_H = Architecture(
    hf_names=("NemotronHForCausalLM",),
    gguf_arch="nemotron_h",
    keys=no_key(_KEYS, *_OF_EXPERTS),
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
    ),
    # newer configs only list the layers
    aliases={
        "num_hidden_layers": lambda c: len(c.find("layers_block_type") or ()) or None,
        "head_dim": lambda c: c.get("head_dim", "attention_head_dim", default=None),
    },
    dims={
        **DIMS,
        **mamba2_dims(*_SIZES),
    },
    maps=(_HEAD, *(m for t in TRUNKS for m in (*_trunk(t), *_mlp(f"{t}.layers.{{bid}}.mixer")))),
    layers={kind: _is(kind) for kind in ("Mamba", "attention", "MLP", "experts")},
    variant=_experts_of,
    fuses=("qkv",),
    fuses_ahead=False,
)


# the head that predicts further tokens: attention and experts, two layers that become one block
_P = "mtp.layers"
PREDICTING = (
    Map(f"{_P}.0.eh_proj.weight", ("hidden", "2hidden"), whole("nextn.eh_proj.weight"), "mtp"),
    vector(f"{_P}.0.enorm", "nextn.enorm", layers="mtp"),
    vector(f"{_P}.0.hnorm", "nextn.hnorm", layers="mtp"),
    vector(f"{_P}.0.norm", "attn_norm", layers="mtp"),
    *attention(f"{_P}.0.mixer", rotated=True, layers="mtp"),
    vector(f"{_P}.1.norm", "post_attention_norm", layers="mtp"),
    *(
        replace(m, optional="latent_proj" in m.source)
        for m in _sparse(f"{_P}.1.mixer", "mtp", "mtp")
    ),
    vector(f"{_P}.1.final_layernorm", "nextn.shared_head_norm", layers="mtp"),
)

NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    gguf_arch="nemotron_h_moe",
    keys=_KEYS,
    late_keys=(
        *NEMOTRON_H_KEYS,
        per_layer("feed_forward_length", "moe_intermediate_size", _is("experts")),
        *text_keys("expert_used_count"),
        EXPERT_FFN,
        Key("{arch}.expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
        *text_keys("expert_count"),
        SHARED_COUNT,
        WEIGHTS_NORM,
        WEIGHTS_SCALE,
        Key("{arch}.expert_group_count", "n_group", default=1),
        optional_key("moe_latent_size", "moe_latent_size"),
        Key("{arch}.nextn_predict_layers", _ahead),
    ),
    dims={
        **NEMOTRON_H.dims,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("moe_shared_expert_intermediate_size"),
        "latent": lambda c: c.get("moe_latent_size", "hidden_size"),
    },
    maps=(
        _HEAD,
        *(m for t in TRUNKS for m in (*_trunk(t), *_sparse(f"{t}.layers.{{bid}}.mixer"))),
        *PREDICTING,
    ),
    layers={
        **NEMOTRON_H.layers,
        **MTP_LAYERS,
        "latent experts": lambda c, bid: (
            bool(c.find("moe_latent_size")) and _is("experts")(c, bid)
        ),
    },
    expert_order=("ffn_down_exps", "ffn_up_exps"),
    variant=lambda config: None,
    mtp=nextn_layers,
    keeps_mtp=True,
    rounds_ahead=frozenset({"ffn_gate_inp"}),
)  # fmt: skip


FAMILY = (NEMOTRON_H,)
