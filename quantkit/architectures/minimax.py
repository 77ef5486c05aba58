"""MiniMax-M2, and M1 and Text-01 with linear attention in seven of eight layers. llama.cpp:
`conversion/minimax.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    GATE_DOWN_UP,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    W123,
    L,
    attention,
    expert_dims,
    experts,
    qk_norms,
    router,
    router_bias,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    vector,
    whole,
)
from quantkit.errors import ConfigError

MOE, A = f"{L}.block_sparse_moe", f"{L}.self_attn"


def _rotated(config: Config) -> int:
    """Channels of a head that are rotated; transformers 5 tells their share instead."""
    share = config.rope.get("partial_rotary_factor", 1.0)
    n: int = config.get("rotary_dim", default=int(config.head_dim * share))
    return n


MINIMAX_M2 = Architecture(
    hf_names=("MiniMaxM2ForCausalLM",),
    gguf_arch="minimax-m2",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.expert_feed_forward_length", "intermediate_size"),
        Key("{arch}.rope.dimension_count", _rotated),
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("scoring_func", ("sigmoid",)),
        Expect("use_qk_norm", (True,)),
        Expect("use_routing_bias", (True,)),
        Expect("qk_norm_type", ("per_layer",)),
    ),
    dims={**DIMS, **expert_dims("intermediate_size")},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *qk_norms(("q", "kv")),
        router(f"{MOE}.gate"),
        router_bias(f"{MOE}.e_score_correction_bias"),
        *experts(f"{MOE}.experts", W123, fused=f"{L}.mlp.experts"),
        router(f"{L}.mlp.gate", like=f"{MOE}.gate.weight"),
        router_bias(f"{L}.mlp.e_score_correction_bias", like=f"{MOE}.e_score_correction_bias"),
    ),
    expert_order=GATE_DOWN_UP,
    defaults={"rope_theta": 5e6, "rms_norm_eps": 1e-6, "scoring_func": "sigmoid"},
    fuses=("qkv",),
)


def _attends(config: Config, bid: int) -> bool:
    """Whether a layer has full attention: every eighth has, which llama.cpp takes for granted."""
    full = (bid + 1) % 8 == 0
    types = config.find("attn_type_list")
    if not isinstance(types, list) or len(types) != config.layers or types[bid] != full:
        raise ConfigError(
            f"{config.where}: 'attn_type_list' must be 1 for every eighth of {config.layers} "
            "layers and 0 for the others"
        )
    return full


_PARTS = ("full_attention", "linear_attention", "mlp")


def _residual_scale(config: Config) -> float:
    """How much of a layer's input is kept: llama.cpp has one number for all parts of a layer."""
    first, *rest = (config.get(f"layernorm_{part}_alpha", kind="FLOAT32") for part in _PARTS)
    if any(value != first for value in rest):
        raise ConfigError(f"{config.where}: the three 'layernorm_..._alpha' must be the same")
    return float(first)


MINIMAX_01 = replace(
    MINIMAX_M2,
    hf_names=("MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"),
    gguf_arch="minimax-01",
    suppresses_zeros=True,
    late_keys=(
        Key("tokenizer.ggml.suppress_tokens", "zero rows", "INT32", default=None),
        Key("{arch}.residual_scale", _residual_scale, "FLOAT32"),
        Key("{arch}.rope.dimension_count", "rotary_dim"),
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("postnorm", (True,), required=True),
        Expect("shared_intermediate_size", (0,)),
        *(Expect(f"layernorm_{part}_beta", (1,), required=True) for part in _PARTS),
    ),
    dims={**MINIMAX_M2.dims, "3q": lambda c: 3 * c.get("num_attention_heads") * c.head_dim},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(layers="full attention"),
        Map(f"{A}.qkv_proj.weight", ("3q", "hidden"), whole("attn_qkv.weight"), "linear attention"),
        *linear(f"{A}.output_gate", ("q", "hidden"), "attn_gate", layers="linear attention",
                bias=False),
        *linear(f"{A}.out_proj", ("hidden", "q"), "attn_output", layers="linear attention",
                bias=False),
        vector(f"{A}.norm", "attn_norm_2", "q", "linear attention"),
        router(f"{MOE}.gate"),
        *experts(f"{MOE}.experts", W123),
    ),
    layers={
        "full attention": _attends,
        "linear attention": lambda c, bid: not _attends(c, bid),
    },
    defaults={},
    fuses=(),
)  # fmt: skip

FAMILY = (MINIMAX_M2, MINIMAX_01)
