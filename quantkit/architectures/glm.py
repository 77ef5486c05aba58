"""GLM-4, dense; GLM-4.5 and later with experts, and Solar-Open, which is made like them.

llama.cpp: `conversion/glm.py`.
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
    GATING,
    LEADING_DENSE,
    MTP_LAYERS,
    NEXTN_KEY,
    NEXTN_MAPS,
    NORMS,
    RMS_NORM,
    SHARED_COUNT,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    nextn_layers,
    optional_key,
    partial_rope,
    qk_norms,
    router,
    router_bias,
    text_keys,
)
from quantkit.architectures.llama import kv_heads_if_said
from quantkit.architectures.rope import always_based
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    linear,
    piece,
    vector,
    whole,
)


def _turned(arch: Architecture) -> Architecture:
    """llama.cpp rotates positions of several axes in halves: the channels change their order."""
    maps = tuple(m for m in arch.maps if m not in GLM4_ATTENTION)
    base = f"{L}.self_attn"
    turned = (
        *linear(f"{base}.q_proj", ("q", "hidden"), "attn_q", _halves_of_heads, "heads"),
        *linear(f"{base}.k_proj", ("kv", "hidden"), "attn_k", _halves_of_heads, "kv_heads"),
    )
    return replace(arch, maps=(*maps, *turned, *GLM4_ATTENTION[4:]), variant=lambda c: None)


def _multi_axis(config: Config) -> Architecture | None:
    return _turned(GLM4) if config.rope.get("mrope_section") else None


def _halves_of_heads(role: str, heads: str) -> RowMap:
    """In each head, the even ones of the rotated channels, the odd ones, and then the rest."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n, rotated = source[0] // dims[heads], dims["rotated"]
        order = (*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, n))
        return (piece(role, source, source[0], order=order),)

    return pieces


GLM4_ATTENTION = attention(bias=None)

GLM4 = Architecture(
    hf_names=("Glm4ForCausalLM", "Glm4vForConditionalGeneration"),
    gguf_arch="glm4",
    keys=TEXT_KEYS,
    late_keys=(partial_rope(0.5),),
    expects=(SILU,),
    dims={
        **DIMS,
        "2ffn": lambda c: 2 * c.get("intermediate_size"),
        "rotated": partial_rope(0.5).read,
    },
    maps=(
        *EMBEDDINGS,
        *NORMS,
        vector(f"{L}.post_self_attn_layernorm", "post_attention_norm"),
        vector(f"{L}.post_mlp_layernorm", "post_ffw_norm"),
        *GLM4_ATTENTION,
        Map(f"{L}.mlp.gate_up_proj.weight", ("2ffn", "hidden"), whole("ffn_up.weight")),
        Map(f"{L}.mlp.down_proj.weight", ("hidden", "ffn"), whole("ffn_down.weight")),
    ),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1.5625e-07},
    variant=_multi_axis,
    fuses=("qkv",),
)

# with a head that predicts further tokens
GLM_OCR: Architecture = replace(
    GLM4,
    hf_names=("GlmOcrForConditionalGeneration",),
    late_keys=(*GLM4.late_keys, NEXTN_KEY),
    maps=(*GLM4.maps, *NEXTN_MAPS),
    layers=MTP_LAYERS,
    defaults={**GLM4.defaults, "rms_norm_eps": 1e-5},
    mtp=nextn_layers,
    keeps_mtp=True,
    variant=lambda c: _turned(GLM_OCR) if c.rope.get("mrope_section") else None,
)

# llama.cpp's converter writes the width for the context, and 1e-5 for the norms' epsilon
GLM = replace(
    GLM4,
    hf_names=("GlmForCausalLM",),
    gguf_arch="chatglm",
    keys=text_keys("context_length", "embedding_length", "feed_forward_length", "block_count",
                   "head_count", "head_count_kv", "layer_norm_rms_epsilon"),
    late_keys=(
        Key("{arch}.rope.dimension_count",
            lambda c: int(c.get("hidden_size") // c.get("num_attention_heads")
                          * c.rope.get("partial_rotary_factor", 0.5))),
        Key("tokenizer.ggml.add_bos_token", lambda c: False, "BOOL"),
        Key("{arch}.rope.freq_base", always_based, "FLOAT32"),
    ),
    expects=(SILU,),
    maps=(*EMBEDDINGS, *NORMS, *attention(bias=None), *GLM4.maps[-2:]),
    defaults={"rms_norm_eps": 1.5625e-07, "head_dim": 128},
    variant=lambda c: None,
)  # fmt: skip


