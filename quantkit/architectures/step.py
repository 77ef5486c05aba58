"""Step-3.5 and 3.7: heads of its own in layers with a sliding window, gated attention, experts
stacked on disk. llama.cpp: `conversion/step3.py`, Step35Model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    EXPERT_FFN,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    gated_mlp,
    nextn_layers,
    no_key,
    optional_key,
    qk_norms,
    router,
    router_bias,
    shifted,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    Shape,
    vector,
    whole,
)
from quantkit.errors import ConfigError

MOE = f"{L}.moe"


def _slides(config: Config) -> list[bool]:
    """Whether each layer has a sliding window; those that predict further tokens are listed too."""
    types = [*config.find("layer_types"), *["full_attention"] * config.blocks][: config.blocks]
    shares = [*config.find("partial_rotary_factors"), *[0.5] * config.blocks][: config.blocks]
    found = [kind == "sliding_attention" for kind in types]
    if shares != [1.0 if slides else 0.5 for slides in found]:
        raise ConfigError(
            f"{config.where}: 'partial_rotary_factors' must be 1 in sliding layers, 0.5 in others"
        )
    return found


def _heads(name: str) -> Callable[[Config], list[int]]:
    def read(config: Config) -> list[int]:
        full = config.get(name)
        sliding = config.get(f"attention_other_setting.{name}", default=full)
        return [sliding if slides else full for slides in _slides(config)]

    return read


def _either(old: str, new: str) -> Callable[[Config], Any]:
    """What the release calls `old` and transformers 5 `new`."""
    return lambda config: config.first((old, new))


def _by_kind(name: str, kind: str) -> Callable[[Config], Any]:
    """A rotary setting of a kind of layers, as transformers 5 lists them."""
    return lambda config: config.find(f"rope_parameters.{kind}.{name}")


def _types(config: Config) -> list[str] | None:
    """The kinds of layers, with those that predict further tokens, which transformers 5 lists
    apart."""
    types, ahead = config.find("layer_types"), config.find("mtp_layer_types")
    both = isinstance(types, list) and isinstance(ahead, list) and len(types) == config.layers
    return [*types, *ahead] if both else types


def _shares(config: Config) -> Any:
    """Which part of a head turns, layer by layer."""
    said = config.find("partial_rotary_factors")
    if said is not None or _by_kind("rope_theta", "full_attention")(config) is None:
        return said
    kinds = [*(_types(config) or ()), *["full_attention"] * config.layers]
    return [_by_kind("partial_rotary_factor", kind)(config) for kind in kinds]


def _thetas(config: Config) -> Any:
    """The rotary bases of layers that see all, and of those with a window."""
    kinds = ("full_attention", "sliding_attention")
    found = [_by_kind("rope_theta", kind)(config) for kind in kinds]
    if None not in found:
        return found
    flat = config.find("rope_theta")
    return config.find("rope_parameters.rope_theta") if flat is None else flat


def _sliding_heads(config: Config) -> Any:
    heads = config.find("num_sliding_attention_heads")
    said = config.find("attention_other_setting")
    return said if said is not None or heads is None else {"num_attention_heads": heads}


def _enumerated(config: Config) -> Any:
    """The layers with experts."""
    kinds, said = config.find("mlp_layer_types"), config.find("moe_layers_enum")
    if said is not None or not isinstance(kinds, list):
        return said
    return ",".join(str(bid) for bid, kind in enumerate(kinds) if kind == "sparse")


# as transformers 5 saves it; the rotary settings are those of layers that see all
_SAVED: dict[str, Callable[[Config], Any]] = {
    "num_attention_groups": _either("num_attention_groups", "num_key_value_heads"),
    "attention_other_setting": _sliding_heads,
    "moe_num_experts": _either("moe_num_experts", "n_routed_experts"),
    "moe_top_k": _either("moe_top_k", "num_experts_per_tok"),
    "moe_layers_enum": _enumerated,
    "layer_types": _types,
    "partial_rotary_factors": _shares,
    "rope_theta": _thetas,
    "rope_parameters": lambda config: config.find("rope_parameters.full_attention"),
}

HEADS, KV_HEADS = _heads("num_attention_heads"), _heads("num_attention_groups")


def _theta(i: int) -> Callable[[Config], Any]:
    """The rotary base: one, or a list that begins with a full and a sliding layer's."""

    def read(config: Config) -> Any:
        found = config.find("rope_theta")
        if isinstance(found, list):
            return found[i]
        return found if i == 0 else None

    return read


