"""HRM-Text: two stacks of layers, a low and a high one, which are run in cycles. llama.cpp:
`conversion/hrm_text.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from quantkit.architectures.common import DIMS, EMBEDDINGS, TEXT_KEYS, L, attention, gated_mlp
from quantkit.architectures.llama import kv_heads_if_said
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    Shape,
    halves,
    parts,
    whole,
)
from quantkit.errors import ConfigError

A = f"{L}.self_attn"
RENAMES = ((r"\.attn\.", ".self_attn."), (r"\bL_module\.layers\.", "layers."))


def _stack(config: Config) -> int:
    """Layers of each stack: of older configs, all that they say there are."""
    return config.one("num_layers_per_stack", "num_hidden_layers")


def _runs(config: Config) -> int:
    """Layers that are run, of which each has a place in the cache. Raises ConfigError."""
    high, low = config.one("H_cycles"), config.one("L_cycles")
    if not high or not low:
        raise ConfigError(f"{config.where}: {high} high and {low} low cycles; a model has some")
    return _stack(config) * high * (low + 1)


def _numbered(config: Config) -> Architecture:
    """Layers of the high stack follow those of the low one."""
    n = _stack(config)
    high = ((rf"\bH_module\.layers\.{i}\.", f"layers.{n + i}.") for i in range(n))
    return replace(HRM_TEXT, renames=(*RENAMES, *high), variant=lambda c: None)


def _spelling(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """As transformers reads them, or as they are released: joined."""
    if not any(name.endswith("gqkv_proj.weight") for name in shapes):
        return None
    kept = (m for m in HRM_TEXT.maps if not re.search(r"\.(q|k|v|gate|up)_proj\.", m.source))
    return replace(_numbered(config), maps=(*kept, *JOINED))


def _scale(config: Config) -> float:
    x: float = config.get("embedding_scale", kind="FLOAT32", default=0.0)
    return x or 1.0 / config.get("initializer_range", kind="FLOAT32", default=0.02)


JOINED = (
    Map(f"{A}.gqkv_proj.weight", ("4q", "hidden"),
        parts(*((f"attn_{role}.weight", "q") for role in ("gate", "q", "k", "v")))),
    Map(f"{L}.mlp.gate_up_proj.weight", ("2ffn", "hidden"),
        halves("ffn_gate.weight", "ffn_up.weight")),
)  # fmt: skip
HRM_TEXT = Architecture(
    hf_names=("HrmTextForCausalLM",),
    gguf_arch="hrm_text",
    keys=(Key("{arch}.block_count", _runs), *kv_heads_if_said(TEXT_KEYS[1:])),
    late_keys=(
        Key("{arch}.rope.dimension_count", lambda c: c.head_dim),
        Key("{arch}.embedding_scale", _scale, "FLOAT32"),
        Key("{arch}.hrm.layers_per_stack", _stack),
        Key("{arch}.hrm.h_cycles", "H_cycles"),
        Key("{arch}.hrm.l_cycles", "L_cycles"),
        Key("{arch}.hrm.prefix_lm", "prefix_lm", "BOOL", default=False),
    ),
    expects=(Expect("hidden_act", ("silu",)), Expect("attention_bias", (False,)),
             Expect("mlp_bias", (False,))),
    # llama.cpp sees what was said before, also in a prompt
    assumes=(Expect("prefix_lm", (False,)),),
    aliases={"num_layers_per_stack": _stack, "num_hidden_layers": lambda c: 2 * _stack(c)},
    dims={**DIMS, "4q": lambda c: 4 * c.get("num_attention_heads") * c.head_dim,
          "2ffn": lambda c: 2 * c.get("intermediate_size")},
    maps=(
        EMBEDDINGS[0],
        replace(EMBEDDINGS[2], optional=True),
        Map("model.z_L_init", ("hidden",), whole("hrm.z_l_init")),
        *attention(),
        Map(f"{A}.gate_proj.weight", ("q", "hidden"), whole("attn_gate.weight")),
        *gated_mlp(),
    ),
    variant=_numbered,
    respelled=_spelling,
)  # fmt: skip

FAMILY = (HRM_TEXT,)
