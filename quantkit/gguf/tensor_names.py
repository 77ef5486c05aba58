"""What a tensor does, and what follows from it alone.

A role is the middle of a GGUF tensor name: `blk.7.ffn_gate_exps.weight` has the role
`ffn_gate_exps`, block 7, suffix `.weight`. Names are those of `gguf.TENSOR_NAMES`.
"""

from __future__ import annotations

import re
from math import inf, nan
from typing import NamedTuple

# numbers of more digits count nothing: such a name is a role
_NAME = re.compile(
    r"(?:blk\.(?P<bid>[0-9]{1,6})\.)?(?P<role>.*?)(?P<suffix>\.weight|\.bias)?", re.DOTALL
)

# 2-D, and float32 in every file all the same (llama.cpp `conversion/base.py`, prepare_tensors)
ALWAYS_F32 = frozenset({
    "ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d", "ssm_conv1d_q", "ssm_conv1d_k",
    "ssm_conv1d_v", "shortconv.conv", "position_embd", "token_types", "indexer.proj",
    "indexer.q_proj", "indexer.k_proj",
    "altup_correct_coef", "altup_predict_coef",
    "time_mix_first", "time_mix_w1", "time_mix_w2", "time_mix_decay_w1", "time_mix_decay_w2",
    "time_mix_lerp_fused",
})  # fmt: skip


class Name(NamedTuple):
    """A GGUF tensor name taken apart. `bid` is None outside the blocks; `suffix` may be empty."""

    role: str
    bid: int | None
    suffix: str

    def __str__(self) -> str:
        block = "" if self.bid is None else f"blk.{self.bid}."
        return f"{block}{self.role}{self.suffix}"


def parse(name: str) -> Name:
    """Take a GGUF tensor name apart."""
    m = _NAME.fullmatch(name)
    assert m is not None  # the pattern takes every string
    bid = m["bid"]
    return Name(m["role"], None if bid is None else int(bid), m["suffix"] or "")


# what names of encoders begin with: images, sound, and what leads from there to the text
ENCODERS = ("v.", "a.", "mm.")


def in_block(role: str, bid: int | None) -> str:
    """The name of the tensor of a role, suffix and all, in block `bid`, if it is in one. `enc.` and
    `dec.` before a role stay before the block. A role of an encoder of images or sound is a whole
    name, which says itself where the number goes: `v.blk.{bid}.ln1`."""
    if bid is None or role.startswith(ENCODERS):
        return role.format(bid=bid)
    half = role[:4] if role.startswith(("enc.", "dec.")) else ""
    return f"{half}blk.{bid}.{role.removeprefix(half)}"


def no_bound(name: str) -> float:
    """What a bound of what goes into a matrix of an encoder, or comes out, is where there is none:
    infinity, negative for the least. NaN for the tensors that bound nothing."""
    if name.endswith((".input_max", ".output_max")):
        return inf
    return -inf if name.endswith((".input_min", ".output_min")) else nan


def stays_f32(name: Name, n_dims: int) -> bool:
    """Whether llama.cpp's converter stores the tensor in float32 whatever the file's type."""
    return (
        n_dims <= 1
        or name.role.endswith("_norm")
        or name.suffix != ".weight"
        or name.role in ALWAYS_F32
    )


PARTS = ("experts", "attention", "feed-forward", "embeddings", "the rest")


def part(name: Name) -> str:
    """Which of PARTS a tensor's bytes are counted with. Shared experts are feed-forward."""
    if "_exps" in name.role:
        return "experts"
    if "token_embd" in name.role or name.role == "output":
        return "embeddings"
    if name.role.startswith(("attn", "ssm", "shortconv")):
        return "attention"
    if name.role.startswith(("ffn_gate_inp", "ffn_norm")) or not name.role.startswith("ffn"):
        return "the rest"
    return "feed-forward"
