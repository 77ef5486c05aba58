"""K-EXAONE with experts. llama.cpp: `conversion/exaone.py`, ExaoneMoEModel."""

from __future__ import annotations

from quantkit.architectures.common import (
    DENSE_FIRST,
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    LEADING_DENSE,
    MTP_AROUND,
    MTP_LAYERS,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    in_mtp_head,
    nextn_layers,
    optional_key,
    qk_norms,
    router,
    router_bias,
)
from quantkit.architectures.llama import rope_freqs
from quantkit.architectures.rules import Architecture, Config, Expect, Key

BIAS = f"{L}.mlp.e_score_correction_bias"


def _windows(config: Config) -> list[bool] | None:
    """Whether each layer sees a sliding window only."""
    if config.find("sliding_window") is None:
        return None
    types, pattern = config.find("layer_types"), config.find("sliding_window_pattern")
    if types is not None:
        return [kind == "sliding_attention" for kind in types]
    if isinstance(pattern, str):  # LLLG: three local layers, a global one
        return [pattern[bid % len(pattern)] == "L" for bid in range(config.layers)]
    if isinstance(pattern, int):
        return [(bid + 1) % pattern != 0 for bid in range(config.layers)]
    return None


def _shared_ffn(config: Config) -> int:
    n: int = config.get("moe_intermediate_size") * config.get("num_shared_experts")
    return n


EXAONE_MOE = Architecture(
    hf_names=("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"),
    gguf_arch="exaone-moe",
    keys=TEXT_KEYS,
    late_keys=(
        VOCAB_SIZE,
        optional_key("attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", _windows, "BOOL"),
        EXPERT_FFN,
        Key("{arch}.expert_shared_count", "num_shared_experts"),
        Key("{arch}.expert_shared_feed_forward_length", _shared_ffn),
        WEIGHTS_SCALE,
        WEIGHTS_NORM,
        LEADING_DENSE,
        Key("{arch}.nextn_predict_layers", lambda c: c.mtp),
        Key("{arch}.rope.scaling.type", lambda c: "none", "STRING"),
    ),
    # one head of further tokens: what is around it would be shared by several
    expects=(RMS_NORM, SILU, Expect("num_nextn_predict_layers", (0, 1))),
    aliases={"first_k_dense_replace": "first_last_k_dense_replace"},
    dims={**DIMS, **expert_dims(), "shared_ffn": _shared_ffn},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *qk_norms(),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(BIAS, "experts"),
        router_bias(layers="experts", like=BIAS),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
        *MTP_AROUND,
        *in_mtp_head(*NORMS, *attention(), *qk_norms(), *gated_mlp()),
    ),
    layers={**DENSE_FIRST, **MTP_LAYERS},
    mtp=nextn_layers,
    keeps_mtp=True,
    expert_order=DOWN_GATE_UP,
    # llama.cpp does not load the model without a scoring function
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5, "scoring_func": "sigmoid"},
    computed={"rope_freqs.weight": rope_freqs},
    fuses=("qkv",),
)

FAMILY = (EXAONE_MOE,)
