"""MiMo-V2-Flash, V2.5 and V2.6: values narrower than keys, sinks in layers with a sliding window,
three layers that predict further tokens. llama.cpp: `conversion/mimo.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    EXPERT_FFN,
    GATE_UP_DOWN,
    NORMALIZED,
    NORMS,
    SILU,
    TEXT_KEYS,
    L,
    expert_dims,
    experts,
    gated_mlp,
    optional_key,
    router,
    router_bias,
)
from quantkit.architectures.config import REQUIRED
from quantkit.architectures.mtp_head import in_mtp_head
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

A, P = f"{L}.self_attn", "model.mtp.layers.{mid}"
AHEAD = 3  # layers that predict further tokens; config.json does not tell


def _by_class(config: Config) -> bool:
    """Whether transformers' own class wrote config.json, which has other names for some keys and
    takes others for granted."""
    return config.find("hybrid_layer_pattern") is None and config.find("layer_types") is not None


def _slides(config: Config) -> list[int]:
    """1 for a layer with a sliding window, as are those that predict further tokens."""
    name = "layer_types" if _by_class(config) else "hybrid_layer_pattern"
    pattern = config.find(name) or []
    if len(pattern) != config.layers:
        raise ConfigError(f"{config.where}: '{name}' must tell each of {config.layers} layers")
    if _by_class(config):
        pattern = [int(kind == "sliding_attention") for kind in pattern]
    return [*pattern, *[1] * config.mtp]


def _kv_heads(config: Config) -> list[int]:
    full = config.get("num_key_value_heads")
    doubled = 2 * config.one("num_key_value_heads") if _by_class(config) else REQUIRED
    sliding = config.get("swa_num_key_value_heads", default=doubled)
    return [sliding if slides else full for slides in _slides(config)]


def _epsilon(config: Config) -> float:
    own = "rms_norm_eps" if _by_class(config) else "layernorm_epsilon"
    found: float = config.get("layernorm_epsilon", own, kind="FLOAT32", default=1e-5)
    return found


def _sparse(config: Config, bid: int) -> bool:
    frequency = config.find("moe_layer_freq")
    return bid < config.layers and (not isinstance(frequency, list) or bool(frequency[bid]))


def _has_sinks(config: Config, bid: int) -> bool:
    slides = _slides(config)
    kind = "swa" if bid >= len(slides) or slides[bid] else "full"
    found: bool = config.get(f"add_{kind}_attention_sink_bias", kind="BOOL", default=False)
    return found


def _is_fused(config: Config, bid: int) -> bool:
    return bool(config.find("attention_projection_layout") == "fused_qkv")


def _as_kept(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """The family with such layers as its tensors tell of, where config.json is silent."""

    def kept(bid: int, end: str) -> bool:
        ahead, base = bid >= config.layers, P if bid >= config.layers else L
        return f"{base}.{end}".format(bid=bid, mid=bid - config.layers * ahead) in shapes

    seen: dict[str, Callable[[Config, int], bool]] = {}
    if config.find("moe_layer_freq") is None:
        seen["experts"] = lambda c, bid: kept(bid, "mlp.gate.weight")
        seen["dense MLP"] = lambda c, bid: not kept(bid, "mlp.gate.weight")
    if all(config.find(f"add_{kind}_attention_sink_bias") is None for kind in ("swa", "full")):
        seen["sinks"] = lambda c, bid: kept(bid, "self_attn.attention_sink_bias")
    if config.find("attention_projection_layout") is None:
        seen["one projection"] = lambda c, bid: kept(bid, "self_attn.qkv_proj.weight")
        seen["three projections"] = lambda c, bid: not kept(bid, "self_attn.qkv_proj.weight")
    return replace(MIMO_V2, layers={**MIMO_V2.layers, **seen}) if seen else None


def _rotated(config: Config) -> int:
    """Channels of a head that are rotated, as many in both kinds of layers. Raises ConfigError."""
    kinds = [rope for rope in config.rope.values() if isinstance(rope, dict) and len(rope) > 1]
    share, *others = [rope.get("partial_rotary_factor") for rope in kinds or [config.rope]]
    if share is None or any(other != share for other in others):
        raise ConfigError(
            f"{config.where}: 'partial_rotary_factor' is missing, or another in each kind of layers"
        )
    return int(config.head_dim * share)


def _same(ours: str, theirs: str) -> Key:
    """No key: llama.cpp has one value for both kinds of layers."""

    def read(config: Config) -> None:
        other = config.get(theirs)
        if config.get(ours, default=other if _by_class(config) else REQUIRED) != other:
            raise ConfigError(f"{config.where}: '{ours}' and '{theirs}' must be the same")

    return Key("", read)


_ATTENTION = (
    Map(
        f"{A}.qkv_proj.weight",
        ("qkv", "hidden"),
        whole("attn_qkv.weight"),
        "one projection",
        by_rank=("q", "kv", "values"),
    ),
    *linear(f"{A}.q_proj", ("q", "hidden"), "attn_q", layers="three projections", bias=False),
    *linear(f"{A}.k_proj", ("kv", "hidden"), "attn_k", layers="three projections", bias=False),
    *linear(f"{A}.v_proj", ("values", "hidden"), "attn_v", layers="three projections", bias=False),
    *linear(f"{A}.o_proj", ("hidden", "heads_values"), "attn_output", bias=False),
    Map(f"{A}.attention_sink_bias", ("heads",), whole("attn_sinks.weight"), "sinks"),
)

MIMO_V2 = Architecture(
    hf_names=("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
    gguf_arch="mimo2",
    renames=((r"\.self_attn\.sinks$", ".self_attn.attention_sink_bias"),),  # transformers' name
    keys=TEXT_KEYS,
    late_keys=(
        _same("swa_head_dim", "head_dim"),
        _same("swa_v_head_dim", "v_head_dim"),
        _same("swa_num_attention_heads", "num_attention_heads"),
        Key("{arch}.attention.head_count_kv", _kv_heads),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", _slides),
        Key("{arch}.attention.value_length", "v_head_dim"),
        EXPERT_FFN,
        Key("{arch}.rope.dimension_count", _rotated),
        Key("{arch}.attention.layer_norm_rms_epsilon", _epsilon, "FLOAT32"),
        optional_key("attention.value_scale", "attention_value_scale", kind="FLOAT32"),
        Key("{arch}.nextn_predict_layers", lambda c: c.mtp or None),
    ),
    expects=(SILU, Expect("topk_method", ("noaux_tc",)), Expect("n_shared_experts", (0,))),
    assumes=(
        NORMALIZED, Expect("scoring_func", ("sigmoid",)), Expect("routed_scaling_factor", (1.0,)),
    ),
    dims={
        **DIMS,
        **expert_dims(),
        "kv": lambda c: [n * c.head_dim for n in _kv_heads(c)],
        "values": lambda c: [n * c.get("v_head_dim") for n in _kv_heads(c)],
        "qkv": lambda c: [
            c.get("num_attention_heads") * c.head_dim + n * (c.head_dim + c.get("v_head_dim"))
            for n in _kv_heads(c)
        ],
        "heads_values": lambda c: c.get("num_attention_heads") * c.get("v_head_dim"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *_ATTENTION,
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(layers="experts"),
        *experts(layers="experts"),
        *in_mtp_head(*NORMS, *_ATTENTION, *gated_mlp(), base=P),
        vector(f"{P}.pre_mlp_layernorm", "ffn_norm"),  # as another release spells it
        Map(f"{P}.eh_proj.weight", ("hidden", "2hidden"), whole("nextn.eh_proj.weight")),
        vector(f"{P}.enorm", "nextn.enorm"),
        vector(f"{P}.hnorm", "nextn.hnorm"),
        vector(f"{P}.final_layernorm", "layer_output_norm"),
    ),
    layers={
        "experts": _sparse,
        "dense MLP": lambda c, bid: not _sparse(c, bid),
        "sinks": _has_sinks,
        "one projection": _is_fused,
        "three projections": lambda c, bid: not _is_fused(c, bid),
    },
    expert_order=GATE_UP_DOWN,
    mtp=lambda c: AHEAD,
    keeps_mtp=True,
    fuses=("qkv",),
    fuses_ahead=False,
    respelled=_as_kept,
)  # fmt: skip

FAMILY = (MIMO_V2,)
