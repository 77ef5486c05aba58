"""ERNIE 4.5, dense and with experts. llama.cpp: `conversion/ernie.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    EXPERT_FFN,
    GATE_UP_DOWN,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    kv_heads,
    no_key,
    router,
    text_keys,
    with_head_dim,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    halves,
    parts,
    whole,
)

BIAS = f"{L}.mlp.moe_statics.e_score_correction_bias"


def _sparse(config: Config, bid: int) -> bool:
    last = config.get("moe_layer_end_index", kind="INT32", default=-1) % config.layers  # -1: all
    first, step = config.get("moe_layer_start_index"), config.get("moe_layer_interval")
    return bool(first <= bid <= last and (bid + 1) % step == 0)


def _shared(config: Config) -> int:
    n: int = config.get("moe_num_shared_experts", default=0)
    return n


def _shared_ffn(config: Config) -> int:
    """llama.cpp's converter writes `intermediate_size // num_key_value_heads`, which is the same in
    the models that were released; its loader wants the width that the tensors have."""
    n: int = _shared(config) * config.get("moe_intermediate_size")
    return n


ERNIE4_5 = Architecture(
    hf_names=("Ernie4_5_ForCausalLM", "Ernie4_5ForCausalLM"),
    gguf_arch="ernie4_5",
    keys=with_head_dim(TEXT_KEYS),
    late_keys=(),
    expects=(SILU,),
    dims={
        **DIMS,
        "qkv": lambda c: c.head_dim * (c.get("num_attention_heads") + 2 * kv_heads(c)),
        "2ffn": lambda c: 2 * c.get("intermediate_size"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(bias=None, out_bias=None),
        *gated_mlp(),
        Map(f"{L}.self_attn.qkv_proj.weight", ("qkv", "hidden"),
            parts(("attn_q.weight", "q"), ("attn_k.weight", "kv"), ("attn_v.weight", "kv"))),
        Map(f"{L}.mlp.up_gate_proj.weight", ("2ffn", "hidden"),
            halves("ffn_gate.weight", "ffn_up.weight")),
    ),
    renames=((r"ernie\.", "model."),),
    defaults={
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "head_dim": 128, "tie_word_embeddings": True,
    },
    fuses=("qkv",),
)  # fmt: skip

# its text part; the encoder's tensors are left out as every family's are
PADDLEOCR = replace(
    ERNIE4_5, hf_names=("PaddleOCRVLForConditionalGeneration",), gguf_arch="paddleocr"
)

ERNIE4_5_MOE = Architecture(
    hf_names=("Ernie4_5_MoeForCausalLM",),
    gguf_arch="ernie4_5-moe",
    keys=no_key(TEXT_KEYS, ".expert_count", ".expert_used_count"),
    late_keys=(
        *text_keys("expert_count", "expert_used_count"),
        Key("{arch}.interleave_moe_layer_step", "moe_layer_interval"),
        Key("{arch}.leading_dense_block_count", "moe_layer_start_index"),
        EXPERT_FFN,
        Key("{arch}.expert_shared_count", "moe_num_shared_experts", default=None),
        Key("{arch}.expert_shared_feed_forward_length", lambda c: _shared_ffn(c) or None),
    ),
    expects=(RMS_NORM, SILU, Expect("use_bias", (False,))),
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": _shared_ffn,
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        Map(BIAS, ("one", "experts"), whole("exp_probs_b.bias"), "biased experts"),
        Map(f"{L}.mlp.gate.moe_statics.e_score_correction_bias", ("one", "experts"),
            whole("exp_probs_b.bias"), "biased experts", like=BIAS),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "shared experts"),
    ),
    layers={
        "experts": _sparse,
        "biased experts": lambda c, bid: (
            c.get("moe_use_aux_free", kind="BOOL", default=True) and _sparse(c, bid)
        ),
        "shared experts": lambda c, bid: bool(_shared(c)) and _sparse(c, bid),
        "dense MLP": lambda c, bid: not _sparse(c, bid),
    },
    expert_order=GATE_UP_DOWN,
    drops=(r"model\.mtp_.*",),  # llama.cpp does not convert what predicts further tokens
    defaults={"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "moe_layer_interval": 1,
              "tie_word_embeddings": True},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (ERNIE4_5, PADDLEOCR, ERNIE4_5_MOE)
