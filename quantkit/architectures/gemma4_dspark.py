"""DSpark's draft for Gemma 4, of that model's layers. llama.cpp: `conversion/gemma.py`,
Gemma4DSparkModel.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import EMBEDDINGS, L, attention, gated_mlp, qk_norms
from quantkit.architectures.dflash import DFLASH
from quantkit.architectures.drafts import learned_of_draft
from quantkit.architectures.dspark import DSPARK, MARKOV
from quantkit.architectures.gemma4 import rotating
from quantkit.architectures.gemma4_layers import of_full_layers
from quantkit.architectures.rope import rope_of
from quantkit.architectures.rules import Config, Expect, Key, Map, vector, whole
from quantkit.errors import ConfigError

ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}


def _full_layers(config: Config) -> int:
    """Channels of a head, where every layer sees all. Raises ConfigError."""
    types = config.find("layer_types")
    if types != ["full_attention"] * config.layers:
        raise ConfigError(f"{config.where}: 'layer_types' must be full attention in every layer")
    return _of_every("global_head_dim", "head_dim")(config)


def _of_every(name: str, inner: str) -> Callable[[Config], int]:
    """A size of every layer: `name`, or what transformers 5.23 writes in its place. Raises
    ConfigError."""

    def read(config: Config) -> int:
        found = of_full_layers(config, name, inner)
        saved = config.find("per_layer_config") is not None
        return found or config.one(inner if saved else name)

    return read


def _rope_factors(config: Config) -> Any:
    """One for the channels that are rotated, and 1e30, which stops the others, float32
    `[head / 2]`; None where all are."""
    rope, n = rope_of(config), _full_layers(config)
    if rope.get("rope_type") == "default":
        return None
    share = rope.get("partial_rotary_factor", 0.25)
    rotated = int(n * share / 2)
    if rope.get("rope_type") != "proportional" or n * share != 2 * rotated or not 0 < share <= 1:
        raise ConfigError(f"{config.where}: rotary settings that llama.cpp does not run")
    return rotating(rotated, n // 2)


_kv_heads = _of_every("num_global_key_value_heads", "num_key_value_heads")


GEMMA4_DSPARK = replace(
    DSPARK,
    hf_names=("Gemma4DSparkModel",),
    keys=tuple(
        key for key in DFLASH.keys if not re.search(r"\.rope\.(scaling\.|freq_base_swa)", key.name)
    ),
    late_keys=(
        *DFLASH.late_keys,
        Key("{arch}.attention.head_count_kv", _kv_heads),
        Key("{arch}.attention.key_length", _full_layers),
        Key("{arch}.attention.value_length", _full_layers),
        Key("{arch}.rope.dimension_count", _full_layers),
        Key("{arch}.embedding_scale", lambda c: c.one("hidden_size") ** 0.5, "FLOAT32"),
        Key("{arch}.attention.scale", lambda c: 1.0, "FLOAT32"),
        Key("{arch}.hidden_activation", lambda c: "gelu_pytorch_tanh", "STRING"),
        Key("{arch}.sample_from_anchor", "sample_from_anchor", "BOOL", default=True),
        Key("{arch}.has_confidence_head", "sure", "BOOL"),
    ),
    expects=(
        Expect("attention_k_eq_v", (True,), required=True), Expect("attention_bias", (False,)),
        Expect("hidden_activation", ("gelu_pytorch_tanh",)), Expect("enable_moe_block", (False,)),
        Expect("markov_head_type", ("vanilla",)),
        Expect("dflash_config.markov_head_type", ("vanilla",)),
        Expect("final_logit_softcapping", (0, 0.0)),
        Expect("dflash_config.final_logit_softcapping", (0, 0.0)),
    ),
    dims={
        **DSPARK.dims,
        "head": _full_layers,
        "q": lambda c: c.get("num_attention_heads") * _full_layers(c),
        "kv": lambda c: _kv_heads(c) * _full_layers(c),
    },
    maps=(
        replace(EMBEDDINGS[0], optional=True),
        *EMBEDDINGS[1:],
        Map("model.fc.weight", ("hidden", "seen"), whole("fc.weight")),
        vector("model.hidden_norm", "enc.output_norm"),
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
        vector(f"{L}.pre_feedforward_layernorm", "ffn_norm"),
        vector(f"{L}.post_feedforward_layernorm", "post_ffw_norm"),
        Map(f"{L}.layer_scalar", ("one",), whole("layer_output_scale.weight")),
        *(m for m in attention() if "v_proj" not in m.source),
        *qk_norms(),
        *gated_mlp(),
        *(m for m in DSPARK.maps if m.source.startswith((MARKOV, "model.confidence_head"))),
    ),
    layers={},
    renames=(*DFLASH.renames, (r"\bconfidence_proj\.", "confidence_head.proj."),
             (r"\.layer_scalar\.weight$", ".layer_scalar")),
    aliases={
        # as its class has it, where config.json has none
        "rope_parameters": lambda c: c.find("rope_parameters") or {"full_attention": ROPE},
    },
    drops=DFLASH.drops,
    learned=learned_of_draft,
    added=lambda config: {},
    computed={"rope_freqs.weight": _rope_factors},
)  # fmt: skip

FAMILY = (GEMMA4_DSPARK,)
