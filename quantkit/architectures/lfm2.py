"""LFM2, dense and with experts: short convolutions in most layers. llama.cpp:
`conversion/lfm2.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EXPERT_FFN,
    GATE_DOWN_UP,
    GATING,
    NORMALIZED,
    OPTIONAL_HEAD,
    TEXT_KEYS,
    VOCAB_SIZE,
    W123,
    L,
    expert_dims,
    experts,
    gated_mlp,
    router,
    router_bias,
)
from quantkit.architectures.mamba import per_layer
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    Values,
    linear,
    vector,
    whole,
)
from quantkit.source.tensors import SourceTensor

FF, A, C = f"{L}.feed_forward", f"{L}.self_attn", f"{L}.conv"


def _attends(config: Config, bid: int) -> bool:
    types = config.find("layer_types") or []
    return bid < len(types) and types[bid] == "full_attention"


def _sparse(config: Config, bid: int) -> bool:
    return bool(bid >= config.get("num_dense_layers"))


_ATTENTION: dict[str, Any] = {"layers": "attention", "bias": False}

LFM2_MOE = Architecture(
    hf_names=("Lfm2MoeForCausalLM",),
    gguf_arch="lfm2moe",
    keys=TEXT_KEYS,
    late_keys=(
        per_layer("attention.head_count_kv", "num_key_value_heads", _attends),
        EXPERT_FFN,
        Key("{arch}.leading_dense_block_count", "num_dense_layers"),
        Key("{arch}.expert_gating_func", lambda c: GATING["sigmoid"]),
        VOCAB_SIZE,
        Key("{arch}.shortconv.l_cache", "conv_L_cache"),
    ),
    expects=(
        Expect("layer_types", required=True),
        Expect("norm_eps", required=True),
        Expect("conv_bias", (False,)),
        Expect("use_expert_bias", (True,)),
    ),
    assumes=(NORMALIZED, Expect("routed_scaling_factor", (1.0,))),
    dims={
        **DIMS,
        **expert_dims(),
        "3hidden": lambda c: 3 * c.get("hidden_size"),
        "kernel": lambda c: c.get("conv_L_cache"),
    },
    maps=(
        Map("model.embed_tokens.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("model.embedding_norm", "token_embd_norm"),
        vector(f"{L}.operator_norm", "attn_norm"),
        vector(f"{L}.ffn_norm", "ffn_norm"),
        *linear(f"{A}.q_proj", ("q", "hidden"), "attn_q", **_ATTENTION),
        *linear(f"{A}.k_proj", ("kv", "hidden"), "attn_k", **_ATTENTION),
        *linear(f"{A}.v_proj", ("kv", "hidden"), "attn_v", **_ATTENTION),
        *linear(f"{A}.out_proj", ("hidden", "q"), "attn_output", **_ATTENTION),
        vector(f"{A}.q_layernorm", "attn_q_norm", "head", "attention"),
        vector(f"{A}.k_layernorm", "attn_k_norm", "head", "attention"),
        Map(f"{C}.conv.weight", ("hidden", "one", "kernel"),
            whole("shortconv.conv.weight", "hidden", "kernel"), "convolution"),
        *linear(f"{C}.in_proj", ("3hidden", "hidden"), "shortconv.in_proj", layers="convolution",
                bias=False),
        *linear(f"{C}.out_proj", ("hidden", "hidden"), "shortconv.out_proj", layers="convolution",
                bias=False),
        *gated_mlp(FF, layers="dense MLP", names=W123),
        router(f"{FF}.gate", "experts"),
        router_bias(f"{FF}.expert_bias", "experts"),
        *experts(f"{FF}.experts", W123, "experts"),
    ),
    layers={
        "attention": _attends,
        "convolution": lambda c, bid: not _attends(c, bid),
        "experts": _sparse,
        "dense MLP": lambda c, bid: not _sparse(c, bid),
    },
    expert_order=GATE_DOWN_UP,
    drops=(r"lm_head\.weight",),  # llama.cpp takes the embedding
    defaults={"rope_theta": 1e6, "norm_eps": 1e-5, "tie_word_embeddings": True},
    fuses=("qkv",),
)  # fmt: skip


def _attending(config: Config) -> list[bool]:
    """Whether each layer attends: by its type, or by its number in an older list."""
    types, numbers = config.find("layer_types"), config.find("full_attn_idxs")
    if types is not None:
        return [kind != "conv" for kind in types]
    return [numbers is None or bid in numbers for bid in range(config.layers)]


def _ffn(config: Config) -> int:
    """The width of the network: two thirds of what config.json says, rounded up."""
    n: int = config.get("block_ff_dim", "intermediate_size")
    if not config.get("block_auto_adjust_ff_dim", kind="BOOL"):
        return n
    share = config.get("block_ffn_dim_multiplier", kind="FLOAT32", default=1.0)
    multiple: int = config.get("block_multiple_of")
    return -(-int(share * int(2 * n / 3)) // multiple) * multiple


LFM2 = replace(
    LFM2_MOE,
    hf_names=("Lfm2ForCausalLM", "LFM2ForCausalLM", "Lfm2VlForConditionalGeneration"),
    gguf_arch="lfm2",
    late_keys=(
        per_layer("attention.head_count_kv", "num_key_value_heads",
                  lambda c, bid: _attending(c)[bid]),
        VOCAB_SIZE,
        Key("{arch}.shortconv.l_cache", "conv_L_cache"),
        Key("{arch}.feed_forward_length", _ffn),
    ),
    expects=(Expect("conv_bias", (False,)),),
    dims={
        **DIMS,
        "ffn": _ffn,
        "3hidden": LFM2_MOE.dims["3hidden"],
        "kernel": LFM2_MOE.dims["kernel"],
    },
    maps=(
        OPTIONAL_HEAD,
        *(
            replace(m, layers="" if m.layers == "dense MLP" else m.layers)
            for m in LFM2_MOE.maps if m.layers != "experts"
        ),
    ),
    drops=(),
    layers={
        "attention": lambda c, bid: _attending(c)[bid],
        "convolution": lambda c, bid: not _attending(c)[bid],
    },
    renames=((r"^lfm\.", "model."),),
    expert_order=(),
    defaults={
        **LFM2_MOE.defaults, "conv_L_cache": 3, "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 256,
    },
)  # fmt: skip


def _projected(sources: Mapping[str, SourceTensor], values: Values) -> dict[str, Any]:
    matrix = sources.get("linear.weight")
    return {"projected": matrix.shape[0]} if matrix else {}


# embedding models; those of a vector for each token (ColBERT) have a matrix more
LFM2_EMBED = replace(
    LFM2,
    hf_names=("Lfm2Model", "Lfm2BidirectionalModel", "Lfm2BidirectionalForMaskedLM"),
    first_keys=(Key("{arch}.embedding_length_out", "projected", default=None),),
    late_keys=(
        *LFM2.late_keys,
        Key("{arch}.attention.causal",
            lambda c: None if c.values["architectures"][0] == "Lfm2Model" else False, "BOOL"),
        *POOLING_KEYS,
    ),
    dims={**LFM2.dims, "projected": lambda c: c.get("projected", default=1)},
    maps=(
        Map("linear.weight", ("projected", "hidden"), whole("dense_2.weight"), optional=True,
            early=True),
        *LFM2.maps,
    ),
    renames=((r"^lfm2\.", "model."),),
    learned=_projected,
    weights=("1_Dense/model.safetensors?",),
)  # fmt: skip

# LFM2.5-Audio's way from codes back to sound: vectors go in, and a spectrum comes out
LFM25_AUDIO_TOKENIZER = replace(
    LFM2,
    hf_names=("Lfm25AudioTokenizer",),
    late_keys=(
        *LFM2.late_keys,
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.embedding_length_out", "output_size"),
    ),
    dims={**LFM2.dims, "spectrum": lambda c: c.get("output_size")},
    maps=(
        *(m for m in LFM2.maps if m is not OPTIONAL_HEAD),
        *linear("lin", ("spectrum", "hidden"), "dense_2", bias=None),
    ),
    drops=(r"istft\.window", r"emb\.emb.*"),
    no_vocabulary=True,
)

FAMILY = (LFM2, LFM2_EMBED, LFM25_AUDIO_TOKENIZER, LFM2_MOE)
