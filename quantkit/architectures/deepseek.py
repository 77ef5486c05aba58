"""DeepSeek V1, V2, V3 (and Kimi-K2, which is one), and GLM-4.7-Flash with the same attention.

llama.cpp: `conversion/deepseek.py`, `conversion/glm.py` (Glm4MoeLiteModel). Multi-head latent
attention is converted for its absorbed form: one key-value head as wide as the latent, and
`kv_b_proj` taken apart into keys, transposed, and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.common import (
    DENSE_FIRST,
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    LEADING_DENSE,
    MTP_LAYERS,
    NEXTN_KEY_IF_ANY,
    NEXTN_MAPS,
    NORMS,
    NOT_NORMALIZED,
    RMS_NORM,
    ROPE_DIMENSION,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    dense_said,
    expert_dims,
    experts,
    gated_mlp,
    leading_dense,
    nextn_layers,
    no_key,
    optional_key,
    router,
    router_bias,
)
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    linear,
    piece,
    tied_head_dropped,
    vector,
)

ATTN = f"{L}.self_attn"

SPARSE = (
    router(layers="experts"),
    *experts(layers="experts"),
    *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "shared experts"),
    *gated_mlp(layers="dense MLP"),
)


def _shared(config: Config) -> int:
    n: int = config.get("n_shared_experts", default=0)
    return n


def _each_layer(config: Config) -> int | None:
    """1, where `moe_layer_freq` lists the layers with experts, and they are those after the dense
    ones."""
    found, dense = config.find("moe_layer_freq"), config.find("first_k_dense_replace")
    listed = isinstance(found, list) and isinstance(dense, int)
    return 1 if listed and found == [int(bid >= dense) for bid in range(len(found))] else None


DEEPSEEK = Architecture(
    hf_names=("DeepseekForCausalLM",),
    gguf_arch="deepseek",
    keys=TEXT_KEYS,
    late_keys=(
        ROPE_DIMENSION,
        Key("{arch}.rope.scaling.type", lambda c: "none", "STRING"),
        LEADING_DENSE,
        VOCAB_SIZE,
        EXPERT_FFN,
        Key("{arch}.expert_weights_scale", lambda c: 1.0, "FLOAT32"),
        Key("{arch}.expert_shared_count", _shared),
    ),
    expects=(RMS_NORM, SILU, Expect("moe_layer_freq", (1,))),
    assumes=(NOT_NORMALIZED,),
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: _shared(c) * c.get("moe_intermediate_size"),
    },
    maps=(*EMBEDDINGS, *NORMS, *attention(rotated=True), *SPARSE),
    layers={
        **DENSE_FIRST,
        "shared experts": lambda c, bid: bool(_shared(c)) and DENSE_FIRST["experts"](c, bid),
    },
    expert_order=DOWN_GATE_UP,
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    aliases={"first_k_dense_replace": dense_said, "moe_layer_freq": _each_layer},
    fuses=("qkv",),
)


def _keys_and_values(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """Each head of `kv_b_proj` holds its keys, which are transposed, then its values."""
    heads, nope, value, latent = (dims[d] for d in ("kv_heads", "nope", "value", "kv_lora"))
    return [
        p
        for h in range(heads)
        for at in (h * (nope + value),)
        for p in (
            piece("attn_k_b.weight", (heads, latent, nope), latent, h * latent, at, height=nope),
            piece("attn_v_b.weight", (heads, value, latent), value, h * value, at + nope),
        )
    ]


LATENT = (
    *linear(f"{ATTN}.q_proj", ("q", "hidden"), "attn_q", layers="one query matrix", bias=False),
    *linear(f"{ATTN}.q_a_proj", ("q_lora", "hidden"), "attn_q_a", layers="two", bias=False),
    vector(f"{ATTN}.q_a_layernorm", "attn_q_a_norm", "q_lora", "two"),
    *linear(f"{ATTN}.q_b_proj", ("q", "q_lora"), "attn_q_b", layers="two", bias=False),
    *linear(f"{ATTN}.kv_a_proj_with_mqa", ("kv_a", "hidden"), "attn_kv_a_mqa", bias=False),
    vector(f"{ATTN}.kv_a_layernorm", "attn_kv_a_norm", "kv_lora"),
    Map(f"{ATTN}.kv_b_proj.weight", ("kv_b", "kv_lora"), _keys_and_values),
    *linear(f"{ATTN}.o_proj", ("hidden", "values"), "attn_output", bias=False),
)


def _two_query_matrices(config: Config, bid: int) -> bool:
    return bool(config.get("q_lora_rank", default=0))


def log_multiplier(config: Config) -> float | None:
    scale = config.rope.get("mscale_all_dim")
    return None if scale is None else 0.1 * scale


# llama.cpp's converter writes these two early if transformers knows the config's class
LENGTHS = (
    Key("{arch}.attention.key_length",
        lambda c: c.get("kv_lora_rank") + c.get("qk_rope_head_dim")),
    Key("{arch}.attention.value_length", "kv_lora_rank"),
)  # fmt: skip


def early(key: Key) -> Key:
    """A length that the converter writes twice, where it is written early: the classes have a
    `head_dim` of their own, which a null takes from all but DeepSeek-V2's."""

    def read(config: Config) -> int | None:
        null = "head_dim" in config.values and config.values["head_dim"] is None
        classes = ("deepseek_v2",) if null else ("deepseek_v2", "deepseek_v3", "youtu")
        known = config.values.get("model_type") in classes and not config.wrapper
        return key.read(config) if known or config.values.get("head_dim") else None

    return replace(key, config=read)


