"""Gemma 1, 2 and 3, dense: norms are kept as their distance from one. llama.cpp:
`conversion/gemma.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMS,
    OPTIONAL_HEAD,
    RMS_NORM,
    TEXT_KEYS,
    L,
    attention,
    gated_mlp,
    optional_key,
    qk_norms,
    shifted,
    text_keys,
)
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.rope import rope_of
from quantkit.architectures.rules import Architecture, Config, Expect, Key, vector
from quantkit.loading.patterns import WIDE_SCALE

_NORMS = shifted(
    EMBEDDINGS[1],
    vector(f"{L}.input_layernorm", "attn_norm"),
    vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
    vector(f"{L}.pre_feedforward_layernorm", "ffn_norm"),
    vector(f"{L}.post_feedforward_layernorm", "post_ffw_norm"),
)


def _scale(arch: str) -> Expect:
    """What llama.cpp's attention is scaled by the root of: the channels of a head, but for the 27B,
    which it knows by the number of its layers."""

    def by(config: Config) -> tuple[int]:
        if config.layers != WIDE_SCALE.get(arch):
            return (config.head_dim,)
        return (config.one("hidden_size") // config.one("num_attention_heads"),)

    return Expect("query_pre_attn_scalar", by)


GEMMA2 = Architecture(
    hf_names=("Gemma2ForCausalLM",),
    gguf_arch="gemma2",
    keys=text_keys("context_length", "embedding_length", "block_count", "feed_forward_length",
                   "head_count", "head_count_kv", "layer_norm_rms_epsilon", "key_length",
                   "value_length"),
    late_keys=(
        Key("{arch}.attn_logit_softcapping", "attn_logit_softcapping", "FLOAT32"),
        Key("{arch}.final_logit_softcapping", "final_logit_softcapping", "FLOAT32"),
        Key("{arch}.attention.sliding_window", "sliding_window"),
    ),
    expects=(RMS_NORM, Expect("hidden_activation", ("gelu_pytorch_tanh",))),
    assumes=(_scale("gemma2"),),
    dims=DIMS,
    maps=(EMBEDDINGS[0], *_NORMS, *attention(), *gated_mlp()),
    drops=(r"lm_head\.weight",),  # its runtime has no place for one
    unread=(r"lm_head\.weight",),
    defaults={
        "rms_norm_eps": 1e-6, "head_dim": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "sliding_window": 4096, "tie_word_embeddings": True,
    },
    fuses=("qkv",),
)  # fmt: skip


GEMMA = replace(
    GEMMA2,
    hf_names=("GemmaForCausalLM",),
    gguf_arch="gemma",
    late_keys=(),
    assumes=(),
    maps=(EMBEDDINGS[0], *shifted(EMBEDDINGS[1], *NORMS), *attention(), *gated_mlp()),
    defaults={"rms_norm_eps": 1e-6, "head_dim": 256, "tie_word_embeddings": True},
)


# of the layers with full attention, also where their rotary settings leave it out
FULL_BASE = Key("{arch}.rope.freq_base", lambda c: rope_of(c).get("rope_theta", 1e6), "FLOAT32")


def _window(config: Config) -> int | None:
    if config.values.get("sliding_window_pattern") == 1:
        return None
    n: int = config.get("sliding_window")
    return n


GEMMA3 = replace(
    GEMMA2,
    hf_names=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf_arch="gemma3",
    keys=TEXT_KEYS,
    late_keys=(
        FULL_BASE,
        Key("{arch}.final_logit_softcapping", "final_logit_softcapping", "FLOAT32", default=None),
        Key("{arch}.attention.sliding_window", _window),
    ),
    expects=(*GEMMA2.expects, Expect("attn_logit_softcapping", (None,))),
    assumes=(_scale("gemma3"), Expect("use_bidirectional_attention", (False,))),
    maps=(
        EMBEDDINGS[0], OPTIONAL_HEAD, *_NORMS, *attention(), *shifted(*qk_norms()), *gated_mlp(),
    ),
    drops=(),
    unread=(),
    # what transformers assumes: multimodal releases leave most of it out
    defaults={
        "rms_norm_eps": 1e-6, "head_dim": 256, "rope_local_base_freq": 10000.0,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
        "max_position_embeddings": 131072, "sliding_window": 4096, "tie_word_embeddings": True,
    },
)  # fmt: skip

GEMMA_EMBEDDING = replace(
    GEMMA3,
    hf_names=("Gemma3TextModel",),
    gguf_arch="gemma-embedding",
    assumes=(_scale("gemma-embedding"),),
    late_keys=(
        *GEMMA3.late_keys[:2],
        Key("{arch}.attention.sliding_window", "sliding_window"),
        *(optional_key(f"dense_{n}_feat_{way}", f"dense_{n}_feat_{way}")
          for n in (2, 3) for way in ("in", "out")),
        *POOLING_KEYS,
    ),
)  # fmt: skip

FAMILY = (GEMMA, GEMMA2, GEMMA3, GEMMA_EMBEDDING)
