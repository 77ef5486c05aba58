"""Ling and Ring (BailingMoE): one tensor for queries, keys and values. llama.cpp:
`conversion/bailingmoe.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.common import (
    DENSE_FIRST,
    DIMS,
    DOWN_GATE_UP,
    EXPERT_FFN,
    LEADING_DENSE,
    MTP_LAYERS,
    NEXTN_MAPS,
    NORMS,
    RMS_NORM,
    ROPE_DIMENSION,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    L,
    expert_dims,
    experts,
    gated_mlp,
    nextn_layers,
    partial_rope,
    router,
    router_bias,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    edited,
    parts,
    vector,
    whole,
)


def _head(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """The output matrix, whose columns the model brings to length one as it runs."""
    rows = whole("output.weight")
    return (edited(rows, ("unit_columns",)) if dims["norm_head"] else rows)(dims, source, xid)


AROUND = (
    Map("model.word_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
    vector("model.norm", "output_norm"),
    *NORMS,
    Map(f"{L}.attention.dense.weight", ("hidden", "q"), whole("attn_output.weight")),
)
_SPARSE = (
    *gated_mlp(layers="dense MLP"),
    router(layers="experts"),
    *experts(layers="experts"),
    *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
)


def _shared_ffn(config: Config) -> int:
    """The width of a shared expert: llama.cpp's loader multiplies it by their number."""
    n: int = config.get("moe_shared_expert_intermediate_size", "moe_intermediate_size")
    return n


BAILING = Architecture(
    hf_names=("BailingMoeForCausalLM",),
    gguf_arch="bailingmoe",
    keys=TEXT_KEYS,
    late_keys=(
        ROPE_DIMENSION,
        LEADING_DENSE,
        VOCAB_SIZE,
        EXPERT_FFN,
        Key("{arch}.expert_weights_scale", lambda c: 1.0, "FLOAT32"),
        Key("{arch}.expert_shared_count", "num_shared_experts"),
        WEIGHTS_NORM,
    ),
    expects=(RMS_NORM, SILU, Expect("use_bias", (False,)), Expect("use_qkv_bias", (False,))),
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("num_shared_experts") * c.get("moe_intermediate_size"),
        "norm_head": lambda c: int(c.get("norm_head", kind="BOOL", default=False)),
        "qkv": lambda c: c.head_dim
        * (c.get("num_attention_heads") + 2 * c.get("num_key_value_heads")),
    },
    maps=(
        *AROUND,
        Map("lm_head.weight", ("vocab", "hidden"), _head),
        Map(f"{L}.attention.query_key_value.weight", ("qkv", "hidden"),
            parts(("attn_q.weight", "q", "heads"), ("attn_k.weight", "kv", "kv_heads"),
                  ("attn_v.weight", "kv"))),
        *_SPARSE,
    ),
    layers=DENSE_FIRST,
    expert_order=DOWN_GATE_UP,
    fuses=("qkv",),
)  # fmt: skip


def _biased(config: Config, bid: int) -> bool:
    """Whether a layer has experts whose scores are biased as they are chosen."""
    biased: bool = config.get("moe_router_enable_expert_bias", kind="BOOL", default=True)
    return biased and DENSE_FIRST["experts"](config, bid)


BAILING_V2 = replace(
    BAILING,
    hf_names=("BailingMoeV2ForCausalLM",),
    gguf_arch="bailingmoe2",
    late_keys=(
        partial_rope(0.5),
        LEADING_DENSE,
        VOCAB_SIZE,
        EXPERT_FFN,
        Key("{arch}.expert_shared_feed_forward_length", _shared_ffn),
        WEIGHTS_SCALE,
        Key("{arch}.expert_shared_count", "num_shared_experts"),
        WEIGHTS_NORM,
        Key("{arch}.nextn_predict_layers",
            lambda c: None if c.find("num_nextn_predict_layers") is None else c.mtp),
    ),
    expects=(*BAILING.expects, Expect("use_qk_norm", (True,))),
    dims={**BAILING.dims, "shared_ffn": lambda c: c.get("num_shared_experts") * _shared_ffn(c)},
    maps=(
        *AROUND,
        Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight")),
        Map(f"{L}.attention.query_key_value.weight", ("qkv", "hidden"), whole("attn_qkv.weight")),
        vector(f"{L}.attention.query_layernorm", "attn_q_norm", "head"),
        vector(f"{L}.attention.key_layernorm", "attn_k_norm", "head"),
        *_SPARSE,
        router_bias(f"{L}.mlp.gate.expert_bias", "biased experts"),
        *NEXTN_MAPS[:3],
        vector(f"{L}.final_layernorm", "layer_output_norm", layers="mtp"),
    ),
    layers={**DENSE_FIRST, **MTP_LAYERS, "biased experts": _biased},
    mtp=nextn_layers,
    keeps_mtp=True,
    fuses=(),
)  # fmt: skip

# all channels are rotated, and the experts' biases are brought to a mean of zero
SARVAM = replace(
    BAILING_V2,
    hf_names=("SarvamMoEForCausalLM", "modeling_sarvam_moe.SarvamMoEForCausalLM"),
    late_keys=(ROPE_DIMENSION, *BAILING_V2.late_keys[1:]),
    maps=tuple(
        replace(m, rows=edited(m.rows, ("centered",))) if m.source.endswith(".expert_bias") else m
        for m in BAILING_V2.maps
    ),
)

FAMILY = (BAILING, BAILING_V2, SARVAM)
