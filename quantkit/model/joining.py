"""Tensors that become one, a part below another, where a person asks for it (`--fuse-qkv`,
`--fuse-gate-up-exps`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from quantkit.architectures.rules import Piece
from quantkit.errors import ConfigError
from quantkit.gguf.tensor_names import in_block

if TYPE_CHECKING:
    from quantkit.model.placement import Layout

# what is joined, and what it becomes
_JOINS = {
    "qkv": (("attn_q", "attn_k", "attn_v"), "attn_qkv"),
    "gate_up_exps": (("ffn_gate_exps", "ffn_up_exps"), "ffn_gate_up_exps"),
}

# role -> the role that it is joined into, and all that are
Joins = Mapping[str, tuple[str, tuple[str, ...]]]


def asked_joins(layout: Layout) -> Joins:
    """What a person asks for. Raises ConfigError where the GGUF architecture has no such tensor."""
    asked = {"qkv": layout.options.fuse_qkv, "gate_up_exps": layout.options.fuse_gate_up_exps}
    out: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in (name for name, on in asked.items() if on):
        if name not in layout.arch.fuses:
            raise ConfigError(
                f"{layout.config.where}: {layout.arch.gguf_arch} has no joined {name} in llama.cpp"
            )
        kin, target = _JOINS[name]
        for suffix in (".weight", ".bias"):
            names = tuple(role + suffix for role in kin)
            out.update((role, (target + suffix, names)) for role in names)
    return out


def tensors_apart(layout: Layout) -> set[tuple[int | None, str]]:
    """The block and the role of every tensor that is a source tensor by itself, of blocks in which
    such may be joined."""
    out = set()
    for t in layout.sources.values():
        m, bid, xid = layout.find(t)
        last = layout.blocks if layout.arch.fuses_ahead else layout.config.layers
        if m is not None and layout.has(m, bid) and (bid or 0) < last:
            roles = {p.role for p in m.rows(layout.dims[bid or 0], layout.shape(m, bid), xid)}
            out |= {(bid, role) for role in roles if len(roles) == 1}
    return out


def joined_role(layout: Layout, role: str) -> str:
    """What a role of experts is joined into, or the role itself."""
    return layout.joins[role][0] if role in layout.joins else role


def joined_pieces(layout: Layout, pieces: Iterable[Piece], bid: int | None) -> list[Piece]:
    """The pieces of a block, those of what is joined below those of their kin."""
    return [
        q
        for p in pieces
        for q in (_below_kin(layout, p, bid) if _is_joined(layout, p.role, bid) else (p,))
    ]


def _is_joined(layout: Layout, role: str, bid: int | None) -> bool:
    """llama.cpp's converter joins the queries, keys and values that are three tensors in a
    checkpoint, of which all have biases or none; and nothing that stays in blocks."""
    if role not in layout.joins:
        return False
    joined, roles = layout.joins[role]
    if any(in_block(name, bid) in layout.kept for name in roles):
        return False
    kin, target = _JOINS["qkv"]
    if not joined.startswith(target):
        return True
    weights, biases = (
        sum((bid, f"{name}.{end}") in layout.apart for name in kin) for end in ("weight", "bias")
    )
    return weights == len(kin) and biases in (0, len(kin))


def _below_kin(layout: Layout, p: Piece, bid: int | None) -> Iterator[Piece]:
    """The piece with its rows below those of its kin, matrix by matrix."""
    target, kin = layout.joins[p.role]
    heights = [_height(layout, role, bid) for role in kin]
    mine, before = heights[kin.index(p.role)], sum(heights[: kin.index(p.role)])
    if p.role.endswith(".weight"):
        shape = (*p.shape[:-2], sum(heights), p.shape[-1])
    else:
        shape = (*p.shape[:-1], sum(heights))
    done = 0
    while done < p.rows.count:
        matrix, row = divmod(p.rows.first_row + done, mine)
        count = min(mine - row, p.rows.count - done)
        part = replace(
            p.rows,
            count=count,
            first_row=matrix * sum(heights) + before + row,
            source_row=p.rows.source_row + (0 if p.rows.height else done * p.rows.step),
            column=p.rows.column + (done * p.rows.step if p.rows.height else 0),
        )
        yield Piece(target, shape, part)
        done += count


def _height(layout: Layout, role: str, bid: int | None) -> int:
    """Rows of a role's tensor, or of each of its matrices."""
    for m in layout.arch.maps:
        if layout.has(m, bid):
            for p in m.rows(layout.dims[bid or 0], layout.shape(m, bid), 0):
                if p.role == role:
                    return p.shape[-2] if role.endswith(".weight") else p.shape[-1]
    raise ConfigError(f"{layout.config.where}: layer {bid} has no {role} to join")
