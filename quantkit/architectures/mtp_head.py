"""Heads that predict further tokens under names of their own, `mtp.*`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import L
from quantkit.architectures.rules import Map, vector, whole

MTP_LAYER = "mtp.layers."
MTP_AROUND = (
    Map("mtp.fc.weight", ("hidden", "2hidden"), whole("nextn.eh_proj.weight"), "mtp"),
    vector("mtp.pre_fc_norm_embedding", "nextn.enorm", layers="mtp"),
    vector("mtp.pre_fc_norm_hidden", "nextn.hnorm", layers="mtp"),
    vector("mtp.norm", "nextn.shared_head_norm", layers="mtp"),
)


def in_mtp_head(*maps: Map, base: str = "mtp.layers.{mid}") -> tuple[Map, ...]:
    """The rows of a layer, in the head that predicts further tokens."""
    return tuple(replace(m, source=m.source.replace(L, base)) for m in maps)


def shared_by_heads(*maps: Map) -> tuple[Map, ...]:
    """The rows of what several heads share and is kept once: each head has all of it."""
    return tuple(replace(m, source=in_each_head(m.source)) for m in maps)


def in_each_head(name: str) -> str:
    """What a tensor that heads share is called in each of them, with `{mid}`."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{{mid}}.{kind}"
