"""MiniMax-M3: M2's mixture behind a few dense layers, and attention over the blocks of tokens that
an indexer chooses. Norms are kept as their distance from one.

llama.cpp: `conversion/minimax.py` (MiniMaxM3Model).
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    EMBEDDINGS,
    NORMS,
    RMS_NORM,
    SHARED_COUNT,
    W123,
    WEIGHTS_SCALE,
    L,
    attention,
    experts,
    gated_mlp,
    qk_norms,
    router,
    router_bias,
    shifted,
)
from quantkit.architectures.minimax import MINIMAX_M2, MOE, A
from quantkit.architectures.rules import Config, Expect, Key, Map, edited, halves, whole
from quantkit.errors import ConfigError

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
    known = {
        0: False,
        1: True,
        "dense": False,
        "sparse": True,
        "full_attention": False,
        "minimax_m3_sparse": True,
    }
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


def _fused_mlp(base: str, suffix: str, ffn: str, layers: str, like: str) -> tuple[Map, ...]:
    """A feed-forward network as transformers 5 keeps it, of the older spelling `like`."""
    return (
        Map(
            f"{base}.gate_up_proj.weight",
            (f"2{ffn}", "hidden"),
            halves(f"ffn_gate{suffix}.weight", f"ffn_up{suffix}.weight"),
            layers,
            like=f"{like}.gate_proj.weight",
        ),
        *(
            (
                Map(
                    f"{base}.down_proj.weight",
                    ("hidden", ffn),
                    whole(f"ffn_down{suffix}.weight"),
                    layers,
                    like=f"{like}.down_proj.weight",
                ),
            )
            if base != like
            else ()
        ),
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
        Expect("sparse_init_block", (0,)),
        Expect("sparse_score_type", ("max",)),
    ),
    assumes=(Expect("swiglu_alpha", (1.702,)), Expect("swiglu_limit", (7.0,))),
    dims={
        **MINIMAX_M2.dims,
        "ffn": lambda c: c.get("dense_intermediate_size"),
        "shared_ffn": lambda c: c.get("n_shared_experts") * c.get("intermediate_size"),
        "2ffn": lambda c: 2 * c.get("dense_intermediate_size"),
        "2shared_ffn": lambda c: 2 * c.get("n_shared_experts") * c.get("intermediate_size"),
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
        *_fused_mlp(f"{L}.mlp", "", "ffn", DENSE, f"{L}.mlp"),
        *_fused_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", EXPERTS,
                    f"{MOE}.shared_experts"),
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

FAMILY = (MINIMAX_M3,)
