"""EAGLE-3's drafts, which read layers of their model. llama.cpp: `conversion/llama.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    NORMS,
    ROPE_DIMENSION,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    gated_mlp,
)
from quantkit.architectures.drafts import SMALLER, draft_vocab, ids_of_target, learned_of_draft
from quantkit.architectures.llama import rope_freqs
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    rotary,
    vector,
    whole,
)


def _layers_of_target(config: Config) -> list[int]:
    said: list[int] | None = config.find("eagle_aux_hidden_state_layer_ids")
    n = config.one("target.num_hidden_layers")
    return said or [2, n // 2, n - 3]


def _width(config: Config) -> int:
    n: int = config.get("target_hidden_size", "target.hidden_size")
    return n


A = f"{L}.self_attn"
BOTH = ("2hidden",)  # the embedding of a token and what the model made of it
EAGLE3 = Architecture(
    hf_names=(
        "LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Speculator", "Eagle3DraftModel",
    ),
    gguf_arch="eagle3",
    first_keys=(
        Key("{arch}.target_layers", _layers_of_target, "INT32"),
        Key("{arch}.target_hidden_size", _width),
        Key("{arch}.norm_before_residual", "norm_before_residual", "BOOL", default=False),
        Key("{arch}.norm_before_fc", "norm_before_fc", "BOOL", default=False),
    ),
    keys=TEXT_KEYS,
    late_keys=(VOCAB_SIZE, ROPE_DIMENSION),
    expects=(Expect("num_hidden_layers", (1,)), Expect("draft_vocab_size", required=True)),
    dims={
        **DIMS,
        "draft": draft_vocab,
        "seen": lambda c: len(_layers_of_target(c)) * _width(c),
        "target_vocab": lambda c: c.one("target.vocab_size"),
    },
    maps=(
        SMALLER,
        Map("fc.weight", ("hidden", "seen"), whole("fc.weight")),
        Map("input_norm.weight", ("seen",), whole("enc.output_norm.weight"), "norm before"),
        Map("embed_tokens.weight", ("target_vocab", "hidden"), whole("token_embd.weight"),
            optional=True),
        vector("norm", "output_norm"),
        Map("lm_head.weight", ("draft", "hidden"), whole("output.weight"), optional=True),
        *NORMS,
        vector(f"{L}.hidden_norm", "attn_norm_2"),
        *linear(f"{A}.q_proj", ("q", *BOTH), "attn_q", rotary, "heads"),
        *linear(f"{A}.k_proj", ("kv", *BOTH), "attn_k", rotary, "kv_heads"),
        *linear(f"{A}.v_proj", ("kv", *BOTH), "attn_v", bias=False),
        *linear(f"{A}.o_proj", ("hidden", "q"), "attn_output", bias=False),
        *gated_mlp(),
    ),
    layers={
        "norm before": lambda c, bid: c.get("norm_before_fc", kind="BOOL", default=False),
        "smaller vocabulary": lambda c, bid: c.find("d2t") is not None,
    },
    renames=((r"^(midlayer|layers\.0)\.", "model.layers.0."),),
    drops=("d2t", "t2d"),
    learned=learned_of_draft,
    added=ids_of_target,
    drafts=True,
    computed={"rope_freqs.weight": rope_freqs},
)  # fmt: skip

FAMILY = (EAGLE3,)
