"""GLM-5.3-Flash: delta attention in most layers, in the others latent attention over the tokens
that an indexer chooses among pools of them, and several residual streams ("hyper-connections").

llama.cpp: `conversion/glm.py` (Glm5NextModel).
"""

from __future__ import annotations

from quantkit.architectures.common import (
    DENSE_FIRST,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    LEADING_DENSE,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    NORMS,
    RMS_NORM,
    SHARED_COUNT,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    L,
    dense_said,
    experts,
    gated_mlp,
    nextn_layers,
    no_key,
    router,
    router_bias,
)
from quantkit.architectures.deepseek import ATTN, DEEPSEEK_V2
from quantkit.architectures.deepseek_sparse import (
    INDEXER_DIMS,
    INDEXER_KEYS,
    index_types,
    indexer,
)
from quantkit.architectures.kimi_linear import (
    DELTA_DIMS,
    DELTA_KEYS,
    DELTA_MAPS,
    GATE_MAPS,
    LATENT_MAPS,
    LOWER_BOUND,
    decay,
    latent_layers,
)
from quantkit.architectures.llama import kv_heads_if_said
from quantkit.architectures.rules import Architecture, Config, Dim, Expect, Key, Map, whole
from quantkit.errors import ConfigError

STREAMS = "residual streams"
HYPER_KEYS = (
    Key("{arch}.hyper_connection.count", "hc_mult"),
    Key("{arch}.hyper_connection.sinkhorn_iterations", "hc_sinkhorn_iters"),
    Key("{arch}.hyper_connection.epsilon", "hc_eps", "FLOAT32"),
)
# of n streams: n weights in, n out, and n x n between them
HYPER_DIMS: dict[str, Dim] = {
    "streams": lambda c: c.get("hc_mult") * c.get("hidden_size"),
    "mix": lambda c: (2 + c.get("hc_mult")) * c.get("hc_mult"),
    "three": lambda c: 3,
}


def hyper_connections(base: str, layers: str = "") -> tuple[Map, ...]:
    """How the residual streams are mixed before and after each half of a layer."""
    shapes = {"fn": ("mix", "streams"), "base": ("mix",), "scale": ("three",)}
    return tuple(
        Map(f"{base}.{name}", shape, whole(f"{name}.weight"), layers)
        for half in ("attn", "ffn")
        for part, shape in shapes.items()
        for name in (f"hc_{half}_{part}",)
    )


def clamps(config: Config) -> list[float] | None:
    """The bound of each layer's gates and ups."""
    limit = config.get("swiglu_limit", kind="FLOAT32", default=None)
    return None if limit is None else [limit] * config.blocks


CLAMP_KEYS = (
    Key("{arch}.swiglu_clamp_exp", clamps, "FLOAT32"),
    Key("{arch}.swiglu_clamp_shexp", clamps, "FLOAT32"),
)


def _is_latent(config: Config, bid: int) -> bool:
    """Layers that predict further tokens have latent attention. Raises ConfigError."""
    types = config.find("layer_types")
    if not isinstance(types, list) or len(types) != config.layers:
        raise ConfigError(f"{config.where}: 'layer_types' must name each of {config.layers} layers")
    return bid >= config.layers or types[bid] != "linear_attention"


def _indexed(config: Config, bid: int) -> bool:
    return _is_latent(config, bid) and (bid >= config.layers or index_types(config)[bid])


def _pool(part: str, shape: tuple[str, str], layers: str, optional: bool) -> Map:
    return Map(
        f"{ATTN}.indexer.index_kpool_compress_{part}",
        shape,
        whole(f"indexer_compressor_{part}.weight"),
        layers,
        optional,
    )


def _indexer(layers: str, optional: bool = False) -> tuple[Map, ...]:
    return (
        *indexer(layers, optional),
        _pool("ape", ("pool", "i_head"), layers, optional),
        _pool("gate", ("i_head", "hidden"), layers, optional),
    )


GLM5_NEXT = Architecture(
    hf_names=("Glm5NextForConditionalGeneration",),
    gguf_arch="glm5-next",
    keys=kv_heads_if_said(no_key(TEXT_KEYS, ".key_length", ".value_length")),
    late_keys=(
        Key("{arch}.attention.head_count_kv",
            lambda c: [int(_is_latent(c, bid)) for bid in range(c.blocks)]),
        VOCAB_SIZE,
        Key("{arch}.attention.layer_norm_epsilon", lambda c: 1e-6, "FLOAT32"),
        NEXTN_KEY_IF_ANY,
        *DELTA_KEYS,
        LOWER_BOUND,
        *(key for key in DEEPSEEK_V2.late_keys if key.name.endswith("_lora_rank")),
        Key("{arch}.rope.dimension_count", "qk_rope_head_dim"),
        *(
            key for key in DEEPSEEK_V2.late_keys
            if key.name.endswith((".key_length", ".value_length", "_mla"))
        ),
        *INDEXER_KEYS,
        Key("{arch}.attention.indexer.kpool", "index_kpool"),
        Key("{arch}.attention.indexer.kpool_select_tail", "index_kpool_always_select_tail", "BOOL",
            default=True),
        Key("{arch}.attention.indexer.types", index_types, "BOOL"),
        *HYPER_KEYS,
        LEADING_DENSE,
        EXPERT_FFN,
        SHARED_COUNT,
        WEIGHTS_SCALE,
        WEIGHTS_NORM,
        *CLAMP_KEYS,
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("mla_use_nope", (True,), required=True),
        Expect("qk_rope_head_dim", (0,), required=True),
        Expect("mhc", (True,)),
        Expect("hc_mult", (4,)),
        Expect("linear_attn_config", required=True),
        Expect("tie_word_embeddings", (False,)),
    ),
    dims={
        **DEEPSEEK_V2.dims, **DELTA_DIMS, **INDEXER_DIMS, **HYPER_DIMS,
        # every head has keys; the class of transformers assumes 64, and takes as many as heads only
        "kv_heads": lambda c: c.get("num_attention_heads"),
        "kv_b": lambda c: c.get("num_attention_heads")
        * (c.get("qk_nope_head_dim") + c.get("v_head_dim")),
        "pool": lambda c: c.get("index_kpool"),
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *hyper_connections(L, STREAMS),
        *LATENT_MAPS,
        *DELTA_MAPS,
        *GATE_MAPS,
        decay("d_heads", wide=True),
        *_indexer("indexer"),
        *_indexer("maybe an indexer", optional=True),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(layers="experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "experts"),
        *NEXTN_MAPS,
    ),
    layers={
        **DENSE_FIRST,
        **MTP_LAYERS,
        **latent_layers(_is_latent),
        STREAMS: lambda c, bid: bid < c.layers,
        "indexer": _indexed,
        "maybe an indexer": lambda c, bid: _is_latent(c, bid) and not _indexed(c, bid),
    },
    expert_order=DOWN_GATE_UP,
    defaults={"rms_norm_eps": 1e-5, "first_k_dense_replace": 3, "norm_topk_prob": True,
              "routed_scaling_factor": 2.5, "n_shared_experts": 1},
    aliases={"first_k_dense_replace": dense_said},
    mtp=nextn_layers,
    keeps_mtp=True,
    exact=frozenset({
        "hc_attn_fn", "hc_ffn_fn", "indexer_compressor_ape", "indexer_compressor_gate",
    }),
)  # fmt: skip

FAMILY = (GLM5_NEXT,)
