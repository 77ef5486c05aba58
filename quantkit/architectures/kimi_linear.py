"""Kimi-Linear: delta attention in most layers, DeepSeek's latent attention in the others.

llama.cpp: `conversion/kimi_linear.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantkit.architectures.common import (
    DENSE_FIRST,
    EMBEDDINGS,
    EXPERT_FFN,
    GATE_DOWN_UP,
    LEADING_DENSE,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    W123,
    WEIGHTS_SCALE,
    L,
    dense_said,
    experts,
    gated_mlp,
    no_key,
    optional_key,
    router,
    router_bias,
)
from quantkit.architectures.deepseek import ATTN, DEEPSEEK_V2, LATENT, LENGTHS, early
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dim,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    edited,
    linear,
    piece,
    vector,
    whole,
)

MOE = f"{L}.block_sparse_moe"
DELTA = "delta attention"
Kind = Callable[[Config, int], bool]


def _is_full(config: Config, bid: int) -> bool:
    """`full_attn_layers` counts from one."""
    return bid + 1 in (config.find("linear_attn_config.full_attn_layers") or ())


def _kv_heads(config: Config) -> list[int]:
    """The latent is one head; delta attention has none."""
    return [int(_is_full(config, bid)) for bid in range(config.layers)]


def _conv(name: str) -> Map:
    rows = whole(f"ssm_conv1d_{name}.weight", "one", "delta", "one", "kernel")
    return Map(f"{ATTN}.{name}_conv1d.weight", ("delta", "one", "kernel"), rows, DELTA)


def delta(source: str, role: str, shape: tuple[str, str]) -> tuple[Map, ...]:
    """A matrix of the layers with delta attention."""
    return linear(f"{ATTN}.{source}", shape, role, layers=DELTA, bias=False)


def decay(*shape: str, wide: bool = False) -> Map:
    """How fast each head forgets: llama.cpp wants `-exp` of what is stored. `wide`: its converter
    computes it in float32, also where that is float16."""
    edits = (("float32",), ("minus_exp",)) if wide else (("minus_exp",),)
    return Map(f"{ATTN}.A_log", shape, edited(whole("ssm_a"), *edits), DELTA)


# delta attention, but for its output gate and the decay
DELTA_MAPS = (
    *delta("q_proj", "attn_q", ("delta", "hidden")),
    *delta("k_proj", "attn_k", ("delta", "hidden")),
    *delta("v_proj", "attn_v", ("delta", "hidden")),
    *delta("o_proj", "attn_output", ("hidden", "delta")),
    *map(_conv, "qkv"),
    *delta("f_a_proj", "ssm_f_a", ("d_head", "hidden")),
    *delta("f_b_proj", "ssm_f_b", ("delta", "d_head")),
    *delta("b_proj", "ssm_beta", ("d_heads", "hidden")),
    vector(f"{ATTN}.o_norm", "ssm_norm", "d_head", DELTA),
    Map(f"{ATTN}.dt_bias", ("delta",), whole("ssm_dt.bias"), DELTA),
)
GATE_MAPS = (
    *delta("g_a_proj", "ssm_g_a", ("d_head", "hidden")),
    *delta("g_b_proj", "ssm_g_b", ("delta", "d_head")),
)
DELTA_DIMS: dict[str, Dim] = {
    "kernel": lambda c: c.get("linear_attn_config.short_conv_kernel_size"),
    "d_heads": lambda c: c.get("linear_attn_config.num_heads"),
    "d_head": lambda c: c.get("linear_attn_config.head_dim"),
    "delta": lambda c: c.get("linear_attn_config.num_heads") * c.get("linear_attn_config.head_dim"),
}
DELTA_KEYS = (
    Key("{arch}.ssm.conv_kernel", "linear_attn_config.short_conv_kernel_size"),
    Key("{arch}.kda.head_dim", "linear_attn_config.head_dim"),
)
LOWER_BOUND = Key("{arch}.kda.gate_lower_bound", "linear_attn_config.gate_lower_bound", "FLOAT32",
                  default=None)  # fmt: skip


def _convolutions(dims: Dims, source: Shape, xid: int) -> list[Piece]:
    n, kernel = dims["delta"], dims["kernel"]
    return [
        piece(f"ssm_conv1d_{name}.weight", (1, n, 1, kernel), n, at=i * n)
        for i, name in enumerate("qkv")
    ]


# those of queries, keys and values, one below another, as transformers 5 has them in memory
CONVOLUTIONS = Map(
    f"{ATTN}.conv1d.weight", ("3delta", "one", "kernel"), _convolutions, DELTA,
    like=f"{ATTN}.k_conv1d.weight",
)  # fmt: skip


def latent_layers(is_latent: Kind) -> dict[str, Kind]:
    """The kinds of layers where some have latent attention and the others delta attention."""
    return {
        "latent attention": is_latent,
        "one query matrix": lambda c, bid: is_latent(c, bid) and not c.find("q_lora_rank"),
        "two": lambda c, bid: is_latent(c, bid) and bool(c.find("q_lora_rank")),
        DELTA: lambda c, bid: not is_latent(c, bid),
    }


LATENT_MAPS = tuple(replace(m, layers=m.layers or "latent attention") for m in LATENT)


KIMI_LINEAR = Architecture(
    hf_names=("KimiLinearForCausalLM", "KimiLinearModel"),
    gguf_arch="kimi-linear",
    keys=(
        *no_key(TEXT_KEYS, ".key_length", ".value_length"),
        early(LENGTHS[0]),
        optional_key("attention.value_length", "head_dim"),
    ),
    late_keys=(
        VOCAB_SIZE,
        Key("{arch}.attention.head_count_kv", _kv_heads),
        *DELTA_KEYS,
        *(key for key in DEEPSEEK_V2.late_keys if key.name.endswith("_lora_rank")),
        Key("{arch}.rope.dimension_count", "qk_rope_head_dim"),
        LENGTHS[0],
        *(key for key in DEEPSEEK_V2.late_keys if key.name.endswith("_mla")),
        EXPERT_FFN,
        Key("{arch}.expert_shared_count", "num_shared_experts"),
        LEADING_DENSE,
        WEIGHTS_SCALE,
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("linear_attn_config", required=True),
        Expect("moe_layer_freq", (1,)),
        Expect("num_expert_group", (1,)),
        Expect("moe_renormalize", (True,)),
    ),
    dims={
        **DEEPSEEK_V2.dims,
        "used": lambda c: c.get("num_experts_per_token"),
        "shared_ffn": lambda c: c.get("num_shared_experts") * c.get("moe_intermediate_size"),
        **DELTA_DIMS,
        "3delta": lambda c: (
            3 * c.get("linear_attn_config.num_heads") * c.get("linear_attn_config.head_dim")
        ),
    },
    # dense layers as transformers 5 saves them, and what it has in memory
    renames=(
        (r"\.block_sparse_moe\.(?=(gate|up|down)_proj\.)", ".mlp."),
        (r"\.mlp\.(?=(experts|gate|shared_experts)\.)", ".block_sparse_moe."),
        (r"\.self_attn\.forget_gate\.", ".self_attn."),
    ),
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *LATENT_MAPS,
        *DELTA_MAPS,
        *GATE_MAPS,
        CONVOLUTIONS,
        decay("one", "one", "d_heads", "one"),
        *gated_mlp(layers="dense MLP"),
        router(f"{MOE}.gate", "experts"),
        router_bias(f"{MOE}.gate.e_score_correction_bias", "experts"),
        *experts(f"{MOE}.experts", W123, "experts"),
        *gated_mlp(f"{MOE}.shared_experts", "_shexp", "shared_ffn", "shared experts"),
    ),
    layers={
        **DENSE_FIRST,
        **latent_layers(_is_full),
        "shared experts": lambda c, bid: (
            c.get("num_shared_experts") > 0 and DENSE_FIRST["experts"](c, bid)
        ),
    },
    expert_order=GATE_DOWN_UP,
    aliases={"first_k_dense_replace": dense_said},
    defaults={"rms_norm_eps": 1e-5},
)  # fmt: skip

FAMILY = (KIMI_LINEAR,)
