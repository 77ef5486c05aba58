"""The text part of CogVLM: each layer has a second set of matrices, for what an image becomes.

llama.cpp: `conversion/cogvlm.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import DIMS, EMBEDDINGS, NORMS, TEXT_KEYS, L
from quantkit.architectures.llama import LLAMA, kv_heads_if_said
from quantkit.architectures.rules import Config, Expect, Map, whole
from quantkit.errors import ConfigError


def _expert(name: str, role: str) -> tuple[Map, ...]:
    """One of the two sets: its names, and what its roles begin with."""
    attention, mlp, ffn = f"{L}.self_attn.{name}_expert", f"{L}.mlp.{name}_mlp", role or "ffn_"
    return (
        Map(f"{attention}_query_key_value.weight", ("3q", "hidden"),
            whole(f"{role}attn_qkv.weight")),
        Map(f"{attention}_dense.weight", ("hidden", "q"), whole(f"{role}attn_output.weight")),
        Map(f"{mlp}.gate_proj.weight", ("ffn", "hidden"), whole(f"{ffn}gate.weight")),
        Map(f"{mlp}.up_proj.weight", ("ffn", "hidden"), whole(f"{ffn}up.weight")),
        Map(f"{mlp}.down_proj.weight", ("hidden", "ffn"), whole(f"{ffn}down.weight")),
    )  # fmt: skip


def _queries_keys_values(config: Config) -> int:
    """Rows of the joined matrix. Raises ConfigError."""
    n = config.one("num_attention_heads")
    for name in ("num_key_value_heads", "num_multi_query_heads"):
        if (found := config.one(name, default=n)) != n:
            raise ConfigError(f"{config.where}: '{name}' is {found}; llama.cpp runs {n} alone")
    return 3 * n * config.head_dim


COGVLM = replace(
    LLAMA,
    hf_names=("CogVLMForCausalLM",),
    gguf_arch="cogvlm",
    keys=kv_heads_if_said(TEXT_KEYS),
    dims={**DIMS, "3q": _queries_keys_values},
    maps=(*EMBEDDINGS, *NORMS, *_expert("language", ""), *_expert("vision", "vis_")),
    renames=(),
    assumes=(Expect("rope_theta", (10000.0,)),),
    defaults={},
    fuses=(),
)

FAMILY = (COGVLM,)
