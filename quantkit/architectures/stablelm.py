"""StableLM: layer norms, partly rotated heads; in the 12b a norm for every head. llama.cpp:
`conversion/stablelm.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    SILU,
    L,
    attention,
    gated_mlp,
    layer_norm,
    text_keys,
)
from quantkit.architectures.rules import Architecture, Config, Dims, Key, Map, Piece, Shape, piece

A = f"{L}.self_attn"


def _rotated(config: Config) -> int:
    """Channels of a head that are rotated."""
    share = config.rope.get("partial_rotary_factor", 0.25)
    return int(share * (config.get("hidden_size") // config.get("num_attention_heads")))


def _parallel(config: Config) -> bool:
    """Whether attention and network stand beside each other; older models' code assumes so."""
    old = config.values.get("model_type") != "stablelm"
    found: bool = config.get("use_parallel_residual", kind="BOOL", default=old)
    return found


def _head_norm(part: str, heads: str) -> Map:
    """The norm of one head: a row of a matrix."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        shape = (dims[heads], dims["head"])
        return (piece(f"attn_{part}_norm.weight", shape, dims["head"], xid * dims["head"]),)

    return Map(
        f"{A}.{part}_layernorm.norms.{{xid}}.weight",
        ("head",),
        pieces,
        "norms of heads",
        experts=heads,
    )


STABLELM = Architecture(
    hf_names=("StableLmForCausalLM", "StableLMEpochForCausalLM", "LlavaStableLMEpochForCausalLM"),
    gguf_arch="stablelm",
    keys=(
        *text_keys("context_length", "embedding_length", "block_count", "feed_forward_length"),
        Key("{arch}.rope.dimension_count", _rotated),
        *text_keys("head_count", "head_count_kv"),
        Key("{arch}.use_parallel_residual", _parallel, "BOOL"),
        Key("{arch}.attention.layer_norm_epsilon", ("layer_norm_eps", "norm_eps"), "FLOAT32"),
    ),
    late_keys=(),
    expects=(SILU,),
    dims=DIMS,
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *layer_norm("model.norm", "output_norm"),
        *layer_norm(f"{L}.input_layernorm", "attn_norm"),
        # there is none where attention and network stand beside each other
        *(
            replace(m, optional=True)
            for m in layer_norm(f"{L}.post_attention_layernorm", "ffn_norm")
        ),
        *attention(bias=None),
        *gated_mlp(),
        _head_norm("q", "heads"),
        _head_norm("k", "kv_heads"),
    ),
    layers={"norms of heads": lambda c, bid: c.get("qk_layernorm", kind="BOOL", default=False)},
    defaults={"layer_norm_eps": 1e-5},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (STABLELM,)
