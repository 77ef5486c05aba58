"""Qwen3-Next and Qwen3.5: linear attention in most layers, a head that predicts further tokens.

llama.cpp: `conversion/qwen.py`. Norms are kept as their distance from one, except the linear
attention's. In Qwen3.5 the value heads of a key head lie side by side; ggml wants the first of
every key head, then the second of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMALIZED,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    experts,
    gated_mlp,
    optional_key,
    partial_rope,
    qk_norms,
    router,
    shifted,
)
from quantkit.architectures.mtp_head import MTP_AROUND, in_mtp_head
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.qwen import ALL_SPARSE, QWEN2_MOE, SHARED_EXPERT
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    edited,
    piece,
    vector,
    whole,
)

A = f"{L}.linear_attn"
LINEAR = "linear attention"


def is_linear(config: Config, bid: int) -> bool:
    if bid >= config.layers:
        return False
    if (types := config.values.get("layer_types")) is not None:
        return bool(types[bid] == "linear_attention")
    return bool((bid + 1) % config.get("full_attention_interval") != 0)


def _sizes(dims: Dims) -> tuple[int, int, int, int]:
    """Key heads, their channels, value heads for each of them, their channels."""
    return dims["k_heads"], dims["k_head"], dims["v_heads"] // dims["k_heads"], dims["v_head"]


def _queries_to_gates(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """Each key head's queries, keys, values and gates, to all queries, all keys, all values; and
    all gates."""
    heads, k, per, v = _sizes(dims)
    qkv, z = (dims["conv"], source[1]), (dims["v_heads"] * v, source[1])
    out = []
    for h in range(heads):
        at = h * 2 * (k + per * v)
        for base, n in ((0, k), (heads * k, k), (2 * heads * k, per * v)):
            out.append(piece("attn_qkv.weight", qkv, n, base + h * n, at))
            at += n
        out.append(piece("attn_gate.weight", z, per * v, h * per * v, at))
    return out


def _tiled(role: str, channels: bool = True, before: bool = False) -> RowMap:
    """Rows of value heads, from `[key head, value head]` to `[value head, key head]`, of a head's
    `channels` or one each; `before` them come the rows of queries and keys, which stay."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        heads, k, per, v = _sizes(dims)
        shape = tuple(n for n in source if n > 1)  # a convolution's middle axis is one
        n, first = v if channels else 1, 2 * heads * k if before else 0
        head = [piece(role, shape, first)] if before else []
        return head + [
            piece(role, shape, n, first + (i * heads + h) * n, first + (h * per + i) * n)
            for i in range(per)
            for h in range(heads)
        ]

    return pieces


def _tiled_columns(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    heads, _, per, _ = _sizes(dims)
    rows = whole("ssm_out.weight")
    return (edited(rows, ("heads_across", heads, per)) if per > 1 else rows)(dims, source, xid)


FULL_ATTENTION = (
    *attention(layers="full attention")[1:],
    Map(f"{L}.self_attn.q_proj.weight", ("2q", "hidden"), whole("attn_q.weight"),
        "full attention"),  # queries and their gates
    *shifted(*qk_norms(layers="full attention")),
)  # fmt: skip
_NORMS = shifted(
    vector(f"{L}.input_layernorm", "attn_norm"),
    vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
)
SPARSE = (router(), *experts(like=False), *SHARED_EXPERT)


def _predicting(*maps: Map) -> tuple[Map, ...]:
    """The rows of a layer of the head that predicts further tokens, and of what is around it."""
    return (MTP_AROUND[0], *shifted(*MTP_AROUND[1:]), *in_mtp_head(*maps))


def _recurrent(config: Config) -> list[bool]:
    return [is_linear(config, bid) for bid in range(config.blocks)]


_SSM_KEYS = (
    Key("{arch}.nextn_predict_layers", lambda c: c.mtp or None),
    Key("{arch}.ssm.conv_kernel", "linear_conv_kernel_dim"),
    Key("{arch}.ssm.state_size", "linear_key_head_dim"),
    Key("{arch}.ssm.group_count", "linear_num_key_heads"),
    Key("{arch}.ssm.time_step_rank", "linear_num_value_heads"),
    Key("{arch}.ssm.inner_size",
        lambda c: c.get("linear_value_head_dim") * c.get("linear_num_value_heads")),
    Key("{arch}.attention.recurrent_layers", _recurrent, "BOOL"),
    Key("{arch}.full_attention_interval", "full_attention_interval"),
    partial_rope(0.25),
)  # fmt: skip

_LINEAR_SIZES = {
    "k_heads": lambda c: c.get("linear_num_key_heads"),
    "k_head": lambda c: c.get("linear_key_head_dim"),
    "v_heads": lambda c: c.get("linear_num_value_heads"),
    "2v_heads": lambda c: 2 * c.get("linear_num_value_heads"),
    "v_head": lambda c: c.get("linear_value_head_dim"),
    "values": lambda c: c.get("linear_num_value_heads") * c.get("linear_value_head_dim"),
    "conv": lambda c: (
        2 * c.get("linear_num_key_heads") * c.get("linear_key_head_dim")
        + c.get("linear_num_value_heads") * c.get("linear_value_head_dim")
    ),
    "qkvz": lambda c: (
        2 * c.get("linear_num_key_heads") * c.get("linear_key_head_dim")
        + 2 * c.get("linear_num_value_heads") * c.get("linear_value_head_dim")
    ),
    "kernel": lambda c: c.get("linear_conv_kernel_dim"),
    "2q": lambda c: 2 * c.get("num_attention_heads") * c.head_dim,
}

_TRUNK = (EMBEDDINGS[0], *shifted(EMBEDDINGS[1]), EMBEDDINGS[2], *_NORMS, *FULL_ATTENTION)

QWEN3_NEXT = Architecture(
    hf_names=("Qwen3NextForCausalLM",),
    gguf_arch="qwen3next",
    keys=TEXT_KEYS,
    late_keys=(*QWEN2_MOE.late_keys, *_SSM_KEYS),
    expects=(RMS_NORM, SILU, *ALL_SPARSE),
    assumes=(NORMALIZED,),
    dims={**QWEN2_MOE.dims, **_LINEAR_SIZES},
    maps=(
        *_TRUNK,
        Map(f"{A}.A_log", ("v_heads",), edited(whole("ssm_a"), ("minus_exp",)), LINEAR),
        Map(f"{A}.dt_bias", ("v_heads",), whole("ssm_dt.bias"), LINEAR),
        Map(f"{A}.conv1d.weight", ("conv", "one", "kernel"),
            whole("ssm_conv1d.weight", "conv", "kernel"), LINEAR),
        Map(f"{A}.in_proj_ba.weight", ("2v_heads", "hidden"), whole("ssm_ba.weight"), LINEAR),
        Map(f"{A}.in_proj_qkvz.weight", ("qkvz", "hidden"), _queries_to_gates, LINEAR),
        vector(f"{A}.norm", "ssm_norm", "v_head", LINEAR),
        Map(f"{A}.out_proj.weight", ("hidden", "values"), whole("ssm_out.weight"), LINEAR),
        *SPARSE,
        *_predicting(*_NORMS, *FULL_ATTENTION, *SPARSE),
    ),
    layers={
        LINEAR: is_linear,
        "full attention": lambda c, bid: not is_linear(c, bid),
        "mtp": lambda c, bid: bid >= c.layers,
    },
    expert_order=QWEN2_MOE.expert_order,
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "full_attention_interval": 4,
              "head_dim": 256, "partial_rotary_factor": 0.25},
    mtp=lambda c: c.get("mtp_num_hidden_layers", default=1),
    says_mtp="mtp_num_hidden_layers",
    keeps_mtp=True,
    fuses=("qkv", "gate_up_exps"),
)  # fmt: skip

