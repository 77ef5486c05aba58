"""Keys that every text model has, in the order of llama.cpp's converter
(`conversion/base.py`, TextModel.set_gguf_parameters)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantkit.errors import ConfigError
from quantkit.rules import Config, Key

_SCALING = {"linear": "linear", "yarn": "yarn", "su": "longrope", "longrope": "longrope"}
_UNSCALED = (None, "default", "llama3", "dynamic")


def _scaling_type(config: Config) -> str | None:
    kind = config.rope.get("rope_type")
    if kind in _UNSCALED:
        return None
    if kind not in _SCALING:
        raise ConfigError(f"{config.where}: rope_type {kind!r} is not one that llama.cpp runs")
    return _SCALING[kind]


def _scaled(name: str, *kinds: str) -> Callable[[Config], Any]:
    """A value of the rotary settings, for the scaling types that write it."""

    def read(config: Config) -> Any:
        if _scaling_type(config) not in kinds:
            return None
        if name in ("factor", "original_max_position_embeddings") and name not in config.rope:
            raise ConfigError(f"{config.where}: rope scaling needs '{name}'")
        return config.rope.get(name)

    return read


ROPE_KEYS = (
    Key("{arch}.rope.scaling.type", _scaling_type, "STRING"),
    Key("{arch}.rope.scaling.factor", _scaled("factor", "linear", "yarn"), "FLOAT32"),
    Key("{arch}.rope.scaling.original_context_length",
        _scaled("original_max_position_embeddings", "yarn")),
    Key("{arch}.rope.scaling.yarn_ext_factor", _scaled("extrapolation_factor", "yarn"), "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_attn_factor",
        lambda c: next((v for n in ("attention_factor", "attn_factor")
                        if (v := _scaled(n, "yarn")(c)) is not None), None), "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_beta_fast", _scaled("beta_fast", "yarn"), "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_beta_slow", _scaled("beta_slow", "yarn"), "FLOAT32"),
    Key("{arch}.rope.freq_base", lambda c: c.rope.get("rope_theta"), "FLOAT32"),
)  # fmt: skip

TEXT_KEYS = (
    Key("{arch}.block_count", "num_hidden_layers"),
    Key("{arch}.context_length", "max_position_embeddings", default=None),
    Key("{arch}.embedding_length", "hidden_size"),
    Key("{arch}.feed_forward_length", "intermediate_size"),
    Key("{arch}.attention.head_count", "num_attention_heads"),
    Key("{arch}.attention.head_count_kv", ("num_key_value_heads", "num_attention_heads")),
    *ROPE_KEYS,
    Key("{arch}.attention.layer_norm_rms_epsilon", "rms_norm_eps", "FLOAT32"),
    Key("{arch}.expert_count", ("num_local_experts", "num_experts"), default=None),
    Key("{arch}.expert_used_count", "num_experts_per_tok", default=None),
    Key("{arch}.attention.key_length", "head_dim", default=None),
    Key("{arch}.attention.value_length", "head_dim", default=None),
)
