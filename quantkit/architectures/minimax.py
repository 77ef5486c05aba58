"""MiniMax-M2, and M1 and Text-01 with linear attention in seven of eight layers. llama.cpp:
`conversion/minimax.py`; it also lists the tokens whose rows of the embedding are zero
(`suppress_tokens`), which is not done here."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    GATE_DOWN_UP,
    NORMS,
    RMS_NORM,
    SHARED_COUNT,
    SILU,
    TEXT_KEYS,
    W123,
    WEIGHTS_SCALE,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
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
    edited,
    linear,
    vector,
    whole,
)
from quantkit.errors import ConfigError

MOE, A = f"{L}.block_sparse_moe", f"{L}.self_attn"


def _rotated(config: Config) -> int:
    """Channels of a head that are rotated; transformers 5 tells their share instead."""
    share = config.rope.get("partial_rotary_factor", 1.0)
    n: int = config.get("rotary_dim", default=int(config.head_dim * share))
    return n


MINIMAX_M2 = Architecture(
    hf_names=("MiniMaxM2ForCausalLM",),
    gguf_arch="minimax-m2",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.expert_feed_forward_length", "intermediate_size"),
        Key("{arch}.rope.dimension_count", _rotated),
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("scoring_func", ("sigmoid",)),
        Expect("use_qk_norm", (True,)),
        Expect("use_routing_bias", (True,)),
        Expect("qk_norm_type", ("per_layer",)),
    ),
    dims={**DIMS, **expert_dims("intermediate_size")},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *qk_norms(("q", "kv")),
        router(f"{MOE}.gate"),
        router_bias(f"{MOE}.e_score_correction_bias"),
        *experts(f"{MOE}.experts", W123, fused=f"{L}.mlp.experts"),
        router(f"{L}.mlp.gate", like=f"{MOE}.gate.weight"),
        router_bias(f"{L}.mlp.e_score_correction_bias", like=f"{MOE}.e_score_correction_bias"),
    ),
    expert_order=GATE_DOWN_UP,
    defaults={"rope_theta": 5e6, "rms_norm_eps": 1e-6, "scoring_func": "sigmoid"},
    fuses=("qkv",),
)


def _attends(config: Config, bid: int) -> bool:
    """Whether a layer has full attention: every eighth has, which llama.cpp takes for granted."""
    full = (bid + 1) % 8 == 0
    types = config.find("attn_type_list")
    if not isinstance(types, list) or len(types) != config.layers or types[bid] != full:
        raise ConfigError(
            f"{config.where}: 'attn_type_list' must be 1 for every eighth of {config.layers} "
            "layers and 0 for the others"
        )
    return full


_PARTS = ("full_attention", "linear_attention", "mlp")


def _residual_scale(config: Config) -> float:
    """How much of a layer's input is kept: llama.cpp has one number for all parts of a layer."""
    first, *rest = (config.get(f"layernorm_{part}_alpha", kind="FLOAT32") for part in _PARTS)
    if any(value != first for value in rest):
        raise ConfigError(f"{config.where}: the three 'layernorm_..._alpha' must be the same")
    return float(first)


MINIMAX_01 = replace(
    MINIMAX_M2,
    hf_names=("MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"),
    gguf_arch="minimax-01",
    late_keys=(
        Key("{arch}.residual_scale", _residual_scale, "FLOAT32"),
        Key("{arch}.rope.dimension_count", "rotary_dim"),
    ),
    expects=(
        RMS_NORM,
        SILU,
        Expect("postnorm", (True,), required=True),
        Expect("shared_intermediate_size", (0,)),
        *(Expect(f"layernorm_{part}_beta", (1,), required=True) for part in _PARTS),
    ),
    dims={**MINIMAX_M2.dims, "3q": lambda c: 3 * c.get("num_attention_heads") * c.head_dim},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(layers="full attention"),
        Map(f"{A}.qkv_proj.weight", ("3q", "hidden"), whole("attn_qkv.weight"), "linear attention"),
        *linear(f"{A}.output_gate", ("q", "hidden"), "attn_gate", layers="linear attention",
                bias=False),
        *linear(f"{A}.out_proj", ("hidden", "q"), "attn_output", layers="linear attention",
                bias=False),
        vector(f"{A}.norm", "attn_norm_2", "q", "linear attention"),
        router(f"{MOE}.gate"),
        *experts(f"{MOE}.experts", W123),
    ),
    layers={
        "full attention": _attends,
        "linear attention": lambda c, bid: not _attends(c, bid),
    },
    defaults={},
    fuses=(),
)  # fmt: skip

SPARSE = "sparse_attention_config"
DENSE, EXPERTS = "dense MLP", "experts"
# the indexer's settings: GGUF key, config.json's as released, and as transformers 5 saves them
INDEX = (
    ("head_count", "num_index_heads", "n_heads"),
    ("key_length", "index_dim", "head_dim"),
    ("top_k", "topk_blocks", "topk_blocks"),
    ("block_size", "block_size", "block_size"),
    ("local_blocks", "local_block", "local_blocks"),
)


def _index_setting(key: str) -> tuple[str, str]:
    (found,) = ((old, new) for name, old, new in INDEX if name == key)
    return f"{SPARSE}.sparse_{found[0]}", f"index_{found[1]}"


