"""Gemma 4: two sizes of heads, layers that share keys and values, and, as the release has it,
experts beside the dense network, or inputs of every layer's own.

llama.cpp: `conversion/gemma.py`, Gemma4Model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    OPTIONAL_HEAD,
    RMS_NORM,
    TEXT_KEYS,
    L,
    experts,
    gated_mlp,
    optional_key,
    router,
)
from quantkit.architectures.gemma import FULL_BASE
from quantkit.architectures.gemma4_layers import (
    HEAD,
    KV_HEADS,
    ffn,
    has_values,
    head,
    kv_heads,
    shares,
    slides,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    Shape,
    linear,
    vector,
    whole,
)
from quantkit.errors import ConfigError

A, X = f"{L}.self_attn", f"{L}.experts"


def rotating(rotated: int, of: int) -> Any:
    """One for the channels that are rotated, and 1e30, which stops the others, float32 `[of]`."""
    import numpy as np

    return np.where(np.arange(of) < rotated, 1.0, 1e30).astype(np.float32)


def _rope_factors(config: Config) -> Any:
    """One for the channels that layers with full attention rotate, and 1e30, which stops the
    others, float32 `[head_dim / 2]`."""
    rope = config.rope.get("full_attention", {})
    share = rope.get("partial_rotary_factor")
    if rope.get("rope_type") != "proportional" or not isinstance(share, float | int):
        raise ConfigError(f"{config.where}: rope_type of full attention must be 'proportional'")
    rotated = int(head(config) * share / 2)
    return rotating(rotated, head(config) // 2)


def _is_unified(config: Config) -> bool:
    return bool(config.find("architectures") == [*GEMMA4_UNIFIED.hf_names])


def _with_inputs(config: Config) -> Architecture | None:
    if not config.get("hidden_size_per_layer_input"):
        return None
    if _is_unified(config):
        return replace(GEMMA4_INPUTS, late_keys=GEMMA4_UNIFIED.late_keys)
    return GEMMA4_INPUTS


def _norm(source: str, role: str, layers: str = "") -> Map:
    return vector(f"{L}.{source}", role, layers=layers)


def _keys(layers: str, optional: bool) -> tuple[Map, ...]:
    """Keys and their norms. Layers that share may keep some that nothing uses."""
    return (
        Map(f"{A}.k_proj.weight", ("kv", "hidden"), whole("attn_k.weight"), layers, optional),
        vector(f"{A}.k_norm", "attn_k_norm", "head", layers, optional=optional),
    )


def _has_experts(config: Config, bid: int) -> bool:
    found: bool = config.get("enable_moe_block", kind="BOOL", default=False)
    return found


def _splits(config: Config) -> bool:
    """Whether experts are in tensors of their own: in NVFP4 they are."""
    return "nvfp4" in str(config.find("quantization_config")).lower()


def _as_kept(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """Quantizers take experts apart in other codings than NVFP4 too, and may leave them whole."""
    ends = {name.rpartition(".experts.")[2] for name in shapes if ".experts." in name}
    apart = any(end[0].isdigit() for end in ends)
    if not ends or apart == _splits(config):
        return None
    arch = _with_inputs(config) or (GEMMA4_UNIFIED if _is_unified(config) else GEMMA4)
    kind, other = ("split", "fused") if apart else ("fused", "split")
    layers = {f"{kind} experts": _has_experts, f"{other} experts": lambda c, bid: False}
    return replace(arch, layers={**arch.layers, **layers})


SUPPRESSED = Key("tokenizer.ggml.suppress_tokens", "generation_config.suppress_tokens", "INT32",
                 default=None)  # fmt: skip

GEMMA4 = Architecture(
    hf_names=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    gguf_arch="gemma4",
    # "proportional" is told by the frequency factors, not by a key
    keys=tuple(key for key in TEXT_KEYS if ".rope.scaling." not in key.name),
    late_keys=(
        FULL_BASE,
        optional_key("final_logit_softcapping", "final_logit_softcapping", kind="FLOAT32"),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.shared_kv_layers", "num_kv_shared_layers"),
        Key("{arch}.embedding_length_per_layer_input", "hidden_size_per_layer_input"),
        Key("{arch}.attention.sliding_window_pattern", slides, "BOOL"),
        Key("{arch}.attention.key_length", head),
        Key("{arch}.attention.value_length", head),
        Key("{arch}.attention.key_length_swa", "head_dim"),
        Key("{arch}.attention.value_length_swa", "head_dim"),
        optional_key("expert_feed_forward_length", "expert_intermediate_size",
                     "moe_intermediate_size"),
        Key("{arch}.feed_forward_length",
            lambda c: ffn(c) if c.find("use_double_wide_mlp") else None),
        Key("{arch}.attention.head_count_kv", lambda c: KV_HEADS(c) if kv_heads(c) else None),
        Key("{arch}.rope.dimension_count", head),
        Key("{arch}.rope.dimension_count_swa", "head_dim"),
    ),
    expects=(
        RMS_NORM,
        Expect("hidden_activation", ("gelu_pytorch_tanh",)),
        Expect("attention_bias", (False,)),
    ),
    dims={
        **DIMS,
        "ffn": ffn,
        "experts": lambda c: c.get("num_experts", default=0),
        "used": lambda c: c.get("top_k_experts", default=0),
        "expert_ffn": lambda c: c.get("moe_intermediate_size", default=0),
        "2expert_ffn": lambda c: 2 * c.get("moe_intermediate_size", default=0),
        "head": HEAD,
        "q": lambda c: [n * c.get("num_attention_heads") for n in HEAD(c)],
        "kv": lambda c: [n * m for n, m in zip(HEAD(c), KV_HEADS(c), strict=True)],
    },
    maps=(
        *EMBEDDINGS[:2], OPTIONAL_HEAD,
        _norm("input_layernorm", "attn_norm"),
        _norm("post_attention_layernorm", "post_attention_norm"),
        _norm("pre_feedforward_layernorm", "ffn_norm"),
        _norm("post_feedforward_layernorm", "post_ffw_norm"),
        Map(f"{L}.layer_scalar", ("one",), whole("layer_output_scale.weight")),
        *linear(f"{A}.q_proj", ("q", "hidden"), "attn_q", bias=False),
        vector(f"{A}.q_norm", "attn_q_norm", "head"),
        *_keys("keys", False),
        *_keys("shared keys", True),
        *linear(f"{A}.v_proj", ("kv", "hidden"), "attn_v", layers="values", bias=False),
        Map(f"{A}.v_proj.weight", ("kv", "hidden"), whole("attn_v.weight"), "shared keys", True),
        *linear(f"{A}.o_proj", ("hidden", "q"), "attn_output", bias=False),
        *gated_mlp(),
        _norm("post_feedforward_layernorm_1", "post_ffw_norm_1", "experts"),
        _norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2", "experts"),
        _norm("post_feedforward_layernorm_2", "post_ffw_norm_2", "experts"),
        router(f"{L}.router.proj", "experts"),
        Map(f"{L}.router.scale", ("hidden",), whole("ffn_gate_inp.scale"), "experts"),
        Map(f"{L}.router.per_expert_scale", ("experts",), whole("ffn_down_exps.scale"), "experts"),
        Map(f"{X}.gate_up_proj", ("experts", "2expert_ffn", "hidden"),
            whole("ffn_gate_up_exps.weight"), "fused experts"),
        Map(f"{X}.down_proj", ("experts", "hidden", "expert_ffn"),
            whole("ffn_down_exps.weight"), "fused experts"),
        *experts(X, layers="split experts")[:3],
    ),
    layers={
        "keys": lambda c, bid: not shares(c, bid),
        "values": has_values,
        "shared keys": shares,
        "experts": _has_experts,
        "fused experts": lambda c, bid: _has_experts(c, bid) and not _splits(c),
        "split experts": lambda c, bid: _has_experts(c, bid) and _splits(c),
    },
    defaults={
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0, "max_position_embeddings": 131072,
    },
    aliases={"hidden_size_per_layer_input":
             lambda c: c.get("hidden_size_per_layer_input", default=0)},  # null is none
    computed={"rope_freqs.weight": _rope_factors},
    variant=_with_inputs,
    respelled=_as_kept,
    fuses=("qkv",),
)  # fmt: skip

GEMMA4_INPUTS = replace(
    GEMMA4,
    dims={
        **GEMMA4.dims,
        "inputs_vocab": lambda c: c.get("vocab_size_per_layer_input", "vocab_size"),
        "input": lambda c: c.get("hidden_size_per_layer_input"),
        "inputs": lambda c: c.layers * c.get("hidden_size_per_layer_input"),
    },
    maps=(
        *GEMMA4.maps,
        Map("model.embed_tokens_per_layer.weight", ("inputs_vocab", "inputs"),
            whole("per_layer_token_embd.weight")),
        *linear("model.per_layer_model_projection", ("inputs", "hidden"), "per_layer_model_proj",
                bias=False),
        vector("model.per_layer_projection_norm", "per_layer_proj_norm", "input"),
        *linear(f"{L}.per_layer_input_gate", ("input", "hidden"), "inp_gate", bias=False),
        *linear(f"{L}.per_layer_projection", ("hidden", "input"), "proj", bias=False),
        _norm("post_per_layer_input_norm", "post_norm"),
    ),
    variant=lambda config: None,
)  # fmt: skip

# encoder-free: what it sees and hears is embedded by matrices of its own
GEMMA4_UNIFIED = replace(
    GEMMA4,
    hf_names=("Gemma4UnifiedForConditionalGeneration",),
    late_keys=(*GEMMA4.late_keys, SUPPRESSED),
)

FAMILY = (GEMMA4, GEMMA4_UNIFIED)
