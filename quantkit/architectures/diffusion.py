"""Models that fill in masked tokens in any order, and so see what comes after: Dream and LLaDA.

llama.cpp: `conversion/dream.py`, `conversion/llada.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    ROPE_DIMENSION,
    VOCAB_SIZE,
    attention,
    gated_mlp,
    no_key,
)
from quantkit.architectures.llama import LLAMA, kv_heads_if_said
from quantkit.architectures.pooled import POOLING_KEYS
from quantkit.architectures.qwen import QWEN2
from quantkit.architectures.rules import Expect, Key, Map, vector, whole

BOTH_WAYS = Key("{arch}.attention.causal", lambda c: False, "BOOL")

DREAM = replace(
    QWEN2,
    hf_names=("DreamModel",),
    gguf_arch="dream",
    keys=kv_heads_if_said(QWEN2.keys),
    late_keys=(
        *POOLING_KEYS, BOTH_WAYS,
        Key("tokenizer.ggml.mask_token_id", "mask_token_id", default=None),
    ),
    expects=(*QWEN2.expects, Expect("use_sliding_window", (False,))),
    defaults={},
)  # fmt: skip

B = "model.transformer.blocks.{bid}"

LLADA = replace(
    LLAMA,
    hf_names=("LLaDAModelLM",),
    gguf_arch="llada",
    keys=kv_heads_if_said(no_key(LLAMA.keys, ".embedding_length", ".feed_forward_length")),
    late_keys=(
        *POOLING_KEYS, VOCAB_SIZE, ROPE_DIMENSION,
        Key("{arch}.context_length", "max_sequence_length", default=4096),
        Key("{arch}.embedding_length", "d_model"),
        Key("{arch}.feed_forward_length", "mlp_hidden_size"),
        BOTH_WAYS,
        Key("diffusion.shift_logits", lambda c: False, "BOOL"),
    ),
    expects=(
        Expect("activation_type", ("silu",)), Expect("block_type", ("llama",)),
        Expect("rope", (True,)), Expect("alibi", (False,)),
        Expect("attention_layer_norm", (False,)),
        Expect("scale_logits", (False,)), Expect("input_emb_norm", (False,)),
    ),
    aliases={
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads", "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length", "hidden_act": lambda c: "silu",
        "vocab_size": lambda c: c.get("embedding_size", "vocab_size"),
        "tie_word_embeddings": "weight_tying",
    },
    maps=(
        Map("model.transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("model.transformer.ln_f", "output_norm"),
        Map("model.transformer.ff_out.weight", ("vocab", "hidden"), whole("output.weight")),
        vector(f"{B}.attn_norm", "attn_norm"),
        vector(f"{B}.ff_norm", "ffn_norm"),
        *attention(B, rotated=True, bias=None, out="attn_out", out_bias=None),
        *gated_mlp(B, names=("ff_proj", "up_proj", "ff_out"), bias=None),
    ),
    renames=(),
    defaults={},
)  # fmt: skip

FAMILY = (DREAM, LLADA)
