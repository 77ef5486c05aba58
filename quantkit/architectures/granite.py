"""Granite, dense, with experts (also shared ones), and with Mamba layers.

llama.cpp: `conversion/granite.py`.
The routed experts' gate and up matrices are one tensor, as are the shared expert's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    GATE_UP_DOWN,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    expert_dims,
    gated_mlp,
    no_key,
    router,
)
from quantkit.architectures.mamba import mamba2, mamba2_dims, per_layer, ssm_keys
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    halves,
    vector,
    whole,
)
from quantkit.errors import ConfigError

MOE = f"{L}.block_sparse_moe"
SHARED = f"{L}.shared_mlp"


def _scale(name: str) -> Callable[[Config], float | None]:
    """A multiplier; 0 is none."""
    return lambda config: config.get(name, kind="FLOAT32", default=None) or None


SCALES = tuple(
    Key(f"{{arch}}.{name}", _scale(multiplier), "FLOAT32")
    for name, multiplier in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    )
)

# of Granite 4 Vision: the layer that it sees, the layer of the text that it feeds, its kind, its
# number among those
Projector = tuple[int, int, str, int]


def projectors(config: Config, seen: int, fed: int) -> list[Projector]:
    """The Q-Formers in the order of the layers of the text that they feed; `seen`, `fed`: how many
    layers there are on either side. Raises ConfigError."""
    deep = config.find("deepstack_layer_map") or []
    spatial = config.find("spatial_target_layers") or []
    if not isinstance(deep, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        for pair in deep
    ):
        raise ConfigError(f"{config.where}: 'deepstack_layer_map' is not a list of pairs of layers")
    if not isinstance(spatial, list) or not all(type(n) is int for n in spatial):
        raise ConfigError(f"{config.where}: 'spatial_target_layers' is not a list of layers")
    out = [
        (a + seen * (a < 0), b + fed * (b < 0), "layerwise", i)
        for i, (a, b) in enumerate(sorted(deep))
    ]
    if spatial:
        layer: int = config.get("spatial_vision_layer", kind="INT32", default=-1)
        layer += seen * (layer < 0)
        out += [(layer, fed_layer, "spatial", i) for i, fed_layer in enumerate(spatial)]
    return sorted(out, key=lambda entry: entry[1])


def _fed(config: Config) -> list[int] | None:
    """Which of what an encoder gives each layer of the text takes, beside that which is embedded;
    -1: nothing. Raises ConfigError."""
    found = [layer for _, layer, _, _ in projectors(config, 0, config.layers)]
    if not found:
        return None
    out = [-1] * config.layers
    for number, layer in enumerate(found[1:], 1):
        if not 0 <= layer < config.layers:
            raise ConfigError(f"{config.where}: no layer {layer} is there for images to go to")
        out[layer] = number
    return out


GRANITE = Architecture(
    hf_names=("GraniteForCausalLM",),
    gguf_arch="granite",
    keys=no_key(TEXT_KEYS, ".key_length", ".value_length"),
    late_keys=(
        VOCAB_SIZE,
        Key("{arch}.rope.dimension_count",
            lambda c: c.get("hidden_size") // c.get("num_attention_heads")),
        *SCALES,
        Key("{arch}.deepstack_mapping", _fed, "INT32"),
    ),
    expects=(RMS_NORM, SILU),
    dims={**DIMS, "head": lambda c: c.get("hidden_size") // c.get("num_attention_heads")},
    maps=(
        *EMBEDDINGS, *NORMS, *attention(rotated=True, bias=None, out_bias=None),
        *gated_mlp(bias=None),
    ),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    fuses=("qkv",),
)  # fmt: skip

GRANITE_EXPERTS = (
    router(f"{MOE}.router.layer"),
    router(f"{MOE}.router", like=f"{MOE}.router.layer.weight"),
    *(
        Map(source, ("experts", "2expert_ffn", "hidden"),
            halves("ffn_gate_exps.weight", "ffn_up_exps.weight"), like=like)
        for source, like in ((f"{MOE}.input_linear.weight", ""),
                             (f"{MOE}.experts.gate_up_proj", f"{MOE}.input_linear.weight"))
    ),
    *(
        Map(source, ("experts", "hidden", "expert_ffn"), whole("ffn_down_exps.weight"), like=like)
        for source, like in ((f"{MOE}.output_linear.weight", ""),
                             (f"{MOE}.experts.down_proj", f"{MOE}.output_linear.weight"))
    ),
)  # fmt: skip

GRANITE_MOE = replace(
    GRANITE,
    hf_names=("GraniteMoeForCausalLM",),
    gguf_arch="granitemoe",
    dims={**GRANITE.dims, **expert_dims("intermediate_size")},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(rotated=True, bias=None, out_bias=None),
        *GRANITE_EXPERTS,
    ),
    expert_order=GATE_UP_DOWN,
)


def _shared_ffn(config: Config) -> int:
    n: int = config.get("shared_intermediate_size", default=0)
    return n


def _shared_mlp(suffix: str, layers: str) -> tuple[Map, ...]:
    """The shared network: an expert beside others, or the only one."""
    gate, up, down = (f"ffn_{name}{suffix}.weight" for name in ("gate", "up", "down"))
    return (
        Map(f"{SHARED}.input_linear.weight", ("2shared_ffn", "hidden"), halves(gate, up), layers),
        Map(f"{SHARED}.output_linear.weight", ("hidden", "shared_ffn"), whole(down), layers),
    )


GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    hf_names=("GraniteMoeSharedForCausalLM",),
    late_keys=(
        *GRANITE.late_keys,
        Key("{arch}.expert_shared_feed_forward_length", lambda c: _shared_ffn(c) or None),
    ),
    dims={
        **GRANITE_MOE.dims,
        "shared_ffn": _shared_ffn,
        "2shared_ffn": lambda c: 2 * _shared_ffn(c),
    },
    maps=(*GRANITE_MOE.maps, *_shared_mlp("_shexp", "shared expert")),
    layers={"shared expert": lambda c, bid: bool(_shared_ffn(c))},
)

_SIZES = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")


def _is_mamba(config: Config, bid: int) -> bool:
    """By the kinds of layers, or the numbers of those with attention, or where they recur."""
    types, attending = config.find("layer_types"), config.find("attn_layer_indices")
    if types:
        if not isinstance(types, list) or len(types) != config.layers:
            raise ConfigError(
                f"{config.where}: 'layer_types' must name each of {config.layers} layers"
            )
        return types[bid] not in ("attention", "full_attention")  # as transformers 5 spells it
    if attending:
        return bool(bid not in attending)
    return bool(bid % config.get("attn_layer_period") != config.get("attn_layer_offset"))


def _mamba_head(config: Config) -> int | None:
    """Channels of a head, where config.json leaves it to the others."""
    if config.find("mamba_d_head") not in (None, "auto"):
        return None
    n: int = config.get("mamba_expand") * config.get("hidden_size") // config.get("mamba_n_heads")
    return n


def _has_mamba(config: Config) -> bool:
    return any(_is_mamba(config, bid) for bid in range(config.layers))


def _has_experts(config: Config, bid: int = 0) -> bool:
    return bool(config.get("num_local_experts", default=0))


def _without_mamba(config: Config) -> Architecture | None:
    """Granite 4 without a Mamba layer runs as the older Granite."""
    if _has_mamba(config):
        return None
    name = "granitemoe" if config.find("num_experts_per_tok") else "granite"
    return replace(GRANITE_HYBRID, gguf_arch=name, variant=lambda config: None)


GRANITE_HYBRID = replace(
    GRANITE_MOE_SHARED,
    hf_names=("GraniteMoeHybridForCausalLM",),
    gguf_arch="granitehybrid",
    late_keys=(
        *GRANITE_MOE_SHARED.late_keys,
        *ssm_keys(*_SIZES),
        Key("{arch}.rope.dimension_count", lambda c: c.find("attn_rotary_emb") or None),
        per_layer("attention.head_count_kv", "num_key_value_heads",
                  lambda c, bid: not _is_mamba(c, bid)),
        Key("{arch}.rope.scaling.finetuned", lambda c: not _has_mamba(c), "BOOL"),
        # as good as unbounded where no position is encoded
        Key("{arch}.context_length", lambda c: 1 << 20 if _has_mamba(c) else None),
    ),
    dims={**GRANITE_MOE_SHARED.dims, **mamba2_dims(*_SIZES)},
    maps=(
        *EMBEDDINGS, *NORMS,
        *attention(rotated=True, bias=None, out_bias=None, layers="attention"),
        *mamba2(f"{L}.mamba", "Mamba"),
        *(replace(m, layers="experts") for m in GRANITE_EXPERTS),
        *_shared_mlp("_shexp", "shared expert"),
        *_shared_mlp("", "one MLP"),
    ),
    layers={
        "Mamba": _is_mamba,
        "attention": lambda c, bid: not _is_mamba(c, bid),
        "experts": _has_experts,
        "shared expert": lambda c, bid: _has_experts(c) and bool(_shared_ffn(c)),
        "one MLP": lambda c, bid: not _has_experts(c),
    },
    # positions are encoded where there is no layer of Mamba
    assumes=(
        Expect("position_embedding_type", lambda c: ("nope",) if _has_mamba(c) else ("rope",)),
    ),
    aliases={"mamba_d_head": _mamba_head},
    defaults={"rms_norm_eps": 1e-6},
    variant=_without_mamba,
)  # fmt: skip

# no experts and no multipliers, but positions are encoded
BAMBA = replace(
    GRANITE_HYBRID,
    hf_names=("BambaForCausalLM",),
    dims={**GRANITE.dims, **mamba2_dims(*_SIZES)},
    late_keys=(
        *(
            key
            for key in GRANITE_HYBRID.late_keys
            if not key.name.endswith((".finetuned", ".context_length", ".head_count_kv"))
        ),
        *(key for key in GRANITE_HYBRID.late_keys if key.name.endswith(".head_count_kv")),
        Key("{arch}.rope.scaling.finetuned", lambda c: True, "BOOL"),
    ),
    assumes=(),
    maps=(
        EMBEDDINGS[0],
        vector("model.final_layernorm", "output_norm"),
        EMBEDDINGS[2],
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.pre_ff_layernorm", "ffn_norm"),
        *attention(rotated=True, bias=None, out_bias=None, layers="attention"),
        *mamba2(f"{L}.mamba", "Mamba"),
        *gated_mlp(f"{L}.feed_forward"),
    ),
    expert_order=(),
    variant=lambda config: None,
)

FAMILY = (GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED, GRANITE_HYBRID, BAMBA)
