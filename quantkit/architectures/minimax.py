"""MiniMax-M2. llama.cpp: `conversion/minimax.py`."""

from __future__ import annotations

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
from quantkit.rules import Architecture, Config, Expect, Key

MOE = f"{L}.block_sparse_moe"


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

FAMILY = (MINIMAX_M2,)
