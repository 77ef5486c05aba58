"""Muse Glimmer's text part, and the assistant that drafts for it. llama.cpp:
`conversion/muse_glimmer.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMS,
    TEXT_KEYS,
    L,
    attention,
    gated_mlp,
    qk_norms,
    shifted,
    slides,
)
from quantkit.architectures.dflash import DFLASH
from quantkit.architectures.rope import rope_of
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    parts,
    vector,
    whole,
)
from quantkit.errors import ConfigError

A = f"{L}.self_attn"


def _norms(config: Config) -> dict[str, Any]:
    """The norms of queries, whose weights are the factor of the scores, and of keys."""
    import numpy as np

    factor = config.get("qk_scale_factor", kind="FLOAT32")
    n = config.get("head_dim")
    weights = np.concatenate((np.full(n, factor, np.float32), np.ones(n, np.float32)))
    name = A.replace("model.", "model.language_model.", 1) + ".q_norm.weight"
    return {name.format(bid=bid): weights for bid in range(config.layers)}


def _windows(config: Config) -> list[bool] | None:
    """Layers with a window, which are those that rotate. Raises ConfigError."""
    found, base = slides(config), rope_of(config).get("rope_theta") or 10000.0
    bases = config.find("layer_rope_theta")
    if bases is not None and bases != [base if window else 0 for window in found or []]:
        raise ConfigError(
            f"{config.where}: 'layer_rope_theta' must be {base} in layers with a window and 0 in "
            "the others: llama.cpp runs no other"
        )
    return found


MUSE_GLIMMER = Architecture(
    hf_names=("MuseGlimmerForConditionalGeneration",),
    gguf_arch="muse-glimmer",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.final_logit_softcapping", "final_logit_softcapping", "FLOAT32"),
        Key("{arch}.logit_scale", "output_multiplier", "FLOAT32"),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern", _windows, "BOOL"),
    ),
    expects=(
        Expect("hidden_activation", ("silu",)), Expect("layer_types", required=True),
        Expect("attention_bias", (False,)), Expect("post_norm_eps", (1e-8,)),
    ),
    dims={**DIMS, "2head": lambda c: 2 * c.head_dim},
    maps=(
        *EMBEDDINGS,
        *shifted(
            vector(f"{L}.input_layernorm", "attn_norm"),
            vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
            vector(f"{L}.pre_feedforward_layernorm", "ffn_norm"),
            vector(f"{L}.post_feedforward_layernorm", "post_ffw_norm"),
        ),
        *attention(rotated=True),
        Map(f"{A}.gate_proj.weight", ("q", "hidden"), whole("attn_gate.weight")),
        Map(f"{A}.q_norm.weight", ("2head",),
            parts(("attn_q_norm.weight", "head"), ("attn_k_norm.weight", "head")),
            like=f"{A}.q_norm.weight"),
        *gated_mlp(),
    ),
    added=_norms,
    fuses=("qkv",),
)  # fmt: skip

MUSE_ASSISTANT = replace(
    DFLASH,
    hf_names=("MuseGlimmerAssistantModel",),
    late_keys=(
        Key("{arch}.block_size", "block_size"),
        Key("{arch}.target_layers", lambda c: [n + 1 for n in c.get("target_layer_ids")], "INT32"),
        Key("{arch}.attention.sliding_window",
            lambda c: c.find("sliding_window") if c.find("layer_types") else None),
        Key("{arch}.attention.sliding_window_pattern",
            lambda c: slides(c) if c.find("sliding_window") and c.find("layer_types") else None,
            "BOOL"),
    ),
    last_keys=(Key("tokenizer.ggml.mask_token_id", "mask_token_id", default=None),),
    maps=(
        vector("encoder.output_norm_enc", "enc.output_norm"),
        Map("encoder.fc.weight", ("hidden", "seen"), whole("fc.weight")),
        EMBEDDINGS[1],
        *NORMS,
        *attention(),
        *qk_norms(),
        *gated_mlp(),
    ),
    layers={},
    renames=((r"^(?=(layers|norm)\.)", "model."),),
)  # fmt: skip

FAMILY = (MUSE_GLIMMER, MUSE_ASSISTANT)