TILED = (
    Map(f"{A}.A_log", ("v_heads",), edited(_tiled("ssm_a", False), ("minus_exp",)), LINEAR),
    Map(f"{A}.dt_bias", ("v_heads",), _tiled("ssm_dt.bias", False), LINEAR),
    Map(f"{A}.conv1d.weight", ("conv", "one", "kernel"),
        _tiled("ssm_conv1d.weight", before=True), LINEAR),
    Map(f"{A}.in_proj_a.weight", ("v_heads", "hidden"), _tiled("ssm_alpha.weight", False), LINEAR),
    Map(f"{A}.in_proj_b.weight", ("v_heads", "hidden"), _tiled("ssm_beta.weight", False), LINEAR),
    Map(f"{A}.in_proj_qkv.weight", ("conv", "hidden"), _tiled("attn_qkv.weight", before=True),
        LINEAR),
    Map(f"{A}.in_proj_z.weight", ("values", "hidden"), _tiled("attn_gate.weight"), LINEAR),
    vector(f"{A}.norm", "ssm_norm", "v_head", LINEAR),
    Map(f"{A}.out_proj.weight", ("hidden", "values"), _tiled_columns, LINEAR),
)  # fmt: skip


def _default_sections(config: Config) -> list[int] | None:
    return None if "mrope_section" in config.rope else [11, 11, 10, 0]


_SECTIONS = Key("{arch}.rope.dimension_sections", _default_sections, "INT32")

QWEN35_MOE = replace(
    QWEN3_NEXT,
    hf_names=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
    gguf_arch="qwen35moe",
    late_keys=(*QWEN3_NEXT.late_keys, _SECTIONS),
    maps=(
        *_TRUNK, *TILED, *SPARSE, *_predicting(*_NORMS, *FULL_ATTENTION, *SPARSE),
    ),
)  # fmt: skip

QWEN35 = replace(
    QWEN35_MOE,
    hf_names=("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM", "Qwen3_5TextModel"),
    gguf_arch="qwen35",
    late_keys=(optional_key("expert_feed_forward_length", "moe_intermediate_size"),
               *_SSM_KEYS, _SECTIONS, *POOLING_KEYS),
    expects=(RMS_NORM, SILU),
    dims={**DIMS, **_LINEAR_SIZES},
    maps=(
        *_TRUNK, *TILED, *gated_mlp(), *_predicting(*_NORMS, *FULL_ATTENTION, *gated_mlp()),
    ),
    expert_order=(),
    fuses=("qkv",),
)  # fmt: skip

# MiniCPM-V 4.6's text part
MINICPM_V = replace(
    QWEN35,
    hf_names=("MiniCPMV4_6ForConditionalGeneration",),
    drops=(r"(model\.)?merger\..*",),
)

FAMILY = (QWEN3_NEXT, QWEN35_MOE, QWEN35, MINICPM_V)
