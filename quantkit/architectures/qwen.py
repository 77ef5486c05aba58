"""Qwen2 and Qwen3, dense and with experts, and the text parts of Qwen2-VL and 2.5-Omni; RND1,
LLaDA-MoE and GroveMoE, which are made of the same parts.

llama.cpp: `conversion/qwen.py`, `conversion/qwenvl.py`, `conversion/llada.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    DOWN_GATE_UP,
    EMBEDDINGS,
    EXPERT_FFN,
    NORMALIZED,
    NORMS,
    NOT_NORMALIZED,
    RMS_NORM,
    SILU,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    optional_key,
    qk_norms,
    router,
)
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Map, stack, whole

# llama.cpp runs these with experts in every layer, or in none
ALL_SPARSE = (Expect("mlp_only_layers", ([],)), Expect("decoder_sparse_step", (1,)))

SHARED_EXPERT = (
    *gated_mlp(f"{L}.mlp.shared_expert", "_shexp", "shared_ffn"),
    Map(f"{L}.mlp.shared_expert_gate.weight", ("one", "hidden"),
        whole("ffn_gate_inp_shexp.weight")),
)  # fmt: skip
SHARED_FFN = Key("{arch}.expert_shared_feed_forward_length", "shared_expert_intermediate_size")
# Qwen3-Coder says 0, though its layers have no shared experts
SHARED_FFN_IF_SAID = replace(SHARED_FFN, default=None)

QWEN2 = Architecture(
    # the text parts of dots.ocr and Audio Flamingo 3, too
    hf_names=(
        "Qwen2ForCausalLM",
        "Qwen2Model",
        "DotsOCRForCausalLM",
        "AudioFlamingo3ForConditionalGeneration",
        "Qwen2AudioForConditionalGeneration",
    ),
    gguf_arch="qwen2",
    keys=TEXT_KEYS,
    late_keys=POOLING_KEYS,
    expects=(RMS_NORM, SILU),
    dims=DIMS,
    maps=(*EMBEDDINGS, *NORMS, *attention(bias=None), *gated_mlp()),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    fuses=("qkv",),
)

KORMO = replace(
    QWEN2,
    hf_names=("KORMoForCausalLM",),
    renames=((r"\.pre_attention_layernorm", ".input_layernorm"),
             (r"\.pre_mlp_layernorm", ".post_attention_layernorm")),
)  # fmt: skip

# the text parts of Qwen2-VL, Qwen2.5-VL and Qwen2.5-Omni
QWEN2_VL = replace(
    QWEN2,
    hf_names=(
        "Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration",
    ),
    gguf_arch="qwen2vl",
    late_keys=(),
    renames=(("^thinker\\.", ""),),
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
)  # fmt: skip

QWEN3 = replace(
    QWEN2,
    hf_names=("Qwen3ForCausalLM", "Qwen3Model", "StepVLForConditionalGeneration"),
    gguf_arch="qwen3",
    maps=(*EMBEDDINGS, *NORMS, *attention(bias=None), *qk_norms(), *gated_mlp()),
)

MAINCODER = replace(
    QWEN3,
    hf_names=("MaincoderForCausalLM",),
    gguf_arch="maincoder",
    late_keys=(Key("{arch}.rope.dimension_count", "head_dim", default=None),),
    defaults={},
)

QWEN2_MOE = replace(
    QWEN2,
    hf_names=("Qwen2MoeForCausalLM",),
    gguf_arch="qwen2moe",
    late_keys=(EXPERT_FFN, SHARED_FFN),
    expects=(*QWEN2.expects, *ALL_SPARSE),
    assumes=(NOT_NORMALIZED,),
    defaults={**QWEN2.defaults, "norm_topk_prob": False},
    dims={
        **DIMS,
        **expert_dims(),
        "shared_ffn": lambda c: c.get("shared_expert_intermediate_size"),
    },
    maps=(
        *EMBEDDINGS, *NORMS, *attention(bias=None), router(), *experts(like=False), *SHARED_EXPERT,
    ),
    expert_order=DOWN_GATE_UP,
)  # fmt: skip

QWEN3_MOE = replace(
    QWEN2_MOE,
    hf_names=("Qwen3MoeForCausalLM",),
    gguf_arch="qwen3moe",
    late_keys=(EXPERT_FFN, SHARED_FFN_IF_SAID),
    assumes=(NORMALIZED,),
    dims={**DIMS, **expert_dims()},
    maps=(
        *EMBEDDINGS, *NORMS, *attention(bias=None), *qk_norms(), router(), *experts(like=False),
    ),
)  # fmt: skip


RND1 = replace(
    QWEN3_MOE,
    hf_names=("RND1",),
    gguf_arch="rnd1",
    late_keys=(
        *QWEN3_MOE.late_keys,
        Key("{arch}.attention.causal", lambda c: False, "BOOL"),
        Key("tokenizer.ggml.mask_token_id", "mask_token_id", default=None),
    ),
)

LLADA_MOE = replace(
    QWEN3_MOE,
    hf_names=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    gguf_arch="llada-moe",
    late_keys=(
        optional_key("expert_feed_forward_length", "expert_intermediate_size"),
        Key("tokenizer.ggml.mask_token_id", lambda c: 156895),
        Key("{arch}.attention.causal", lambda c: False, "BOOL"),
        Key("diffusion.shift_logits", lambda c: False, "BOOL"),
    ),
    expects=(RMS_NORM, SILU, Expect("qk_layernorm", (True,))),
    assumes=(NOT_NORMALIZED, Expect("moe_router_score_function", ("softmax",))),
    dims={**DIMS, **expert_dims("expert_intermediate_size")},
    defaults=QWEN2.defaults,
)


def _chunk(config: Config) -> int:
    n: int = config.get("head_dim", default=128)
    return n


CHUNK = f"{L}.mlp.chunk_experts.{{xid}}"

GROVE_MOE = replace(
    QWEN3_MOE,
    hf_names=("GroveMoeForCausalLM", "modeling_grove_moe.GroveMoeForCausalLM"),
    gguf_arch="grovemoe",
    late_keys=(
        EXPERT_FFN,
        Key("{arch}.expert_chunk_feed_forward_length", _chunk),
        Key("{arch}.experts_per_group", lambda c: 2),
        Key("{arch}.expert_group_scale", lambda c: 0.05, "FLOAT32"),
    ),
    dims={**QWEN3_MOE.dims, "chunks": lambda c: c.get("num_experts") // 2, "chunk_ffn": _chunk},
    maps=(
        *QWEN3_MOE.maps,
        # an expert for every two of the others
        Map(f"{CHUNK}.gate_proj.weight", ("chunk_ffn", "hidden"),
            stack("ffn_gate_chexps.weight", "chunks"), experts="chunks"),
        Map(f"{CHUNK}.up_proj.weight", ("chunk_ffn", "hidden"),
            stack("ffn_up_chexps.weight", "chunks"), experts="chunks"),
        Map(f"{CHUNK}.down_proj.weight", ("hidden", "chunk_ffn"),
            stack("ffn_down_chexps.weight", "chunks"), experts="chunks"),
    ),
    expert_order=(*DOWN_GATE_UP, "ffn_down_chexps", "ffn_gate_chexps", "ffn_up_chexps"),
    drops=(r".*\.expert_bias",),  # the model does not use it
)  # fmt: skip

FAMILY = (
    QWEN2, KORMO, QWEN2_VL, QWEN3, MAINCODER, QWEN2_MOE, QWEN3_MOE, RND1, LLADA_MOE, GROVE_MOE,
)  # fmt: skip