# how much each expert counts, and the rotary part of a head
SHARES = (
    EXPERT_FFN,
    Key("{arch}.expert_shared_count", _shared),
    optional_key("expert_weights_scale", "routed_scaling_factor", kind="FLOAT32"),
    Key("{arch}.expert_weights_norm",
        lambda c: c.get("norm_topk_prob", kind="BOOL", default=False) or None, "BOOL"),
    Key("{arch}.rope.dimension_count", "qk_rope_head_dim"),
)  # fmt: skip


def _groups(config: Config) -> tuple[str, ...]:
    """llama.cpp chooses groups of experts by the two best of each, if there are several."""
    return ("noaux_tc",) if config.get("n_group", default=1) > 1 else ()


DEEPSEEK_V2 = replace(
    DEEPSEEK,
    hf_names=("DeepseekV2ForCausalLM",),
    gguf_arch="deepseek2",
    assumes=(Expect("topk_method", _groups),),
    keys=(*no_key(TEXT_KEYS, ".key_length", ".value_length"), *map(early, LENGTHS)),
    late_keys=(
        Key("{arch}.attention.head_count_kv", lambda c: 1),
        LEADING_DENSE,
        VOCAB_SIZE,
        optional_key("attention.q_lora_rank", "q_lora_rank"),
        Key("{arch}.attention.kv_lora_rank", "kv_lora_rank"),
        *LENGTHS,
        Key("{arch}.attention.key_length_mla",
            lambda c: c.get("qk_nope_head_dim") + c.get("qk_rope_head_dim")),
        Key("{arch}.attention.value_length_mla", "v_head_dim"),
        *SHARES,
        Key("{arch}.rope.scaling.yarn_log_multiplier", log_multiplier, "FLOAT32"),
    ),
    dims={
        **DEEPSEEK.dims,
        "nope": lambda c: c.get("qk_nope_head_dim"),
        "value": lambda c: c.get("v_head_dim"),
        "q_lora": lambda c: c.get("q_lora_rank", default=0),
        "kv_lora": lambda c: c.get("kv_lora_rank"),
        "q": lambda c: c.get("num_attention_heads")
        * (c.get("qk_nope_head_dim") + c.get("qk_rope_head_dim")),
        "kv_a": lambda c: c.get("kv_lora_rank") + c.get("qk_rope_head_dim"),
        "kv_b": lambda c: c.get("num_key_value_heads", "num_attention_heads")
        * (c.get("qk_nope_head_dim") + c.get("v_head_dim")),
        "values": lambda c: c.get("num_attention_heads") * c.get("v_head_dim"),
    },
    maps=(
        *EMBEDDINGS, *NORMS, *LATENT, *SPARSE, router_bias(layers="experts", optional=True),
    ),
    layers={
        **DEEPSEEK.layers,
        "two": _two_query_matrices,
        "one query matrix": lambda c, bid: not _two_query_matrices(c, bid),
    },
    expects=(*DEEPSEEK.expects, Expect("rope_interleave", (True,))),
    defaults={**DEEPSEEK.defaults, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0},
    mtp=nextn_layers,
    fuses=(),
)  # fmt: skip

DEEPSEEK_V3 = replace(
    DEEPSEEK_V2,
    hf_names=("DeepseekV3ForCausalLM",),
    defaults={
        **DEEPSEEK.defaults, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5,
        "norm_topk_prob": True, "n_group": 8, "topk_group": 4,
        # transformers no longer writes it, and llama.cpp would take the softmax
        "scoring_func": "sigmoid",
    },
)  # fmt: skip

# Kimi-VL; Kimi-K2.5 goes by the name of its text part, which is DeepSeek-V3's
KIMI = replace(
    DEEPSEEK_V3,
    hf_names=("KimiVLForConditionalGeneration", "KimiK25ForConditionalGeneration"),
    keys=no_key(TEXT_KEYS, ".key_length", ".value_length"),
    defaults={"rms_norm_eps": 1e-6, "first_k_dense_replace": 0, "scoring_func": "sigmoid"},
)

GLM4_MOE_LITE = replace(
    DEEPSEEK_V2,
    hf_names=("Glm4MoeLiteForCausalLM",),
    late_keys=(*DEEPSEEK_V2.late_keys, NEXTN_KEY_IF_ANY),
    maps=(*DEEPSEEK_V2.maps, *NEXTN_MAPS),
    layers={**DEEPSEEK_V2.layers, **MTP_LAYERS},
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5, "scoring_func": "sigmoid"},
    aliases={**DEEPSEEK_V2.aliases, "first_k_dense_replace": leading_dense},
    keeps_mtp=True,
)

FAMILY = (DEEPSEEK, *map(tied_head_dropped, (DEEPSEEK_V2, DEEPSEEK_V3, KIMI, GLM4_MOE_LITE)))
