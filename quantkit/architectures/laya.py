"""Laya and Julia, which decide by a head of their own on a ModernBERT: layers as they are in an
encoder, behind those of the model, and a score. The model's config is in `encoder/`, its vocabulary
in `tokenizer/`. llama.cpp: `conversion/bert.py` (ModernBertDecisionModel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantkit.architectures.decisions import (
    KINDS,
    SCORER,
    asks_of,
    decides,
    layer_of_head,
    temperatures,
)
from quantkit.architectures.modern_bert import MODERN_BERT
from quantkit.architectures.rules import Architecture, Config, Key
from quantkit.errors import ConfigError

TRUNK = "layers of the model"
_NAMES = ("choice", "score", "noul")


def _trunk(config: Config) -> int:
    return config.layers - _head(config)


def _head(config: Config) -> int:
    n = config.one("decision.head_layers")
    if not 0 < n < 512:
        raise ConfigError(f"{config.where}: 'head_layers' of the head is {n}")
    return n


def _widths(config: Config) -> list[int]:
    head = _head(config)
    ffn = [config.one("intermediate_size")] * config.layers
    return ffn + [4 * config.one("hidden_size")] * head


def _prompt(config: Config) -> str:
    """With the tokens that the tokenizer names. Raises ConfigError."""
    julia = config.find("decision.architecture") == "JuliaDecisionModel"
    text = asks_of("julia" if julia else "laya")
    for name in ("cls_token", "sep_token", "mask_token"):
        token = config.find(f"tokenizer.{name}")
        if not isinstance(token, str):
            raise ConfigError(
                f"{config.where}: '{name}' of tokenizer/tokenizer_config.json is not a text"
            )
        text = text.replace(f"<{name}>", token)
    return text


def _by_kind(config: Config) -> tuple[Key, ...]:
    """What logits are divided by, for each kind of question that the list has. Raises
    ConfigError."""
    found = config.find("decision.temperature")
    if found is not None and not isinstance(found, list):
        raise ConfigError(f"{config.where}: 'temperature' of the head is not a list")

    def of(at: int) -> Callable[[Config], Any]:
        return lambda c: c.find("decision.temperature")[at]

    return tuple(
        Key(f"{{arch}}.decision.temperature.{name}", of(at), "FLOAT32")
        for at, name in enumerate(_NAMES[: len(found or ())])
    )


def _whole(config: Config) -> Architecture:
    """With the layers of its head, and its temperatures."""
    trunk, by_options = _trunk(config), "decision.temperature_by_options"
    more = _by_kind(config)
    if config.find(by_options) is not None:
        more += temperatures(config, by_options)
    layers = (layer_of_head(at, trunk + at) for at in range(_head(config)))
    return replace(
        LAYA,
        late_keys=(*LAYA.late_keys, *more),
        maps=(*LAYA.maps, *(m for layer in layers for m in layer)),
    )


LAYA = replace(
    MODERN_BERT,
    hf_names=("ModernBertDecisionModel",),
    late_keys=(
        *MODERN_BERT.late_keys,
        *decides("laya"),
        Key("{arch}.decision.block_count", _head),
        Key("{arch}.decision.max_head_tokens", "decision.head_max_len", default=256),
    ),
    last_keys=(
        Key("tokenizer.ggml.token_type_count", lambda c: KINDS),
        Key("tokenizer.chat_template.systemone", _prompt, "STRING"),
        Key("tokenizer.chat_templates", lambda c: ["systemone"], "STRINGS"),
    ),
    aliases={
        "intermediate_size": _widths,
        "num_hidden_layers": lambda c: c.layers + _head(c),
    },
    dims={
        **MODERN_BERT.dims,
        "ffn": lambda c: c.get("intermediate_size")[0],
        "2ffn": lambda c: 2 * c.get("intermediate_size")[0],
        "4hidden": lambda c: 4 * c.get("hidden_size"),
        "kinds": lambda c: KINDS,
        "one": lambda c: 1,
    },
    maps=(
        *(
            replace(m, layers=m.layers or TRUNK) if "{bid}" in m.source else m
            for m in MODERN_BERT.maps
            if m.layers != "head"
        ),
        *SCORER,
    ),
    layers={
        TRUNK: lambda c, bid: bid < _trunk(c),
        "normed": lambda c, bid: 0 < bid < _trunk(c),
    },
    renames=((r"^encoder\.", ""), (r"^model\.", ""), (r"\.in_proj_(weight|bias)$", r".in_proj.\1")),
    # what is trained beside the head, and not asked for an answer
    drops=(r"act_head\..*", r"temperature"),
    files={
        "decision": ("julia_config.json", "rl_agent_config.json"),
        "tokenizer": "tokenizer/tokenizer_config.json",
    },
    vocabulary="tokenizer",
    variant=_whole,
)

FAMILY = (LAYA,)
