"""The text part of CogVLM: each layer has a second set of matrices, for what an image becomes.

llama.cpp: `conversion/cogvlm.py`.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import DIMS, EMBEDDINGS, NORMS, TEXT_KEYS, L
from quantkit.architectures.llama import LLAMA, kv_heads_if_said
from quantkit.architectures.rules import Expect, Map, whole


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


COGVLM = replace(
    LLAMA,
    hf_names=("CogVLMForCausalLM",),
    gguf_arch="cogvlm",
    keys=kv_heads_if_said(TEXT_KEYS),
    dims={**DIMS, "3q": lambda c: 3 * c.get("num_attention_heads") * c.head_dim},
    maps=(*EMBEDDINGS, *NORMS, *_expert("language", ""), *_expert("vision", "vis_")),
    renames=(),
    assumes=(Expect("rope_theta", (10000.0,)),),
    defaults={},
    fuses=(),
)

FAMILY = (COGVLM,)
