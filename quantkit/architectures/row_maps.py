"""How the rows of a source tensor land in GGUF tensors.

Quantization is independent per row, so stacking, splitting, permuting and transposing are row maps;
none touches a weight, and only `edited` changes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from quantkit.source.segments import Edit, Segment

Dims = Mapping[str, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Rows of a source tensor that become rows of `role`, a tensor of `shape` (NumPy order)."""

    role: str
    shape: Shape
    rows: Segment  # its source is the tensor that was matched


# (dims, shape of the source, expert id or 0) -> pieces; rows count over all leading axes
RowMap = Callable[[Dims, Shape, int], Sequence[Piece]]


def piece(
    role: str, shape: Shape, count: int, first: int = 0, at: int = 0, **geometry: Any
) -> Piece:
    """`count` rows from row `at` of the source on become rows `first` ... of `role`."""
    return Piece(role, shape, Segment("", at, first, count, **geometry))


def _rows(shape: Shape) -> int:
    return prod(shape[:-1]) if len(shape) > 1 else shape[0]


def whole(role: str, *shape: str) -> RowMap:
    """All rows as they are; of another `shape`, if dimensions are named."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        target = tuple(dims[d] for d in shape) or source
        return (piece(role, target, _rows(source)),)

    return pieces


def padded(role: str, rows: str, after: str = "") -> RowMap:
    """Some of the `rows` of a matrix: the first, or those after the first `after`."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        first = dims[after] if after else 0
        return (piece(role, (dims[rows], *source[1:]), source[0], first),)

    return pieces


def stack(role: str, experts: str = "experts") -> RowMap:
    """One expert's rows become its place in the stacked tensor of `experts`."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n = _rows(source)
        return (piece(role, (dims[experts], *source), n, xid * n),)

    return pieces


def halves(first: str, second: str) -> RowMap:
    """The rows of each matrix are `first`'s, then `second`'s (a fused `gate_up_proj`)."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n, shape = source[-2] // 2, (*source[:-2], source[-2] // 2, source[-1])
        return [
            piece(role, shape, n, x * n, (2 * x + half) * n)
            for x in range(prod(source[:-2]))
            for half, role in enumerate((first, second))
        ]

    return pieces


def interleaved(first: str, second: str) -> RowMap:
    """Rows take turns: one of `first`, one of `second`."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        vector = len(source) < 3
        shape = (*source[:-1], source[-1] // 2) if vector else halved(source)
        n = (prod(source) if vector else _rows(source)) // 2
        return [piece(r, shape, n, at=at, step=2) for at, r in enumerate((first, second))]

    return pieces


def interleaved_stack(first: str, second: str, experts: str = "experts") -> RowMap:
    """One expert's rows take turns, and become their places in the stacked tensors."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n = source[0] // 2
        shape = (dims[experts], n, *source[1:])
        return [piece(r, shape, n, xid * n, at, step=2) for at, r in enumerate((first, second))]

    return pieces


def halved(shape: Shape) -> Shape:
    """The shape with half the rows in each matrix."""
    return (*shape[:-2], shape[-2] // 2, shape[-1])


def transposed(*roles: str, interleave: bool = False) -> RowMap:
    """The columns of each matrix are rows of `roles`: one role after another, or taking turns."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        *lead, height, width = source
        k = len(roles)
        n = width // k
        return [
            piece(
                role,
                (*lead, n, height),
                n,
                x * n,
                x * height,
                height=height,
                column=i if interleave else i * n,
                step=k if interleave else 1,
            )
            for x in range(prod(lead))
            for i, role in enumerate(roles)
        ]

    return pieces


def parts(*roles: tuple[str, str] | tuple[str, str, str]) -> RowMap:
    """Rows of several tensors one after another: (role, rows) or, to be permuted for rotary
    embedding, (role, rows, heads)."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        out, at = [], 0
        for role, rows, *heads in roles:
            n = dims[rows]
            order = rotary_order(n // dims[heads[0]]) if heads else ()
            out.append(piece(role, (n, *source[1:]), n, at=at, order=order))
            at += n
        return out

    return pieces


def grouped(role: str) -> RowMap:
    """A group of each key-value head, its queries, its key and its value, become all queries, all
    keys and all values."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        groups, n = dims["kv_heads"], dims["head"]
        queries = dims["heads"] // max(groups, 1)
        at = [g * (queries + 2) * n for g in range(groups)]
        q = [(start, queries * n) for start in at]
        k = [(start + queries * n, n) for start in at]
        v = [(start + (queries + 1) * n, n) for start in at]
        out, row = [], 0
        for start, count in (*q, *k, *v):
            out.append(piece(role, source, count, row, start))
            row += count
        return out

    return pieces


def rotary(role: str, heads: str) -> RowMap:
    """Interleave the two halves of every head, from the order of transformers' rotary embedding
    to that of the original Llama (llama.cpp `LlamaModel.permute`)."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        order = rotary_order(source[0] // dims[heads])
        return (piece(role, source, source[0], order=order),)

    return pieces


def rotary_order(head_dim: int) -> tuple[int, ...]:
    """The order of the rows of one head."""
    half = head_dim // 2
    return tuple(j * half + i for i in range(half) for j in range(2))


def edited(rows: RowMap, *edits: Edit) -> RowMap:
    """`rows` with their values changed by named functions of `rows.EDITS`."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return [replace(p, rows=replace(p.rows, edits=edits)) for p in rows(dims, source, xid)]

    return pieces
