"""EXAONE 3.5 and 4, and K-EXAONE with experts. llama.cpp: `conversion/exaone.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DENSE_FIRST,
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    LEADING_DENSE,
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
    dense_said,
    expert_dims,
    experts,
    gated_mlp,
    nextn_layers,
    optional_key,
    qk_norms,
    router,
    router_bias,
    slides,
)
from quantkit.architectures.llama import rope_freqs
from quantkit.architectures.mtp_head import MTP_AROUND, MTP_LAYER, in_mtp_head, shared_by_heads
from quantkit.architectures.olmo import NORMS_AFTER
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Map, vector, whole

BIAS = f"{L}.mlp.e_score_correction_bias"


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
        Key(
            "{arch}.attention.sliding_window_pattern",
            lambda c: None if c.find("sliding_window") is None else slides(c),
            "BOOL",
        ),
        EXPERT_FFN,
        Key("{arch}.expert_shared_count", "num_shared_experts"),
        Key("{arch}.expert_shared_feed_forward_length", _shared_ffn),
        WEIGHTS_SCALE,
        WEIGHTS_NORM,
        LEADING_DENSE,
        Key("{arch}.nextn_predict_layers", lambda c: c.mtp),
        Key("{arch}.rope.scaling.type", lambda c: "none", "STRING"),
    ),
    expects=(RMS_NORM, SILU),
    aliases={
        "first_last_k_dense_replace": dense_said,
        "first_k_dense_replace": "first_last_k_dense_replace",
    },
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
        *shared_by_heads(*MTP_AROUND),
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
    fuses_ahead=False,
)

H = "transformer.h.{bid}"

EXAONE = Architecture(
    hf_names=("ExaoneForCausalLM",),
    gguf_arch="exaone",
    keys=(
        *TEXT_KEYS,
        # what config.json calls layer_norm_epsilon; llama.cpp's loader wants it by this name
        Key("{arch}.attention.layer_norm_rms_epsilon", "layer_norm_epsilon", "FLOAT32"),
    ),
    late_keys=(
        Key("{arch}.rope.dimension_count",
            lambda c: int(c.rope.get("partial_rotary_factor", 1.0)
                          * (c.get("hidden_size") // c.get("num_attention_heads")))),
    ),
    expects=(Expect("activation_function", ("silu",), required=True),),
    dims=DIMS,
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("transformer.ln_f", "output_norm"),
        EMBEDDINGS[2],
        vector(f"{H}.ln_1", "attn_norm"),
        vector(f"{H}.ln_2", "ffn_norm"),
        *attention(f"{H}.attn.attention", out="out_proj"),
        *gated_mlp(f"{H}.mlp", names=("c_fc_0", "c_fc_1", "c_proj")),
    ),
    computed={"rope_freqs.weight": rope_freqs},
    fuses=("qkv",),
)  # fmt: skip


def _windows(config: Config) -> int:
    """Layers with a window that llama.cpp's runtime, which has windows with 64 layers only, runs
    without one."""
    sliding = config.find("sliding_window") is not None and config.layers != 64
    return sum(slides(config) or ()) if sliding else 0


EXAONE4 = replace(
    EXAONE,
    hf_names=("Exaone4ForCausalLM",),
    gguf_arch="exaone4",
    keys=TEXT_KEYS,
    late_keys=(
        VOCAB_SIZE,
        optional_key("attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern",
            lambda c: slides(c) if c.find("sliding_window") is not None else None, "BOOL"),
    ),
    expects=(RMS_NORM, SILU),
    aliases={"layers with a window": _windows},
    assumes=(Expect("layers with a window", (0,)),),
    maps=(*EMBEDDINGS, *NORMS_AFTER, *attention(), *qk_norms(), *gated_mlp()),
    defaults={
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
)  # fmt: skip

# with a head that predicts further tokens, which llama.cpp keeps and does not run
_AHEAD = (*NORMS_AFTER, *attention(), *qk_norms(), *gated_mlp())
EXAONE4_5 = replace(
    EXAONE4,
    hf_names=("Exaone4_5_ForConditionalGeneration",),
    late_keys=(*EXAONE4.late_keys, Key("{arch}.nextn_predict_layers", lambda c: c.mtp or None)),
    maps=(
        *EXAONE4.maps, *MTP_AROUND, *shared_by_heads(*MTP_AROUND),
        *in_mtp_head(*_AHEAD),
        *shared_by_heads(*in_mtp_head(*_AHEAD, base=f"{MTP_LAYER}0")),
    ),
    layers=MTP_LAYERS,
    mtp=nextn_layers,
    keeps_mtp=True,
    fuses_ahead=False,
)  # fmt: skip

FAMILY = (EXAONE, EXAONE4, EXAONE4_5, EXAONE_MOE)
