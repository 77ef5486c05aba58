"""Ling 3 (BailingMoE 3), also with images: delta attention in most layers, the last of each group
has latent attention. llama.cpp: `conversion/bailingmoe3.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantkit.architectures.bailing import AROUND
from quantkit.architectures.common import (
    DENSE_FIRST,
    DOWN_GATE_UP,
    EXPERT_FFN,
    LEADING_DENSE,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    L,
    expert_dims,
    experts,
    gated_mlp,
    leading_dense,
    nextn_layers,
    optional_key,
    router,
    router_bias,
)
from quantkit.architectures.deepseek import ATTN, DEEPSEEK_V2
from quantkit.architectures.kimi_linear import (
    CONVOLUTIONS,
    DELTA,
    DELTA_MAPS,
    LATENT_MAPS,
    latent_layers,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    edited,
    vector,
    whole,
)
from quantkit.errors import ConfigError

A, LATENT = f"{L}.attention", "latent attention"


def _is_latent(config: Config, bid: int) -> bool:
    """The last layer of each group, those after the last whole group, and those that predict
    further tokens; before those, what `layer_types` says, where transformers has saved it."""
    size, layers = config.get("layer_group_size"), config.layers
    types = config.find("layer_types")
    if types and bid < layers:
        return bool(types[bid] == "full_attention")
    return bool((bid + 1) % size == 0 or bid >= layers // size * size)


def _attention(m: Map) -> tuple[Map, ...]:
    """A row of Kimi's attention under Ling's name."""
    source = m.source.replace(ATTN, A)
    if m.layers == LATENT:
        source = source.replace(".o_proj.", ".dense.")
    return () if ".f_a_proj." in source or ".f_b_proj." in source else (replace(m, source=source),)


def _clamps(name: str) -> Callable[[Config], list[float] | None]:
    def read(config: Config) -> list[float] | None:
        found = config.find(name)
        if found is None:
            return None
        return [*(float(limit or 0) for limit in found), *[0.0] * config.blocks][: config.blocks]

    return read


def _shared_ffn(config: Config) -> int:
    n: int = config.get("moe_shared_expert_intermediate_size")
    return n


BAILING_V3 = Architecture(
    hf_names=("BailingMoeV3ForCausalLM",),
    gguf_arch="bailingmoe3",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.attention.head_count_kv",
            lambda c: [int(_is_latent(c, bid)) for bid in range(c.blocks)]),
        VOCAB_SIZE,
        Key("{arch}.ssm.conv_kernel", "short_conv_kernel_size"),
        Key("{arch}.kda.head_dim", "head_dim"),
        Key("{arch}.kda.safe_gate", "kda_safe_gate", "BOOL"),
        Key("{arch}.kda.gate_lower_bound", "kda_lower_bound", "FLOAT32"),
        optional_key("attention.q_lora_rank", "q_lora_rank"),
        Key("{arch}.attention.kv_lora_rank", "kv_lora_rank"),
        Key("{arch}.rope.dimension_count", "qk_rope_head_dim"),
        Key("{arch}.attention.key_length",
            lambda c: c.get("kv_lora_rank") + c.get("qk_rope_head_dim")),
        *(key for key in DEEPSEEK_V2.late_keys if key.name.endswith("_mla")),
        EXPERT_FFN,
        Key("{arch}.expert_shared_feed_forward_length", _shared_ffn),
        Key("{arch}.expert_shared_count", "num_shared_experts", default=1),
        LEADING_DENSE,
        WEIGHTS_SCALE,
        WEIGHTS_NORM,
        Key("{arch}.swiglu_clamp_exp", _clamps("expert_swiglu_limit_list"), "FLOAT32"),
        Key("{arch}.swiglu_clamp_shexp", _clamps("share_expert_swiglu_limit_list"), "FLOAT32"),
        NEXTN_KEY_IF_ANY,
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("no_kda_lora", (True,), required=True),
        Expect("kda_safe_gate", (True,), required=True),
        Expect("gated_attention_proj_granularity_type", ("head_wise",), required=True),
    ),
    aliases={"num_key_value_heads": "num_attention_heads"},
    dims={
        **DEEPSEEK_V2.dims,
        **expert_dims(),
        "kernel": lambda c: c.get("short_conv_kernel_size"),
        "d_heads": lambda c: c.get("num_attention_heads"),
        "d_head": lambda c: c.head_dim,
        "delta": lambda c: c.get("num_attention_heads") * c.head_dim,
        "shared_ffn": _shared_ffn,
    },
    maps=(
        *AROUND[:-1],  # without the output of attention
        Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight")),
        *(found for m in (*LATENT_MAPS, *DELTA_MAPS) for found in _attention(m)),
        Map(f"{A}.f_proj.weight", ("delta", "hidden"), whole("ssm_f_a.weight"), DELTA),
        Map(f"{A}.A_log", ("d_heads",), edited(whole("ssm_a", "d_heads", "one"), ("exp",)), DELTA),
        Map(f"{A}.g_proj.weight", ("delta", "hidden"), whole("ssm_g_a.weight"), DELTA),
        Map(f"{A}.g_proj.weight", ("heads", "hidden"), whole("attn_gate.weight"), LATENT),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(f"{L}.mlp.gate.expert_bias", "experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
        *NEXTN_MAPS[:3],
        vector(f"{L}.final_layernorm", "layer_output_norm", layers="mtp"),
    ),
    layers={**DENSE_FIRST, **MTP_LAYERS, **latent_layers(_is_latent)},
    expert_order=DOWN_GATE_UP,
    mtp=nextn_layers,
    keeps_mtp=True,
)  # fmt: skip


def _sections(config: Config) -> list[int]:
    """Pairs of channels that are rotated by time, height and width, and by nothing else. Raises
    ConfigError."""
    found = config.get("mrope_section", kind="INT32")
    if sum(found[:3]) * 2 != config.get("qk_rope_head_dim"):
        raise ConfigError(f"{config.where}: 'mrope_section' must be half of 'qk_rope_head_dim'")
    return [*found[:3], 0]


BAILING_V3_VL = replace(
    BAILING_V3,
    hf_names=("BailingMoeV3VLForConditionalGeneration",),
    late_keys=(
        *BAILING_V3.late_keys, Key("{arch}.rope.dimension_sections", _sections, "INT32"),
    ),
    drops=(r"linear_proj\..*",),
)  # fmt: skip

# names that transformers 5 has for the authors', where it saves what it holds in memory
_IN_MEMORY = (
    (".word_embeddings.", ".embed_tokens."),
    (".attention.dense.", ".self_attn.o_proj."),
    (".attention.f_proj.", ".self_attn.forget_gate.f_proj."),
    (".attention.dt_bias", ".self_attn.forget_gate.dt_bias"),
    (".attention.A_log", ".self_attn.forget_gate.A_log"),
    (".attention.", ".self_attn."),
    (".gate.expert_bias", ".gate.e_score_correction_bias"),
)


def _in_memory(m: Map) -> tuple[Map, ...]:
    """A row under the name that transformers 5 has for it, if that is another."""
    name = m.source
    for theirs, ours in _IN_MEMORY:
        name = name.replace(theirs, ours)
    changed = name != m.source and "_conv1d." not in name
    return (replace(m, source=name, like=m.like or m.source),) if changed else ()


# what transformers' own class saves: under the authors' names, but for one matrix, or its own
BAILING_HYBRID = replace(
    BAILING_V3,
    hf_names=("BailingHybridForCausalLM",),
    aliases={
        **BAILING_V3.aliases,
        "head_dim": "linear_head_dim",  # `head_dim` is that of what rotates
        "norm_topk_prob": "moe_renormalize",
        "n_group": "num_expert_group",
        "first_k_dense_replace": leading_dense,
        "moe_shared_expert_intermediate_size": lambda c: (
            c.find("moe_shared_expert_intermediate_size")
            or c.one("num_shared_experts") * c.one("moe_intermediate_size")
        ),
    },
    defaults={
        "no_kda_lora": True, "gated_attention_proj_granularity_type": "head_wise",
        "scoring_func": "sigmoid",
    },
    dims={**BAILING_V3.dims, "3delta": lambda c: 3 * c.get("num_attention_heads") * c.head_dim},
    maps=(
        *BAILING_V3.maps,
        *(found for m in BAILING_V3.maps for found in _in_memory(m)),
        Map(f"{A}.dense.weight", ("hidden", "delta"), whole("attn_output.weight"), DELTA,
            like=f"{A}.o_proj.weight"),
        replace(CONVOLUTIONS, like=f"{A}.k_conv1d.weight"),
    ),
)  # fmt: skip

FAMILY = (BAILING_V3, BAILING_HYBRID, BAILING_V3_VL)