def _sparse(config: Config, *names: str) -> list[bool]:
    """Which layers are sparse, as the first of `names` that is there lists them."""
    values = next((v for name in names if (v := config.find(name)) is not None), None)
    known = {0: False, 1: True, "dense": False, "sparse": True, "full_attention": False,
             "minimax_m3_sparse": True}  # fmt: skip
    if not isinstance(values, list) or len(values) != config.layers or not {*values} <= {*known}:
        raise ConfigError(f"{config.where}: '{names[0]}' must tell of each of the layers")
    return [known[v] for v in values]


def _has_experts(config: Config) -> list[bool]:
    """Which layers have experts: those after the first few, and the same have sparse attention.

    Raises ConfigError: it is not so, and llama.cpp takes it for granted.
    """
    experts = _sparse(config, "moe_layer_freq", "mlp_layer_types")
    indexed = _sparse(config, f"{SPARSE}.sparse_attention_freq", "layer_types")
    if experts != sorted(experts) or indexed != experts:
        raise ConfigError(
            f"{config.where}: layers with experts must follow those without, and the same layers "
            "must have sparse attention; llama.cpp runs no others"
        )
    return experts


def _index(role: str, shape: tuple[str, str]) -> tuple[Map, ...]:
    """The indexer's queries or keys as they are released, and as transformers 5 calls them."""
    kind = role[0]
    old, new = f"{A}.index_{kind}", f"{A}.indexer.{kind}"
    matrix, norm = f"indexer.{kind}_proj.weight", f"indexer.{kind}_norm.weight"
    rows = edited(whole(norm), ("add", 1.0))
    return tuple(
        Map(
            f"{base}_{part}.weight",
            dims,
            made,
            EXPERTS,
            like=f"{old}_{part}.weight" * (base == new),
        )
        for base in (old, new)
        for part, dims, made in (("proj", shape, whole(matrix)), ("norm", ("i_head",), rows))
    )


MINIMAX_M3 = replace(
    MINIMAX_M2,
    hf_names=("MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration"),
    gguf_arch="minimax-m3",
    late_keys=(
        *MINIMAX_M2.late_keys,
        SHARED_COUNT,
        WEIGHTS_SCALE,
        Key("{arch}.expert_weights_norm", lambda c: True, "BOOL"),
        *(Key("{arch}.attention.indexer." + key, _index_setting(key)) for key, *_ in INDEX),
        Key("{arch}.leading_dense_block_count", lambda c: _has_experts(c).count(False)),
    ),
    expects=(
        RMS_NORM,
        Expect("hidden_act", ("swigluoai", "silu")),  # transformers 5 saves "silu" and means it not
        Expect("scoring_func", ("sigmoid",)),
        Expect("use_qk_norm", (True,)),
        Expect("qk_norm_type", ("per_head",)),
        Expect("use_gemma_norm", (True,)),
        Expect("use_routing_bias", (True,)),
        Expect("tie_word_embeddings", (False,)),
        Expect("sparse_init_block", (0,)),
        Expect("sparse_score_type", ("max",)),
    ),
    assumes=(Expect("swiglu_alpha", (1.702,)), Expect("swiglu_limit", (7.0,))),
    dims={
        **MINIMAX_M2.dims,
        "ffn": lambda c: c.get("dense_intermediate_size"),
        "shared_ffn": lambda c: c.get("n_shared_experts") * c.get("intermediate_size"),
        "i_head": lambda c: c.get(*_index_setting("key_length")),
        "i_q": lambda c: c.get(*_index_setting("head_count"))
        * c.get(*_index_setting("key_length")),
    },
    maps=(
        EMBEDDINGS[0],
        *shifted(EMBEDDINGS[1], *NORMS, *qk_norms()),
        EMBEDDINGS[2],
        *attention(),
        *_index("q", ("i_q", "hidden")),
        *_index("k", ("i_head", "hidden")),
        *gated_mlp(layers=DENSE),
        *experts(f"{MOE}.experts", W123, EXPERTS, fused=f"{L}.mlp.experts"),
        router(f"{MOE}.gate", EXPERTS),
        router_bias(f"{MOE}.e_score_correction_bias", EXPERTS),
        router(f"{L}.mlp.gate", EXPERTS, like=f"{MOE}.gate.weight"),
        router_bias(f"{L}.mlp.gate.e_score_correction_bias", EXPERTS,
                    like=f"{MOE}.e_score_correction_bias"),
        *gated_mlp(f"{MOE}.shared_experts", "_shexp", "shared_ffn", EXPERTS),
    ),
    layers={
        DENSE: lambda c, bid: not _has_experts(c)[bid],
        EXPERTS: lambda c, bid: _has_experts(c)[bid],
    },
    aliases={
        "sparse_init_block": f"{SPARSE}.sparse_init_block",
        "sparse_score_type": f"{SPARSE}.sparse_score_type",
    },
    defaults={
        **MINIMAX_M2.defaults, "dense_intermediate_size": 12288, "n_shared_experts": 1,
        "routed_scaling_factor": 2.0,
    },
    fuses=(),
)  # fmt: skip

FAMILY = (MINIMAX_M2, MINIMAX_01, MINIMAX_M3)
