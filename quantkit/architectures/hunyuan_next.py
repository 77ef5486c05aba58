"""Hy3, with the attention of Qwen3; and Hy4: latent attention with a gate and sinks over the tokens
that an indexer chooses, and several residual streams ("hyper-connections").

llama.cpp: `conversion/hunyuan.py` (HYV3Model), `conversion/hy_v4.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    GATING,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    NORMS,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    leading_dense,
    nextn_layers,
    qk_norms,
    router,
    router_bias,
)
from quantkit.architectures.deepseek import ATTN, DEEPSEEK_V2, LATENT
from quantkit.architectures.deepseek_sparse import INDEXER_DIMS, INDEXER_KEYS, indexer
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    tied_head_dropped,
    vector,
    whole,
)
from quantkit.errors import ConfigError

SIGMOID = Key("{arch}.expert_gating_func", lambda c: GATING["sigmoid"])


def _shared_ffn(config: Config) -> int:
    n: int = config.get("num_shared_experts", default=1) * config.get("moe_intermediate_size")
    return n


HY_V3 = Architecture(
    hf_names=("HYV3ForCausalLM",),
    gguf_arch="hy_v3",
    keys=TEXT_KEYS,
    late_keys=(
        EXPERT_FFN,
        Key("{arch}.expert_shared_feed_forward_length", _shared_ffn),
        Key("{arch}.expert_weights_norm", "route_norm", "BOOL", default=True),
        Key("{arch}.expert_weights_scale", "router_scaling_factor", "FLOAT32", default=2.826),
        SIGMOID,
        NEXTN_KEY_IF_ANY,
    ),
    expects=(RMS_NORM, SILU, Expect("attention_bias", (False,)), Expect("mlp_bias", (False,))),
    dims={**DIMS, **expert_dims(), "shared_ffn": _shared_ffn},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *qk_norms(),
        *gated_mlp(layers="dense MLP"),
        router(f"{L}.mlp.router.gate", "experts"),
        Map(f"{L}.mlp.expert_bias", ("experts",), whole("exp_probs_b"), "experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_mlp", "_shexp", "shared_ffn", "shared experts"),
        *NEXTN_MAPS[:3],
        vector(f"{L}.final_layernorm", "nextn.shared_head_norm", layers="mtp"),
        *NEXTN_MAPS[4:],
    ),
    layers={
        **MTP_LAYERS,
        "experts": lambda c, bid: bid >= leading_dense(c),
        "shared experts": lambda c, bid: _shared_ffn(c) > 0 and bid >= leading_dense(c),
        "dense MLP": lambda c, bid: bid < leading_dense(c),
    },
    expert_order=DOWN_GATE_UP,
    defaults={"rope_theta": 11158840.0, "rms_norm_eps": 1e-5, "head_dim": 128},
    mtp=nextn_layers,
    keeps_mtp=True,
)


def _index_types(config: Config) -> list[bool] | None:
    """Whether each layer has an indexer of its own; None where all tokens are looked at. Raises
    ConfigError."""
    types, n = config.find("indexer_types"), config.layers
    if types is None:  # configs from before it name sparse layers
        found = ["sparse" in str(kind) for kind in config.find("layer_types") or ()][:n]
        return found if any(found) else None
    if len(types) < n or not {*types[:n]} <= {"full", "shared"} or types[0] != "full":
        raise ConfigError(
            f"{config.where}: 'indexer_types' must say full or shared for each of {n} layers, and "
            "full for the first"
        )
    return [kind == "full" for kind in types[:n]]


def _has_indexer(config: Config, bid: int) -> bool:
    types = _index_types(config)
    return types is not None and types[bid]


def _indexed(key: Key) -> Key:
    """A key that is written where there are indexers."""
    return replace(key, config=lambda c: key.read(c) if _index_types(c) else None)


def _clamps(config: Config) -> list[float] | None:
    limit = config.get("swiglu_limit", kind="FLOAT32", default=0.0)
    return [limit] * config.layers if limit > 0 else None


def _grouped(key: Key) -> Key:
    """One group is none, and is not written."""

    def read(config: Config) -> int | None:
        groups = config.find("n_group"), config.find("topk_group")
        value: int | None = None if groups == (1, 1) else key.read(config)
        return value

    return replace(key, config=read) if "_group_" in key.name else key


def _mixing(source: str, role: str, rows: str) -> tuple[Map, ...]:
    """How the residual streams become one."""
    shapes = {"fn": (rows, "streams"), "base": (rows,), "scale": (f"{rows} scales",)}
    return tuple(
        Map(f"{source}{part}", shape, whole(f"{role}_{part}.weight"))
        for part, shape in shapes.items()
    )


def _exact_head(config: Config) -> Architecture | None:
    """The output matrix in float32, where the model computes with it so."""
    if not config.find("enable_lm_head_fp32"):
        return None
    return replace(HY_V4, exact=HY_V4.exact | {"output"}, variant=lambda c: None)


HY_V4 = tied_head_dropped(
    replace(
        DEEPSEEK_V2,
        hf_names=("HYV4ForCausalLM",),
        gguf_arch="hy_v4",
        keys=tuple(map(_grouped, DEEPSEEK_V2.keys)),
        late_keys=(
            *DEEPSEEK_V2.late_keys,
            SIGMOID,
            Key("{arch}.swiglu_clamp_exp", _clamps, "FLOAT32"),
            Key("{arch}.hyper_connection.count", "hc_mult"),
            Key("{arch}.hyper_connection.epsilon", "hc_eps", "FLOAT32"),
            Key("{arch}.hyper_connection.magnitude", "hc_magnitude", "FLOAT32"),
            *map(_indexed, INDEXER_KEYS),
            Key("{arch}.attention.indexer.types", _index_types, "BOOL"),
        ),
        expects=(RMS_NORM, SILU, Expect("enable_ihc", (True,)), Expect("gated_mla", (True,))),
        # the released config counts heads of keys that the latent does not have
        aliases={
            "num_key_value_heads": "num_attention_heads",
            "first_k_dense_replace": leading_dense,
        },
        dims={
            **DEEPSEEK_V2.dims,
            **INDEXER_DIMS,
            "streams": lambda c: c.get("hc_mult") * c.get("hidden_size"),
            "mix": lambda c: 2 * c.get("hc_mult"),
            "mix scales": lambda c: 2,
            "head mix": lambda c: c.get("hc_mult"),
            "head mix scales": lambda c: 1,
        },
        maps=(
            *EMBEDDINGS,
            *NORMS,
            *LATENT,
            Map(f"{ATTN}.linear_gate.weight", ("values", "hidden"), whole("attn_gate.weight")),
            Map(f"{ATTN}.learnable_sink_param", ("heads",), whole("attn_sinks.weight")),
            *indexer("indexer"),
            *_mixing("model.hc_head.hc_head_", "output_hc", "head mix"),
            *_mixing(f"{L}.hc_attn_layer.hc_pre.hc_", "hc_attn", "mix"),
            *_mixing(f"{L}.hc_mlp_layer.hc_pre.hc_", "hc_ffn", "mix"),
            *gated_mlp(layers="dense MLP"),
            router(layers="experts"),
            router_bias(layers="experts"),
            *experts(layers="experts", like=False),
            *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "shared experts"),
        ),
        layers={
            **DEEPSEEK_V2.layers,
            "indexer": _has_indexer,
        },
        # as transformers 5 saves it
        renames=(
            *DEEPSEEK_V2.renames,
            (r"\.hc_pre\.(?=hc_head\.)", "."),
            (r"\.hc_pre\.(hc_(attn|mlp)_layer)\.", r".\1.hc_pre."),
            (r"(\.mlp\.(shared_experts\.)?)linear_gate\.", r"\1gate_proj."),
        ),
        drops=(r"model\.mtp_layers\..*",),  # llama.cpp does not convert them
        defaults={"rms_norm_eps": 1e-5},
        exact=frozenset({"hc_attn_fn", "hc_ffn_fn", "output_hc_fn"}),
        mtp=lambda c: 0,
        variant=_exact_head,
    )
)

FAMILY = (HY_V3, HY_V4)
