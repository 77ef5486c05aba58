"""Llama, Mistral and Mixtral: one GGUF architecture (`llama`), dense or with experts; and Arcee,
SmolLM3, Nanbeige and Apertus, which are made of the same parts.

llama.cpp: `conversion/llama.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    GATE_DOWN_UP,
    NORMS,
    ROPE_DIMENSION,
    SILU,
    TEXT_KEYS,
    VOCAB_SIZE,
    W123,
    L,
    attention,
    expert_dims,
    experts,
    gated_mlp,
    plain_mlp,
    qk_norms,
    router,
    with_head_dim,
)
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.rope import rope_of
from quantkit.architectures.rules import Architecture, Config, Expect, Key, reading, vector
from quantkit.errors import ConfigError

OLD = f"{L}.block_sparse_moe"


def rotated_head(config: Config) -> int:
    """Channels of a head whose halves are interleaved. Raises ConfigError if they are odd."""
    value = config.head_dim
    if value < 2 or value % 2:
        raise ConfigError(f"{config.where}: heads of {value} channels cannot be rotated")
    return value


def kv_heads_if_said(keys: tuple[Key, ...]) -> tuple[Key, ...]:
    """`keys` without a number of key-value heads where config.json says none."""
    return reading(keys, ".head_count_kv", config="num_key_value_heads", default=None)


def rope_freqs(config: Config) -> Any:
    """Llama 3.1's frequency factors, float32 `[head_dim / 2]`, or None for other models.

    llama.cpp's `generate_extra_tensors`, with torch's float32 steps: a number divided by a tensor
    is the tensor's reciprocal times the number.
    """
    import numpy as np

    rope = rope_of(config)
    if str(rope.get("rope_type")).lower() != "llama3":
        return None
    f32, one = np.float32, np.float32(1)
    dim, base = config.head_dim, rope.get("rope_theta", 10000.0)
    factor = f32(rope.get("factor", 8.0))
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    length = rope.get("original_max_position_embeddings", 8192)

    with np.errstate(all="ignore"):
        exponents = np.arange(0, dim, 2, dtype=f32) / f32(dim)
        freqs = one / np.power(float(base), exponents.astype(np.float64)).astype(f32)
        wavelengths = (one / freqs) * f32(2 * math.pi)
        smooth = ((one / wavelengths) * f32(length) - f32(low)) / f32(high - low)
        blended = one / ((one - smooth) / factor + smooth)
        factors = np.where(
            wavelengths < length / high, one, np.where(wavelengths > length / low, factor, blended)
        )
    return factors


def _draft(config: Config) -> Architecture | None:
    """EAGLE-3's drafts often go by the name of a model."""
    from quantkit.architectures.eagle3 import EAGLE3

    plain = config.find("architectures") in [[name] for name in LLAMA.hf_names]
    drafts = config.find("draft_vocab_size") is not None and config.layers == 1
    return EAGLE3 if plain and drafts else None


ATTENTION = (*EMBEDDINGS, *NORMS, *attention(rotated=True, bias=None, out_bias=None))

LLAMA = Architecture(
    # the text parts of SmolVLM, Pixtral, LLaVA and Voxtral too
    hf_names=(
        "LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "IQuestCoderForCausalLM",
        "VLlama3ForCausalLM", "SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration",
        "LlavaForConditionalGeneration", "VoxtralForConditionalGeneration", "LlamaModel",
    ),
    gguf_arch="llama",
    keys=with_head_dim(TEXT_KEYS, "llama", "code_llama", "mistral"),
    late_keys=(VOCAB_SIZE, ROPE_DIMENSION),
    expects=(SILU,),
    dims={**DIMS, "head": rotated_head},
    maps=(*ATTENTION, *gated_mlp(bias=None)),
    renames=((r"text_model\.", ""),),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "num_attention_heads": 32},
    computed={"rope_freqs.weight": rope_freqs},
    fuses=("qkv",),
    variant=_draft,
)  # fmt: skip

# text parts under names of their own
SARASHINA2_VL = replace(
    LLAMA,
    hf_names=("Sarashina2VisionForCausalLM",),
    renames=((r"^norm\.", "visual.norm."), (r"^llm\.", "")),
)
JANUS = replace(
    LLAMA,
    hf_names=("JanusForConditionalGeneration",),
    drops=(r"model\.(vqmodel|aligner|generation_\w+)\..*",),
)

