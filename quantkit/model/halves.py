"""What comes of the two halves of a change where the rows of its matrix land: what is done to rows
is done to those of `lora_b`, what is done to columns to those of `lora_a`."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from quantkit.architectures.rules import Map, Piece
from quantkit.errors import UnsupportedSource
from quantkit.gguf.tensor_names import in_block
from quantkit.model.peft import MERGE, Pair
from quantkit.source.segments import Edit, Segment

# edits that a product keeps: of its rows, then of its columns; others want the sum itself
_OF_ROWS, _OF_COLUMNS = ("scale",), ("heads_across",)


@dataclass(frozen=True)
class Change:
    """A pair, and the matrix of the base that it changes: of experts in one tensor, all of them.

    `experts` is 0 for one matrix. `turned`: the product of an expert's halves is the transpose of
    the expert as the checkpoint has it.
    """

    pair: Pair
    map: Map
    bid: int | None
    pieces: tuple[Piece, ...]
    experts: int = 0
    turned: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The GGUF tensors that are made of the matrix."""
        return tuple(dict.fromkeys(in_block(p.role, self.bid) for p in self.pieces))

    @property
    def rank(self) -> int:
        """The rank of a matrix's change."""
        return self.pair.a.shape[0] // (self.experts or 1)

    @property
    def alpha(self) -> float:
        """What is divided by the rank for the factor of the product."""
        pair = self.pair
        return pair.alpha * sqrt(self.rank) if pair.by_root else pair.alpha

    @property
    def takes_turns(self) -> bool:
        """Whether rows of `lora_b` are those of B, of which the columns of experts take turns."""
        return self.experts > 0 and self.turned == any(p.rows.height for p in self.pieces)


Landed = tuple[list[Segment], list[Segment]]


def landed(p: Piece, change: Change, factor: float) -> Landed:
    """The rows of `lora_a` and `lora_b` that come of a piece of the matrix; those of `lora_b` times
    `factor`. Raises UnsupportedSource."""
    scaled: tuple[Edit, ...] = () if factor == 1 else (("times", factor),)
    if change.pair.is_table:
        found = _of_table(p, change, scaled)
    else:
        found = _of_stack(p, change, scaled) if change.experts else _of_matrix(p, change, scaled)
    if found is None:
        a = change.pair.a
        raise UnsupportedSource(
            f"{a.path}: tensor {a.name}: llama.cpp has no adapter of "
            f"{in_block(p.role, change.bid)}, which is not made of its rows as they are; {MERGE}"
        )
    return found


def _edits(p: Piece) -> tuple[tuple[Edit, ...], tuple[Edit, ...]] | None:
    """The edits of rows and of columns; None if there are others."""
    rows, columns = (
        tuple(e for e in p.rows.edits if e[0] in kind) for kind in (_OF_ROWS, _OF_COLUMNS)
    )
    return (rows, columns) if len(rows) + len(columns) == len(p.rows.edits) else None


def _of_table(p: Piece, change: Change, scaled: tuple[Edit, ...]) -> Landed | None:
    """Of a table of tokens: `lora_a` is kept turned."""
    s, (a, b), edits = p.rows, (change.pair.a, change.pair.b), _edits(p)
    rank, tokens = a.shape
    if edits is None or edits[1] or (s.count, s.order, s.step) != (tokens, (), 1):
        return None
    return (
        [Segment(a.name, 0, 0, tokens, height=rank)],
        [Segment(b.name, 0, 0, b.shape[0], edits=(*edits[0], *scaled))],
    )


def _of_matrix(p: Piece, change: Change, scaled: tuple[Edit, ...]) -> Landed | None:
    """Of one matrix: whole rows, and in a stack the whole of it."""
    s, (a, b), edits = p.rows, (change.pair.a, change.pair.b), _edits(p)
    rank, wide = a.shape
    matrix, inside = divmod(s.first_row, p.shape[-2])
    if edits is None or change.map.flat or p.shape[-1] != wide:
        return None
    if s.height and (s.source_row, s.height) != (0, wide):
        return None
    if len(p.shape) > 2 and (s.count, inside) != (p.shape[-2], 0):
        return None
    at = s.column if s.height else s.source_row
    return (
        [Segment(a.name, 0, matrix * rank, rank, edits=edits[1])],
        [Segment(b.name, at, s.first_row, s.count, s.order, s.step, edits=(*edits[0], *scaled))],
    )


def _of_stack(p: Piece, change: Change, scaled: tuple[Edit, ...]) -> Landed | None:
    """Of experts in one tensor: matrix by matrix."""
    s, (a, b), rank = p.rows, (change.pair.a, change.pair.b), change.rank
    high = b.shape[0] if change.turned else a.shape[1]  # columns of an expert in the checkpoint
    tall = a.shape[1] if change.turned else b.shape[0]  # and rows
    per = p.shape[-2]
    if len(p.shape) != 3 or s.edits or s.count % per or s.first_row % per:
        return None
    if p.shape[0] != change.experts or p.shape[-1] != (tall if s.height else high):
        return None
    if s.height and (s.height, s.source_row % tall, s.count) != (tall, 0, per):
        return None
    of_a, of_b = [], []
    for i in range(s.count // per):
        first = s.first_row + i * per
        matrix = first // per * rank
        if s.height:
            x, at = s.source_row // tall, s.column
        else:
            x, at = divmod(s.source_row + i * per * s.step, tall)
        if change.takes_turns:
            of_a.append(Segment(a.name, x * rank, matrix, rank))
            at += x * b.shape[0]
            of_b.append(Segment(b.name, at, first, per, s.order, s.step, edits=scaled))
        else:
            wide = b.shape[0]
            of_a.append(Segment(b.name, 0, matrix, rank, (), change.experts, wide, x))
            of_b.append(
                Segment(a.name, x * rank, first, per, s.order, s.step, rank, at, edits=scaled)
            )
    return of_a, of_b
