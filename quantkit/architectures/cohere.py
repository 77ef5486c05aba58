"""Command R (Cohere, Cohere2), and with experts. llama.cpp: `conversion/command_r.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    dense_said,
    expert_dims,
    experts,
    gated_mlp,
    nextn_layers,
    router,
    slides,
    with_head_dim,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    reading,
    vector,
    whole,
)
from quantkit.errors import ConfigError


def _dense(config: Config) -> int:
    """How many layers at the beginning have no experts."""
    said = dense_said(config)
    n: int = config.get("first_k_dense_replace", default=0) if said is None else said
    return n


def _shared(config: Config) -> int:
    n: int = config.get("num_shared_experts", default=0)
    return n


def _shared_ffn(config: Config) -> int:
    n: int = _shared(config) * config.get("intermediate_size")
    return n


NOT_SCALED = Key("{arch}.rope.scaling.type", lambda c: "none", "STRING")
LOGIT_SCALE = Key("{arch}.logit_scale", "logit_scale", "FLOAT32")
# its runtime has no place for a head of its own
TRUNK = (*EMBEDDINGS[:2], vector(f"{L}.input_layernorm", "attn_norm"), *attention(), *gated_mlp())

COHERE = Architecture(
    hf_names=("CohereForCausalLM",),
    gguf_arch="command-r",
    # the models were trained on more than max_position_embeddings says
    keys=reading(TEXT_KEYS, ".context_length",
                 config=("model_max_length", "max_position_embeddings")),
    late_keys=(LOGIT_SCALE, NOT_SCALED),
    expects=(SILU, Expect("attention_bias", (False,))),
    dims=DIMS,
    maps=(
        *TRUNK,
        *(
            Map(f"{L}.self_attn.{part}_norm.weight", (heads, "head"),
                whole(f"attn_{part}_norm.weight"), "query and key norms")
            for part, heads in (("q", "heads"), ("k", "kv_heads"))
        ),
    ),
    layers={
        "query and key norms": lambda c, bid: c.get("use_qk_norm", kind="BOOL", default=False),
    },
    drops=(r"lm_head\.weight",),
    defaults={
        "rope_theta": 10000.0, "layer_norm_eps": 1e-5, "logit_scale": 0.0625,
        "tie_word_embeddings": True,
    },
    fuses=("qkv",),
)  # fmt: skip


def _rotated(config: Config) -> int:
    """Channels of a head that are rotated."""
    share = config.get("rotary_pct", kind="FLOAT32", default=1.0)
    return int(share * (config.get("hidden_size") // config.get("num_attention_heads")))


def _window(config: Config) -> int:
    """Every fourth layer of llama.cpp's sees all. Raises ConfigError if the model's do not."""
    found = slides(config, 4) or []
    if found != [(bid + 1) % 4 != 0 for bid in range(len(found))]:
        raise ConfigError(f"{config.where}: all but every fourth layer must have a sliding window")
    n: int = config.get("sliding_window")
    return n


COHERE2 = replace(
    COHERE,
    hf_names=("Cohere2ForCausalLM",),
    gguf_arch="cohere2",
    keys=with_head_dim(TEXT_KEYS),
    late_keys=(
        LOGIT_SCALE,
        Key("{arch}.attention.sliding_window", _window),
        VOCAB_SIZE,
        Key("{arch}.rope.dimension_count", _rotated),
        NOT_SCALED,
    ),
    maps=TRUNK,
    layers={},
    drops=(*COHERE.drops, r".*_proj\.bias"),  # of no effect without attention_bias
    defaults={**COHERE.defaults, "sliding_window": 4096},
)

COHERE2_MOE = Architecture(
    hf_names=("Cohere2MoeForCausalLM",),
    gguf_arch="cohere2moe",
    keys=TEXT_KEYS,
    late_keys=(
        LOGIT_SCALE,
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", slides, "BOOL"),
        VOCAB_SIZE,
        Key("{arch}.expert_feed_forward_length", "intermediate_size"),
        Key("{arch}.leading_dense_block_count", _dense),
        Key("{arch}.expert_weights_norm", "norm_topk_prob", "BOOL"),
        Key("{arch}.expert_shared_count", lambda c: _shared(c) or None),
        Key("{arch}.expert_shared_feed_forward_length", lambda c: _shared_ffn(c) or None),
        NEXTN_KEY_IF_ANY,
        Key("{arch}.rope.dimension_count", "head_dim"),
        NOT_SCALED,
    ),
    expects=(
        SILU,
        Expect("layer_types", required=True),
        Expect("shared_expert_combination_strategy", ("average",)),
        Expect("attention_bias", (False,)),
    ),
    dims={
        **DIMS,
        **expert_dims("intermediate_size"),
        "ffn": lambda c: c.get("prefix_dense_intermediate_size", "intermediate_size"),
        "shared_ffn": _shared_ffn,
    },
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        *attention(),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "shared experts"),
        *(replace(m, optional="shared_head" in m.source or m.optional) for m in NEXTN_MAPS),
    ),
    layers={
        **MTP_LAYERS,
        "experts": lambda c, bid: bid >= _dense(c),
        "shared experts": lambda c, bid: bool(_shared(c)) and bid >= _dense(c),
        "dense MLP": lambda c, bid: bid < _dense(c),
    },
    expert_order=DOWN_GATE_UP,
    mtp=nextn_layers,
    keeps_mtp=True,
    defaults={
        "rope_theta": 10000.0, "layer_norm_eps": 1e-5, "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "expert_selection_fn": "softmax", "tie_word_embeddings": True,
    },
    fuses=("gate_up_exps",),
)  # fmt: skip

FAMILY = (COHERE, COHERE2, COHERE2_MOE)
