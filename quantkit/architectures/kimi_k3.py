"""Kimi-K3: Kimi-Linear's two kinds of attention, each with an output gate; experts in a narrower
space; and layers that weigh the outputs of all blocks of layers before them.

llama.cpp: `conversion/kimi_k3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DENSE_FIRST,
    EMBEDDINGS,
    GATING,
    NORMS,
    RMS_NORM,
    TEXT_KEYS,
    W123,
    L,
    experts,
    gated_mlp,
    no_key,
    optional_key,
    router,
    router_bias,
)
from quantkit.architectures.deepseek import ATTN, LENGTHS, early
from quantkit.architectures.kimi_linear import (
    DELTA_MAPS,
    KIMI_LINEAR,
    LATENT_MAPS,
    LOWER_BOUND,
    MOE,
    decay,
    delta,
)
from quantkit.architectures.rules import Config, Expect, Key, Map, linear, vector, whole

# keys that Kimi-Linear lacks, by what they stand behind
AFTER = {"head_dim": (LOWER_BOUND,), "key_length": LENGTHS[1:]}
NARROW, NARROW_NORM = "experts in a narrower space", "a norm before the experts"
MAYBE_NORM = "perhaps a norm before the experts"


def _latent(config: Config) -> int:
    """The width that routed experts work on, or 0: that of the model."""
    n: int = config.get("routed_expert_hidden_size", default=0)
    return n


def _narrow(config: Config, bid: int) -> bool:
    return DENSE_FIRST["experts"](config, bid) and _latent(config) > 0


def _weighed(source: str, role: str) -> Map:
    """How outputs of earlier layers are scored: a norm and a projection to one number, of which
    only the product counts."""
    rows = whole(f"{role}.weight")
    return Map(f"{source}_proj.weight", ("hidden",), rows, times=f"{source}_norm.weight")


KIMI_K3 = replace(
    KIMI_LINEAR,
    hf_names=("KimiK3ForConditionalGeneration",),
    gguf_arch="kimi-k3",
    keys=(*no_key(TEXT_KEYS, ".key_length", ".value_length"), *map(early, LENGTHS)),
    late_keys=(
        *(
            new
            for key in KIMI_LINEAR.late_keys
            for new in (key, *AFTER.get(key.name.rpartition(".")[2], ()))
        ),
        Key("{arch}.expert_weights_norm", "moe_renormalize", "BOOL"),
        Key("{arch}.expert_gating_func", lambda c: GATING["sigmoid"]),
        optional_key("expert_latent_length", "routed_expert_hidden_size"),
        Key("{arch}.activation.situ_beta", "activation_situ_beta", "FLOAT32"),
        Key("{arch}.activation.situ_linear_beta", "activation_situ_linear_beta", "FLOAT32"),
        Key("{arch}.attn_res.block_size", "attn_res_block_size"),
    ),
    expects=(
        RMS_NORM,
        Expect("hidden_act", ("situ",), required=True),
        Expect("mla_use_nope", (True,), required=True),
        Expect("moe_router_activation_func", ("sigmoid",), required=True),
        Expect("moe_layer_freq", (1,)),
        Expect("num_expert_group", (1,)),
        Expect("linear_attn_config", required=True),
    ),
    dims={**KIMI_LINEAR.dims, "latent": lambda c: _latent(c) or c.get("hidden_size")},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        _weighed(f"{L}.self_attention_res", "attn_res_score"),
        _weighed(f"{L}.mlp_res", "ffn_res_score"),
        _weighed("model.output_attn_res", "output_res_score"),
        *LATENT_MAPS,
        *linear(f"{ATTN}.g_proj", ("values", "hidden"), "attn_gate", layers="latent attention",
                bias=False),
        *DELTA_MAPS,
        *delta("g_proj", "ssm_g", ("delta", "hidden")),
        decay("d_heads", wide=True),
        *gated_mlp(layers="dense MLP"),
        router(f"{MOE}.gate", "experts"),
        router_bias(f"{MOE}.gate.e_score_correction_bias", "experts"),
        *experts(f"{MOE}.experts", W123, "experts", hidden="latent"),
        *linear(f"{MOE}.routed_expert_down_proj", ("latent", "hidden"), "ffn_routed_down",
                layers=NARROW, bias=False),
        vector(f"{MOE}.routed_expert_norm", "ffn_routed_norm", "latent", NARROW_NORM),
        vector(f"{MOE}.routed_expert_norm", "ffn_routed_norm", "latent", MAYBE_NORM,
               optional=True),
        *linear(f"{MOE}.routed_expert_up_proj", ("hidden", "latent"), "ffn_routed_up",
                layers=NARROW, bias=False),
        *gated_mlp(f"{MOE}.shared_experts", "_shexp", "shared_ffn", "shared experts"),
    ),
    layers={
        **KIMI_LINEAR.layers,
        NARROW: _narrow,
        NARROW_NORM: lambda c, bid: _narrow(c, bid) and c.find("latent_moe_use_norm") is True,
        MAYBE_NORM: lambda c, bid: _narrow(c, bid) and c.find("latent_moe_use_norm") is None,
    },
)  # fmt: skip

FAMILY = (KIMI_K3,)
