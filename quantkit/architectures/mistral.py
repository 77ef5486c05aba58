"""Mistral 3 and Ministral 3, and the format of Mistral's own releases (`params.json`).

llama.cpp: `conversion/mistral3.py`, `conversion/mistral.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    ROPE_DIMENSION,
    TEXT_KEYS,
    W123,
    gated_mlp,
    no_key,
    with_head_dim,
)
from quantkit.architectures.llama import LLAMA
from quantkit.architectures.mistral4 import MISTRAL4, rope_of_mistral4
from quantkit.architectures.rope import rope_of
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    reading,
    vector,
    whole,
)
from quantkit.errors import ConfigError


def _ministral(name: str) -> Any:
    """A number of Ministral 3's rotary settings; none for other models."""

    def read(config: Config) -> Any:
        if config.values.get("model_type") != "ministral3":
            return None
        rope = rope_of(config)
        if rope.get("rope_type") != "yarn" or name not in rope:
            raise ConfigError(
                f"{config.where}: Ministral 3 needs rope_parameters of type yarn, with '{name}'"
            )
        return rope[name]

    return read


def _by_text_part(config: Config) -> Architecture | None:
    """Mistral 4 has the name of Mistral 3. Raises ConfigError for a text part that is neither."""
    kind = config.find("model_type")
    if kind not in (None, "mistral", "ministral", "mistral3", "ministral3", "mistral4"):
        name = "Mistral3ForConditionalGeneration"
        raise ConfigError(f"{config.where}: {name} around {kind!r} is not supported")
    return MISTRAL4 if kind == "mistral4" else None


MISTRAL3 = replace(
    LLAMA,
    hf_names=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
    variant=_by_text_part,
    gguf_arch="mistral3",
    keys=with_head_dim(TEXT_KEYS),
    late_keys=(
        *LLAMA.late_keys,
        Key("{arch}.rope.scaling.yarn_log_multiplier", _ministral("mscale_all_dim"), "FLOAT32"),
        Key("{arch}.attention.temperature_scale", _ministral("llama_4_scaling_beta"), "FLOAT32"),
    ),
    # the whole model's tie_word_embeddings and that of its text part contradict each other
    maps=tuple(
        replace(m, optional=True) if m.source == "lm_head.weight" else m for m in LLAMA.maps
    ),
    renames=(),
    defaults={"rope_theta": 1e9, "rms_norm_eps": 1e-5, "num_attention_heads": 32},
    aliases={"rope_parameters": rope_of_mistral4},
)

A, N = "layers.{bid}.attention", "layers.{bid}"


def _scaled(name: str) -> Any:
    """A number of the `yarn` table; none where there is no such table."""
    return lambda config: config.find(f"yarn.{name}")


def _with_temperature(config: Config) -> Architecture | None:
    """llama.cpp keeps older models under the name of Llama."""
    if config.find("moe") is not None:
        raise ConfigError(f"{config.where}: Mistral's own format is read for dense models only")
    known = config.find("llama_4_scaling") is not None
    return replace(MISTRAL_NATIVE, gguf_arch="mistral3", variant=lambda c: None) if known else None


MISTRAL_NATIVE = replace(
    LLAMA,
    hf_names=("params.json",),
    keys=reading(no_key(TEXT_KEYS, ".original_context_length"), ".context_length",
                 config=("max_position_embeddings", "max_seq_len")),
    late_keys=(
        ROPE_DIMENSION,
        Key("{arch}.rope.scaling.type",
            lambda c: "yarn" if c.find("yarn") is not None else None, "STRING"),
        Key("{arch}.rope.scaling.factor", _scaled("factor"), "FLOAT32"),
        Key("{arch}.rope.scaling.yarn_beta_fast", _scaled("beta"), "FLOAT32"),
        Key("{arch}.rope.scaling.yarn_beta_slow", _scaled("alpha"), "FLOAT32"),
        Key("{arch}.rope.scaling.yarn_log_multiplier",
            lambda c: None if c.find("yarn") is None else float(not c.find("yarn.apply_scale")),
            "FLOAT32"),
        Key("{arch}.rope.scaling.original_context_length",
            _scaled("original_max_position_embeddings")),
        Key("{arch}.attention.temperature_scale", lambda c: c.find("llama_4_scaling.beta"),
            "FLOAT32"),
    ),
    expects=(Expect("activation", ("silu",)),),
    maps=(
        Map("tok_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("norm", "output_norm"),
        Map("output.weight", ("vocab", "hidden"), whole("output.weight"), optional=True),
        vector(f"{N}.attention_norm", "attn_norm"),
        vector(f"{N}.ffn_norm", "ffn_norm"),
        *linear(f"{A}.wq", ("q", "hidden"), "attn_q", bias=False),
        *linear(f"{A}.wk", ("kv", "hidden"), "attn_k", bias=False),
        *linear(f"{A}.wv", ("kv", "hidden"), "attn_v", bias=False),
        *linear(f"{A}.wo", ("hidden", "q"), "attn_output", bias=False),
        *gated_mlp(f"{N}.feed_forward", names=W123),
    ),
    aliases={
        "hidden_size": "dim", "num_hidden_layers": "n_layers", "intermediate_size": "hidden_dim",
        "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads",
        "rms_norm_eps": "norm_eps", "tie_word_embeddings": "tied_embeddings",
    },
    renames=(),
    defaults={},
    computed={},
    variant=_with_temperature,
)  # fmt: skip

FAMILY = (MISTRAL3, MISTRAL_NATIVE)
