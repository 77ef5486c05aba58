"""Granite with adapters that a token in the text turns on. llama.cpp: `conversion/granite.py`
(GraniteSwitchModel), `src/models/granite-switch.cpp`.

The adapters are tensors of their own: the halves of each, in a stack whose first is of zeros and
stands for none. The layer that finds the token has no weights, and is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quantkit.architectures.common import EMBEDDINGS, NORMS, L
from quantkit.architectures.granite import GRANITE, GRANITE_MOE_SHARED, SHARED
from quantkit.architectures.row_maps import Dims, Piece, RowMap, Shape, piece, rotary_order
from quantkit.architectures.rules import Architecture, Config, Expect, Key, Map, halves, whole

A = f"{L}.self_attn"
# what has adapters -> its rows and columns, and the heads by which rows are turned
_ADAPTED = {
    "attn_q": ("q", "hidden", "heads"), "attn_k": ("kv", "hidden", "kv_heads"),
    "attn_v": ("kv", "hidden", ""), "attn_output": ("hidden", "q", ""),
    "ffn_gate": ("ffn", "hidden", ""), "ffn_up": ("ffn", "hidden", ""),
    "ffn_down": ("hidden", "ffn", ""),
}  # fmt: skip
# the modules of the checkpoint, and what their halves become
_MODULES = {
    f"{A}.qkv_proj": ("attn_q", "attn_k", "attn_v"), f"{A}.o_proj": ("attn_output",),
    f"{SHARED}.input_linear": ("ffn_gate", "ffn_up"), f"{SHARED}.output_linear": ("ffn_down",),
}  # fmt: skip


def _qkv(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """Queries and keys change to the order of the original Llama; values stay."""
    out, at = [], 0
    for rows, heads in (("q", "heads"), ("kv", "kv_heads"), ("kv", "")):
        order = rotary_order(dims["head"]) if heads else ()
        out.append(piece("attn_qkv.weight", source, dims[rows], at, at, order=order))
        at += dims[rows]
    return out


def _stacked(role: str, rows: str, heads: str = "") -> RowMap:
    """The halves of all adapters, after one of zeros."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        shape = (dims["slots"], source[-2], source[-1])
        order = rotary_order(dims["head"]) if heads else ()
        count = dims["adapters"] * dims[rows]
        return (piece(role, shape, count, dims[rows], order=order),)

    return pieces


def _zero(role: str) -> RowMap:
    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(role, (dims["slots"], *source), source[0]),)

    return pieces


def _halves() -> tuple[Map, ...]:
    maps: list[Map] = []
    for module, roles in _MODULES.items():
        for i, role in enumerate(roles):
            ends = (f"_slices.{i}", f"_slices.{i}") if len(roles) > 1 else ("", "")
            rows, columns, heads = _ADAPTED[role]
            a, b = ("rank", columns), (rows, "rank")
            maps += (
                Map(f"{module}.lora_A{ends[0]}", ("adapters", "one", *a),
                    _stacked(f"{role}.lora_a", "rank")),
                Map(f"{module}.lora_B{ends[1]}", ("adapters", "one", *b),
                    _stacked(f"{role}.lora_b", rows, heads)),
                Map(f"zeros.{{bid}}.{role}.lora_a", a, _zero(f"{role}.lora_a")),
                Map(f"zeros.{{bid}}.{role}.lora_b", b, _zero(f"{role}.lora_b")),
            )  # fmt: skip
    return tuple(maps)


def _length(config: Config) -> int:
    own = config.one("projection_head_dim", "head_dim", default=0)
    return own or config.one("hidden_size") // config.one("num_attention_heads")


_SIZES: Mapping[str, Callable[[Config], int]] = {
    "hidden": lambda c: c.one("hidden_size"),
    "q": lambda c: _length(c) * c.one("num_attention_heads"),
    "kv": lambda c: _length(c) * c.one("num_key_value_heads"),
    "ffn": lambda c: c.one("shared_intermediate_size"),
    "rank": lambda c: c.one("max_lora_rank"),
}


def _zeros(config: Config) -> Mapping[str, Any]:
    import numpy as np

    return {
        f"zeros.{bid}.{role}.lora_{half}": np.broadcast_to(
            np.float32(0), [_SIZES[name](config) for name in shape]
        )
        for bid in range(config.layers)
        for role, (rows, columns, _) in _ADAPTED.items()
        for half, shape in (("a", ("rank", columns)), ("b", (rows, "rank")))
    }


GRANITE_SWITCH = Architecture(
    hf_names=("GraniteSwitchForCausalLM",),
    gguf_arch="graniteswitch",
    keys=GRANITE.keys,
    late_keys=(
        *GRANITE_MOE_SHARED.late_keys,
        Key("{arch}.expert_used_count", lambda c: 0),
        Key("{arch}.adapters.count", "num_adapters"),
        Key("{arch}.adapters.lora_rank", "max_lora_rank"),
        Key("{arch}.adapters.token_ids_activate", "adapter_token_ids", "INT32"),
        Key("{arch}.adapters.token_ids_substitute", "adapter_substitute_token_ids", "INT32"),
        Key("{arch}.adapters.router_gain", "control_token_gain", "FLOAT32", default=15.0),
    ),
    expects=(*GRANITE.expects, Expect("num_local_experts", (0,))),
    aliases={"num_hidden_layers": lambda c: c.one("num_hidden_layers") - 1},
    dims={
        **GRANITE.dims,
        **_SIZES,
        "head": _length,
        "2ffn": lambda c: 2 * _SIZES["ffn"](c),
        "qkv": lambda c: _SIZES["q"](c) + 2 * _SIZES["kv"](c),
        "adapters": lambda c: c.get("num_adapters"),
        "slots": lambda c: c.get("num_adapters") + 1,
    },
    maps=(
        *EMBEDDINGS[:2],
        *NORMS,
        Map(f"{A}.qkv_proj.base_layer.weight", ("qkv", "hidden"), _qkv),
        Map(f"{A}.o_proj.base_layer.weight", ("hidden", "q"), whole("attn_output.weight")),
        Map(f"{SHARED}.input_linear.base_layer.weight", ("2ffn", "hidden"),
            halves("ffn_gate.weight", "ffn_up.weight")),
        Map(f"{SHARED}.output_linear.base_layer.weight", ("hidden", "ffn"),
            whole("ffn_down.weight")),
        *_halves(),
    ),
    # the head is the embedding; what finds tokens is made again when the file is loaded
    drops=(r"lm_head\.weight", r"(model\.)?switch\..*",
           r"(.*\.)?(adapter_token_ids|control_to_substitute_lut)"),
    added=_zeros,
    rounds=frozenset(f"{role}.lora_{half}" for role in _ADAPTED for half in "ab"),
)  # fmt: skip

FAMILY = (GRANITE_SWITCH,)
