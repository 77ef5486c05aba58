"""Gemma 4, dense and with experts: heads of other sizes in layers that see all, whose keys are
their values. llama.cpp: `conversion/gemma.py`, Gemma4Model.

The variants with embeddings for each layer, and with keys and values shared between layers, are not
converted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    DROPS,
    EMBEDDINGS,
    OTHER_MODES,
    RMS_NORM,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    gated_mlp,
    qk_norms,
)
from quantkit.errors import ConfigError
from quantkit.rules import Architecture, Config, Expect, Key, Map, vector, whole


def _slides(config: Config) -> list[bool]:
    types = config.find("layer_types")
    if not isinstance(types, list) or len(types) != config.layers:
        raise ConfigError(f"{config.where}: 'layer_types' must name each of {config.layers} layers")
    return [kind == "sliding_attention" for kind in types]


def _is_full(config: Config, bid: int) -> bool:
    return not _slides(config)[bid]


def _by_kind(full: str, sliding: str) -> Callable[[Config], list[int]]:
    """One value for layers with a sliding window, one for the others (the same if not told)."""

    def read(config: Config) -> list[int]:
        values = config.get(full, sliding), config.get(sliding)
        return [values[slides] for slides in _slides(config)]

    return read


HEAD = _by_kind("global_head_dim", "head_dim")
KV_HEADS = _by_kind("num_global_key_value_heads", "num_key_value_heads")


def _has_experts(config: Config, bid: int) -> bool:
    found: bool = config.get("enable_moe_block", kind="BOOL", default=False)
    return found


def _has_values(config: Config, bid: int) -> bool:
    shared = config.get("attention_k_eq_v", kind="BOOL", default=False)
    return not (shared and _is_full(config, bid))


def _kv_heads_key(config: Config) -> list[int] | None:
    return KV_HEADS(config) if config.find("num_global_key_value_heads") is not None else None


def _rope_factors(config: Config) -> Any:
    """One for the channels that full layers rotate, and 1e30, which stops the others, float32
    `[global_head_dim / 2]`."""
    import numpy as np

    rope = config.rope.get("full_attention", {})
    if rope.get("rope_type") != "proportional":
        raise ConfigError(f"{config.where}: rope_type of full attention must be 'proportional'")
    half = config.get("global_head_dim") // 2
    rotated = int(config.get("global_head_dim") * rope["partial_rotary_factor"] / 2)
    return np.where(np.arange(half) < rotated, 1.0, 1e30).astype(np.float32)


def _rotated_swa(config: Config) -> int:
    return int(config.get("head_dim") * config.rope.get("partial_rotary_factor", 1.0))


GEMMA4 = Architecture(
    hf_names=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    gguf_arch="gemma4",
    # "proportional" is told by the frequency factors, not by a key
    keys=tuple(key for key in TEXT_KEYS if ".rope.scaling." not in key.name),
    late_keys=(
        Key("{arch}.final_logit_softcapping", "final_logit_softcapping", "FLOAT32", default=None),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.shared_kv_layers", lambda c: 0),
        Key("{arch}.embedding_length_per_layer_input", lambda c: 0),
        Key("{arch}.attention.sliding_window_pattern", _slides, "BOOL"),
        Key("{arch}.attention.key_length", "global_head_dim"),
        Key("{arch}.attention.value_length", "global_head_dim"),
        Key("{arch}.attention.key_length_swa", "head_dim"),
        Key("{arch}.attention.value_length_swa", "head_dim"),
        Key("{arch}.expert_feed_forward_length",
            ("expert_intermediate_size", "moe_intermediate_size"), default=None),
        Key("{arch}.attention.head_count_kv", _kv_heads_key),
        Key("{arch}.rope.dimension_count", "global_head_dim"),
        Key("{arch}.rope.dimension_count_swa", _rotated_swa),
    ),
    expects=(
        RMS_NORM,
        Expect("hidden_activation", ("gelu_pytorch_tanh",)),
        Expect("hidden_size_per_layer_input", (0,)),
        Expect("num_kv_shared_layers", (0,)),
        Expect("use_double_wide_mlp", (False,)),
    ),
    dims={
        **DIMS,
        **expert_dims(),
        "experts": lambda c: c.get("num_experts", default=0),
        "used": lambda c: c.get("top_k_experts", default=0),
        "expert_ffn": lambda c: c.get("moe_intermediate_size", default=0),
        "2expert_ffn": lambda c: 2 * c.get("moe_intermediate_size", default=0),
        "head": HEAD,
        "q": lambda c: [n * c.get("num_attention_heads") for n in HEAD(c)],
        "kv": lambda c: [n * m for n, m in zip(HEAD(c), KV_HEADS(c), strict=True)],
    },
    maps=(
        *EMBEDDINGS[:2],
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
        vector(f"{L}.pre_feedforward_layernorm", "ffn_norm"),
        vector(f"{L}.post_feedforward_layernorm", "post_ffw_norm"),
        Map(f"{L}.layer_scalar", ("one",), whole("layer_output_scale.weight")),
        *(m for m in attention() if ".v_proj." not in m.source),
        Map(f"{L}.self_attn.v_proj.weight", ("kv", "hidden"), whole("attn_v.weight"), "values"),
        *qk_norms(),
        *gated_mlp(),
        vector(f"{L}.post_feedforward_layernorm_1", "post_ffw_norm_1", layers="experts"),
        vector(f"{L}.pre_feedforward_layernorm_2", "pre_ffw_norm_2", layers="experts"),
        vector(f"{L}.post_feedforward_layernorm_2", "post_ffw_norm_2", layers="experts"),
        Map(f"{L}.router.proj.weight", ("experts", "hidden"), whole("ffn_gate_inp.weight"),
            "experts"),
        Map(f"{L}.router.scale", ("hidden",), whole("ffn_gate_inp.scale"), "experts"),
        Map(f"{L}.router.per_expert_scale", ("experts",), whole("ffn_down_exps.scale"), "experts"),
        Map(f"{L}.experts.gate_up_proj", ("experts", "2expert_ffn", "hidden"),
            whole("ffn_gate_up_exps.weight"), "experts"),
        Map(f"{L}.experts.down_proj", ("experts", "hidden", "expert_ffn"),
            whole("ffn_down_exps.weight"), "experts"),
    ),
    layers={"experts": _has_experts, "values": _has_values},
    drops=(*DROPS, *OTHER_MODES, r"lm_head\.weight"),
    defaults={"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    computed={"rope_freqs.weight": _rope_factors},
)  # fmt: skip

FAMILY = (GEMMA4,)
