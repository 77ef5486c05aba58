"""LFM2 D1 Omni, which decides by a head of its own on an LFM2 that sees all of its text: layers as
they are in an encoder, behind those of the model, and a score. llama.cpp: `conversion/lfm2.py`
(D1OmniModel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantkit.architectures.common import DIMS, TEXT_KEYS, VOCAB_SIZE
from quantkit.architectures.decisions import (
    KINDS,
    SCORER,
    asks,
    decides,
    layer_of_head,
    temperatures,
)
from quantkit.architectures.lfm2 import LFM2
from quantkit.architectures.rules import Architecture, Config, Expect, Key
from quantkit.errors import ConfigError

TRUNK = "layers of the model"


def _trunk(config: Config) -> int:
    return config.one("text_config.num_hidden_layers")


def _head(config: Config) -> int:
    n = config.one("head_layers")
    if not 0 < n < 512:
        raise ConfigError(f"{config.where}: 'head_layers' is {n}")
    return n


def _attends(config: Config) -> list[bool]:
    """Whether each layer of the model attends. Raises ConfigError."""
    types = config.find("layer_types")
    if not isinstance(types, list) or len(types) != _trunk(config):
        raise ConfigError(
            f"{config.where}: 'layer_types' must name each of {_trunk(config)} layers"
        )
    return [kind != "conv" for kind in types]


def _kv(config: Config) -> list[int]:
    n, own = config.one("text_config.num_key_value_heads"), config.one("num_attention_heads")
    return [n if attends else 0 for attends in _attends(config)] + [own] * _head(config)


def _widths(config: Config) -> list[int]:
    """Two thirds of what config.json says, as LFM2 has it, and four times the channels."""
    share = config.get("block_ffn_dim_multiplier", kind="FLOAT32")
    multiple = config.one("block_multiple_of")
    n = int(share * int(2 * config.one("text_config.intermediate_size") / 3))
    ffn = -(-n // multiple) * multiple
    return [ffn] * _trunk(config) + [4 * config.one("hidden_size")] * _head(config)


def _kind(attends: bool) -> Callable[[Config, int], bool]:
    return lambda c, bid: bid < _trunk(c) and _attends(c)[bid] is attends


def _whole(config: Config) -> Architecture:
    """With the layers of its head, and its temperatures."""
    layers = (layer_of_head(at, _trunk(config) + at) for at in range(_head(config)))
    return replace(
        D1_OMNI,
        late_keys=(*D1_OMNI.late_keys, *temperatures(config, "temperatures")),
        maps=(*D1_OMNI.maps, *(m for layer in layers for m in layer)),
    )


D1_OMNI = replace(
    LFM2,
    hf_names=("D1OmniModel",),
    keys=TEXT_KEYS,
    late_keys=(
        VOCAB_SIZE,
        Key("{arch}.shortconv.l_cache", "conv_L_cache"),
        Key("{arch}.attention.layer_norm_epsilon", lambda c: 1e-5, "FLOAT32"),
        Key("{arch}.attention.causal", lambda c: False, "BOOL"),
        *decides("lfm2-d1-omni"),
        Key("{arch}.decision.block_count", _head),
    ),
    last_keys=(
        Key("tokenizer.ggml.add_bos_token", lambda c: False, "BOOL"),
        Key("tokenizer.ggml.token_type_count", lambda c: KINDS),
        *asks("lfm2-d1-omni"),
    ),
    moved=("tokenizer.ggml.add_bos_token",),
    expects=(
        *LFM2.expects,
        # what llama.cpp's server cuts texts to
        Expect("max_length", (16384,), required=True),
        Expect("image_text_length", (896,), required=True),
        Expect("audio_text_length", (15360,), required=True),
    ),
    aliases={
        "num_key_value_heads": _kv,
        "intermediate_size": _widths,
        "num_hidden_layers": lambda c: _trunk(c) + _head(c),
    },
    dims={
        **DIMS,
        "ffn": lambda c: _widths(c)[0],
        "kv_heads": lambda c: c.one("text_config.num_key_value_heads"),
        "kv": lambda c: c.one("text_config.num_key_value_heads") * c.head_dim,
        "3hidden": LFM2.dims["3hidden"],
        "4hidden": lambda c: 4 * c.one("hidden_size"),
        "kernel": LFM2.dims["kernel"],
        "kinds": lambda c: KINDS,
    },
    maps=(
        *(replace(m, layers=TRUNK if "{bid}" in m.source and not m.layers else m.layers)
          for m in LFM2.maps if m.source != "lm_head.weight"),
        *SCORER,
    ),
    layers={
        TRUNK: lambda c, bid: bid < _trunk(c),
        "attention": _kind(True),
        "convolution": _kind(False),
    },
    renames=(
        (r"^encoder\.", "model."), (r"^head\.head\.layers\.", "head.layers."),
        (r"\.in_proj_(weight|bias)$", r".in_proj.\1"), (r"^head\.(type_emb|scorer)\.", r"\1."),
    ),
    drops=(r"(vision|audio)\..*",),
    variant=_whole,
)  # fmt: skip

FAMILY = (D1_OMNI,)