# an encoder, as embedding models are
LLAMA_EMBED = replace(LLAMA, hf_names=("LlamaBidirectionalModel",), gguf_arch="llama-embed")

ARCEE = replace(
    LLAMA,
    hf_names=("ArceeForCausalLM",),
    gguf_arch="arcee",
    keys=with_head_dim(TEXT_KEYS),
    late_keys=(*LLAMA.late_keys, *POOLING_KEYS),
    expects=(Expect("hidden_act", ("relu2",)),),
    maps=(*ATTENTION, *plain_mlp()),
    defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
)


def _rotating(config: Config) -> int:
    """llama.cpp rotates in all but every fourth layer. Raises ConfigError if the model does not."""
    found = config.find("no_rope_layers")
    if found is not None and found != [int((bid + 1) % 4 != 0) for bid in range(config.layers)]:
        raise ConfigError(f"{config.where}: 'no_rope_layers' must be 0 in every fourth layer only")
    return config.head_dim


SMOLLM3 = replace(
    LLAMA,
    hf_names=("SmolLM3ForCausalLM",),
    gguf_arch="smollm3",
    keys=TEXT_KEYS,
    late_keys=(VOCAB_SIZE, replace(ROPE_DIMENSION, config=_rotating)),
    expects=(SILU, Expect("no_rope_layer_interval", (4,)), Expect("mlp_bias", (False,))),
    maps=(*ATTENTION, *gated_mlp()),
    defaults={"rope_theta": 2e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
)

# the layers are run through several times
NANBEIGE = replace(
    LLAMA,
    hf_names=("NanbeigeForCausalLM",),
    gguf_arch="nanbeige",
    keys=TEXT_KEYS,
    late_keys=(
        *LLAMA.late_keys,
        Key("{arch}.num_loops", lambda c: c.get("num_loops", default=1) or 1),
        Key("{arch}.skip_loop_final_norm", "skip_loop_final_norm", "BOOL", default=False),
    ),
    maps=(*EMBEDDINGS, *NORMS, *attention(rotated=True), *gated_mlp()),
    renames=(),
    fuses=(),
)

ACTIVATION = f"{L}.mlp.act_fn"

# the numbers of the activation function are keys
APERTUS = replace(
    LLAMA,
    hf_names=("ApertusForCausalLM",),
    gguf_arch="apertus",
    keys=TEXT_KEYS,
    first_keys=tuple(
        Key(f"xielu.{name}", f"xielu_{name}", "FLOAT32")
        for name in ("alpha_n", "alpha_p", "beta", "eps")
    ),
    expects=(
        Expect("hidden_act", ("xielu",)), Expect("qk_norm", (True,)), Expect("post_norm", (False,)),
    ),
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.attention_layernorm", "attn_norm"),
        vector(f"{L}.feedforward_layernorm", "ffn_norm"),
        *attention(bias=None, out_bias=None),
        *qk_norms(),
        *plain_mlp(bias=None),
    ),
    scalars={
        f"xielu_{name}": f"{ACTIVATION}.{name}" for name in ("alpha_n", "alpha_p", "beta", "eps")
    },
    defaults={},
)  # fmt: skip

MIXTRAL = replace(
    LLAMA,
    hf_names=("MixtralForCausalLM",),
    keys=TEXT_KEYS,
    dims={**LLAMA.dims, **expert_dims("intermediate_size")},
    maps=(
        *ATTENTION,
        router(f"{OLD}.gate"),
        *experts(f"{OLD}.experts", W123, fused=f"{L}.mlp.experts"),
        # as transformers 5, and mergekit with it, keep it
        router(f"{L}.mlp.gate", like=f"{OLD}.gate.weight"),
    ),
    expects=(SILU, Expect("num_experts_per_tok", required=True)),
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    expert_order=GATE_DOWN_UP,
)

FAMILY = (
    LLAMA,
    SARASHINA2_VL,
    JANUS,
    LLAMA_EMBED,
    MIXTRAL,
    ARCEE,
    SMOLLM3,
    NANBEIGE,
    APERTUS,
)