def _rope_factors(config: Config) -> Any:
    """Llama 3's factors for the channels that full layers rotate, one for the others, float32
    `[head_dim / 2]`; computed in Python's floats, as llama.cpp's converter does."""
    import numpy as np

    rope = config.rope
    if str(rope.get("rope_type")).lower() != "llama3":
        return None
    dim = int(config.head_dim * 0.5)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.power(float(_theta(0)(config) or 10000.0), exponents.astype(np.float64)).astype(
        np.float32
    )
    factor = float(rope.get("factor", 8.0))
    length = int(rope.get("original_max_position_embeddings", 8192))
    low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
    out = np.ones(config.head_dim // 2, np.float32)
    for i, freq in enumerate(np.float32(1) / powers):
        wavelength = 2 * math.pi / float(freq)
        smooth = (length / wavelength - low) / (high - low)
        if wavelength > length / low:
            out[i] = factor
        elif wavelength >= length / high:
            out[i] = 1 / ((1 - smooth) / factor + smooth)
    return out


def _sparse_layers(config: Config) -> list[int]:
    """The layers with experts, if config.json lists them. Raises ConfigError."""
    text = config.get("moe_layers_enum", kind="STRING", default="")
    try:
        return sorted(int(part) for part in text.split(",") if text.strip())
    except ValueError:
        raise ConfigError(f"{config.where}: 'moe_layers_enum' is not a list of layers") from None


def _sparse(config: Config, bid: int) -> bool:
    return bid in _sparse_layers(config)


def _as_kept(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """The family with experts in the layers that have them, where config.json does not list any."""
    if _sparse_layers(config):
        return None

    def sparse(config: Config, bid: int) -> bool:
        return f"{MOE}.gate.weight".format(bid=bid) in shapes

    seen = {"experts": sparse, "dense MLP": lambda c, bid: not sparse(c, bid)}
    return replace(STEP35, layers={**STEP35.layers, **seen})


def _clamps(name: str) -> Callable[[Config], list[float] | None]:
    def read(config: Config) -> list[float] | None:
        found = config.find(name)
        if found is None:
            return None
        values = [0.0 if value is None else float(value) for value in found]
        return [*values, *[0.0] * config.blocks][: config.blocks]

    return read


_KEYS = {
    "{arch}.attention.head_count": HEADS,
    "{arch}.rope.freq_base": _theta(0),
    "{arch}.rope.freq_base_swa": _theta(1),
}

STEP35 = Architecture(
    hf_names=("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
    gguf_arch="step35",
    keys=tuple(
        replace(key, config=_KEYS.get(key.name, key.config))
        for key in no_key(TEXT_KEYS, ".head_count_kv", ".expert_count", ".expert_used_count")
    ),
    late_keys=(
        Key("{arch}.attention.head_count_kv", KV_HEADS),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", _slides, "BOOL"),
        Key("{arch}.attention.value_length", "head_dim"),
        Key("{arch}.expert_count", "moe_num_experts"),
        Key("{arch}.expert_used_count", "moe_top_k"),
        EXPERT_FFN,
        Key("{arch}.expert_shared_feed_forward_length", "share_expert_dim"),
        optional_key("expert_weights_scale", "moe_router_scaling_factor", kind="FLOAT32"),
        optional_key("expert_weights_norm", "norm_expert_weight", kind="BOOL"),
        Key("{arch}.leading_dense_block_count", lambda c: [*_sparse_layers(c), 0][0]),
        Key("{arch}.moe_every_n_layers", "moe_every_n_layer"),
        Key("{arch}.attention.layer_norm_rms_epsilon", "rms_norm_eps", "FLOAT32", default=1e-5),
        Key("{arch}.swiglu_clamp_exp", _clamps("swiglu_limits"), "FLOAT32"),
        Key("{arch}.swiglu_clamp_shexp", _clamps("swiglu_limits_shared"), "FLOAT32"),
        NEXTN_KEY_IF_ANY,
    ),
    expects=(
        Expect("layer_types", required=True),
        Expect("partial_rotary_factors", required=True),
        Expect("use_qk_norm", (True,)),
        Expect("use_head_wise_attn_gate", (True,)),
        Expect("use_moe_router_bias", (True,)),
    ),
    dims={
        **DIMS,
        **expert_dims(),
        "experts": lambda c: c.get("moe_num_experts"),
        "used": lambda c: c.get("moe_top_k"),
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "q": lambda c: [n * c.head_dim for n in HEADS(c)],
        "kv": lambda c: [n * c.head_dim for n in KV_HEADS(c)],
        "shared_ffn": lambda c: c.get("share_expert_dim"),
    },
    maps=(
        EMBEDDINGS[0],
        *shifted(EMBEDDINGS[1]),
        EMBEDDINGS[2],
        *shifted(
            vector(f"{L}.input_layernorm", "attn_norm"),
            vector(f"{L}.post_attention_layernorm", "ffn_norm"),
            *qk_norms(),
        ),
        *attention(),
        Map(f"{L}.self_attn.g_proj.weight", ("heads", "hidden"), whole("attn_gate.weight")),
        *gated_mlp(layers="dense MLP"),
        router(f"{MOE}.gate", "experts"),
        router_bias(f"{MOE}.router_bias", "experts"),
        *(
            Map(f"{MOE}.{name}.weight", ("experts", *shape), whole(f"{role}.weight"), "experts")
            for name, role, shape in (
                ("gate_proj", "ffn_gate_exps", ("expert_ffn", "hidden")),
                ("up_proj", "ffn_up_exps", ("expert_ffn", "hidden")),
                ("down_proj", "ffn_down_exps", ("hidden", "expert_ffn")),
            )
        ),
        *gated_mlp(f"{L}.share_expert", "_shexp", "shared_ffn", "experts"),
        NEXTN_MAPS[0],
        *shifted(
            *NEXTN_MAPS[1:3],
            vector(f"{L}.transformer.shared_head.norm", "nextn.shared_head_norm", layers="mtp"),
        ),
        Map(f"{L}.transformer.shared_head.output.weight", ("vocab", "hidden"),
            whole("nextn.shared_head_head.weight"), "mtp", optional=True),
    ),
    layers={
        **MTP_LAYERS,
        "experts": _sparse,
        "dense MLP": lambda c, bid: not _sparse(c, bid),
    },
    defaults={"moe_every_n_layer": 1},
    aliases=_SAVED,
    computed={"rope_freqs.weight": _rope_factors},
    mtp=nextn_layers,
    keeps_mtp=True,
    fuses=("qkv",),
    respelled=_as_kept,
)  # fmt: skip

FAMILY = (STEP35,)