def _ratio(config: Config) -> float:
    x: float = config.get("rope_ratio", kind="FLOAT32", default=1)
    return 10000 * x


E = "encoder.layers.{bid}"

# ChatGLM 2 and 3, and GLM-4-9b as it was first released
CHATGLM = replace(
    GLM,
    hf_names=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    keys=kv_heads_if_said(GLM.keys),
    late_keys=(
        *GLM.late_keys[:2],
        Key("{arch}.rope.freq_base", _ratio, "FLOAT32"),
    ),
    expects=(
        Expect("rmsnorm", (True,)), Expect("post_layer_norm", (True,)),
        Expect("add_bias_linear", (False,)), Expect("multi_query_attention", (True,)),
        Expect("apply_residual_connection_post_layernorm", (False,)),
        Expect("original_rope", (True,)),
    ),
    aliases={
        "num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length", "intermediate_size": "ffn_hidden_size",
        "num_key_value_heads": "multi_query_group_num", "rms_norm_eps": "layernorm_epsilon",
        "head_dim": "kv_channels",
    },
    dims={**GLM.dims, "qkv": lambda c: c.head_dim * (
        c.get("num_attention_heads") + 2 * c.get("multi_query_group_num"))},
    maps=(
        Map("embedding.word_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("encoder.final_layernorm", "output_norm"),
        Map("output_layer.weight", ("vocab", "hidden"), whole("output.weight")),
        vector(f"{E}.input_layernorm", "attn_norm"),
        vector(f"{E}.post_attention_layernorm", "ffn_norm"),
        *linear(f"{E}.self_attention.query_key_value", ("qkv", "hidden"), "attn_qkv"),
        *linear(f"{E}.self_attention.dense", ("hidden", "hidden"), "attn_output", bias=False),
        *linear(f"{E}.mlp.dense_h_to_4h", ("2ffn", "hidden"), "ffn_up", bias=False),
        *linear(f"{E}.mlp.dense_4h_to_h", ("hidden", "ffn"), "ffn_down", bias=False),
    ),
    renames=((r"^transformer\.", ""),),
    drops=(r"rotary_pos_emb\.inv_freq",),
    defaults={"layernorm_epsilon": 1e-5},
)  # fmt: skip

GLM4_MOE = Architecture(
    hf_names=("Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"),
    gguf_arch="glm4moe",
    keys=TEXT_KEYS,
    late_keys=(
        partial_rope(0.5),
        EXPERT_FFN,
        SHARED_COUNT,
        LEADING_DENSE,
        Key("{arch}.expert_gating_func", lambda c: GATING["sigmoid"]),
        optional_key("expert_weights_scale", "routed_scaling_factor", kind="FLOAT32"),
        optional_key("expert_weights_norm", "norm_topk_prob", kind="BOOL"),
        NEXTN_KEY,
    ),
    expects=(RMS_NORM, SILU),
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("n_shared_experts") * c.get("moe_intermediate_size"),
    },
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
        *attention(bias=None),
        *qk_norms(layers="query and key norms"),
        *gated_mlp(layers="dense MLP"),
        router(layers="experts"),
        router_bias(layers="experts"),
        *experts(layers="experts"),
        *gated_mlp(f"{L}.mlp.shared_experts", "_shexp", "shared_ffn", "shared experts"),
        *NEXTN_MAPS,
    ),
    layers={
        **DENSE_FIRST,
        "shared experts": lambda c, bid: (
            c.get("n_shared_experts") > 0 and DENSE_FIRST["experts"](c, bid)
        ),
        **MTP_LAYERS,
        "query and key norms": lambda c, bid: c.get("use_qk_norm", kind="BOOL", default=False),
    },
    expert_order=DOWN_GATE_UP,
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    mtp=nextn_layers,
    keeps_mtp=True,
    fuses=("qkv",),
)

SOLAR_OPEN = replace(
    GLM4_MOE,
    hf_names=("SolarOpenForCausalLM",),
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5, "head_dim": 128, "first_k_dense_replace": 0},
    keeps_mtp=False,
)

FAMILY = (CHATGLM, GLM, GLM4, GLM_OCR, GLM4_MOE, SOLAR_OPEN)
