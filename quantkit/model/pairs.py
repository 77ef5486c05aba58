"""The pairs of an adapter matched with the rows of its base's architecture: what of either half
lands where, in the order of llama.cpp's converter.

It walks the pairs as the adapter's file has them; the experts of a block come out together where
the last of those that the adapter has arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from quantkit.architectures.rules import DEFAULTS, Architecture, Config, Map, Piece
from quantkit.errors import TensorMissing, TensorShape, TensorUnknown, UnsupportedSource
from quantkit.gguf.tensor_names import in_block
from quantkit.gguf.types import type_by_name
from quantkit.model.peft import MERGE, Pair
from quantkit.model.placement import Layout, Placed, kin_of
from quantkit.source.segments import Edit, Segment
from quantkit.source.tensors import SourceTensor

_TOKENS = "token_embd.weight"
# tables that are looked up, of which llama.cpp knows an adapter of the first alone
_TABLES = (_TOKENS, "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
# edits that a product keeps: of its rows, then of its columns; others want the sum itself
_OF_ROWS, _OF_COLUMNS = ("scale",), ("heads_across",)


@dataclass(frozen=True)
class _Change:
    """A pair, and the matrix of the base that it changes."""

    pair: Pair
    map: Map
    bid: int | None
    xid: int
    pieces: tuple[Piece, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The GGUF tensors that are made of the matrix."""
        return tuple(dict.fromkeys(in_block(p.role, self.bid) for p in self.pieces))


def placed_pairs(
    arch: Architecture, config: Config, pairs: Sequence[Pair], alpha: float
) -> tuple[Placed, dict[str, SourceTensor], frozenset[str]]:
    """Every tensor of the adapter's file, whose key is `alpha`; the sources that make them, and
    those of which rows are used more than once.

    Raises ConfigError, TensorUnknown, TensorShape, TensorMissing, UnsupportedSource.
    """
    matrices = {f"{pair.module}.weight": pair for pair in pairs}
    products = {n: _product(n, p) for n, p in matrices.items()}
    arch = arch.respelled(config, {arch.plain(n): t.shape for n, t in products.items()}) or arch
    layout = Layout(arch, config, DEFAULTS, products)
    changes = [_change(layout, name, pair) for name, pair in matrices.items()]
    there = {name for change in changes for name in change.names}
    waiting: dict[str, _Halves] = {}
    placed: Placed = {}
    shared: set[str] = set()
    for change in changes:
        pair = change.pair
        for p in change.pieces:
            name = in_block(p.role, change.bid)
            target = waiting.setdefault(name, _Halves(p.shape, pair))
            a, b = _halves(p, change, pair.alpha / alpha)
            if name in placed or not target.take(p.rows.count, a, b, pair):
                raise UnsupportedSource(
                    f"{pair.a.path}: tensor {pair.a.name} is one of several that {name} is made "
                    f"of, and of such no adapter is made; {MERGE}"
                )
        if len(change.names) > 1 or len(change.pieces) > 1:
            shared |= {pair.a.name}
        names: Iterable[str] = change.names
        if "{xid}" in (change.map.like or change.map.source):
            kin = kin_of(names, change.bid, layout) or names
            names = [other for other in kin if other in there]
        if all(name in waiting and waiting[name].left == 0 for name in names):
            for name in names:
                placed |= waiting.pop(name).tensors(name)
    for name, halves in waiting.items():
        raise TensorMissing(
            f"{halves.first.a.path}: only part of {name} is in the adapter, which llama.cpp takes "
            f"whole (all experts, or none); {MERGE}"
        )
    return placed, {t.name: t for pair in pairs for t in (pair.a, pair.b)}, frozenset(shared)


def _product(name: str, pair: Pair) -> SourceTensor:
    """The matrix that a pair changes, as its halves have it."""
    shape = (pair.b.shape[0], pair.a.shape[1])
    return SourceTensor(name, type_by_name("F32"), shape, pair.b.path, 0)


def _change(layout: Layout, name: str, pair: Pair) -> _Change:
    """Where the matrix of a pair is in the base. Raises TensorUnknown, TensorShape,
    UnsupportedSource."""
    arch, config, t = layout.arch, layout.config, layout.sources[name]
    where = f"{pair.a.path}: tensor {pair.a.name}"
    m, bid, xid = layout.find(t)
    if layout.names[name] == "lm_head.weight":
        _check_tied(layout, pair)
    if bid is not None and bid >= layout.blocks:
        raise TensorUnknown(
            f"{where} is of layer {bid}; {config.where} says num_hidden_layers {config.layers}: "
            "the adapter is of another base, or of a layer that predicts further tokens"
        )
    if m is None or not layout.has(m, bid):
        why = "is the adapter of another base?"
        if layout.drops(t):
            why = f"it is of a part that is not in the file of the text; {MERGE}"
        elif ".base_layer" in name or name.endswith(".experts.weight"):
            why = f"it is of parameters that are no module (experts in one tensor); {MERGE}"
        kind = f", which has no {m.layers} in layer {bid}" if m is not None else ""
        raise TensorUnknown(f"{where} has no place in {arch.hf_names[0]}{kind}; {why}")
    experts = layout.dims[bid or 0].get(m.experts, 0)
    if "xid" in m.fields and xid >= experts:
        raise TensorUnknown(f"{where} is of expert {xid}; {config.where} says {experts} experts")
    pieces = tuple(layout.pieces(m, bid, xid))
    _check_shape(layout, m, bid, pair, pieces)
    if any(p.role == _TOKENS for p in pieces):
        _check_tied(layout, pair)
    change = _Change(pair, m, bid, xid, pieces)
    tables = [name for name in change.names if name in _TABLES]
    norms = [name for name in change.names if "norm" in name]
    if m.times or m.beside or norms or tables != ([_TOKENS] if pair.is_table else []):
        raise UnsupportedSource(f"{where}: llama.cpp has no adapter of {change.names[0]}; {MERGE}")
    return change


def _check_shape(
    layout: Layout, m: Map, bid: int | None, pair: Pair, pieces: Sequence[Piece]
) -> None:
    """Both halves are of the matrix that the base's config describes. Raises TensorShape."""
    shape = layout.shape(m, bid)
    if len(shape) != 2:
        raise TensorUnknown(
            f"{pair.a.path}: tensor {pair.a.name} is of {m.source.format(bid=bid, xid=0, mid=0)}, "
            f"which is no matrix but {list(shape)}; is the adapter of another base?"
        )
    out, into = zip(shape, m.shape, strict=True)
    if pair.is_table or all(p.rows.height for p in pieces):  # `[in, out]`, as GPT-2 keeps them
        out, into = into, out
    for t, axis, (size, dim) in ((pair.a, 1, into), (pair.b, 0, out)):
        if t.shape[axis] != size:
            expected = [*t.shape]
            expected[axis] = size
            raise TensorShape(
                f"tensor {t.name}: shape {list(t.shape)} found, {expected} expected ({dim} of "
                f"{layout.config.where}); is the adapter of another base?"
            )


def _check_tied(layout: Layout, pair: Pair) -> None:
    """A table of tokens that is the output, too, takes no adapter. Raises UnsupportedSource."""
    config = layout.config
    own = any(m.source == "lm_head.weight" for m in layout.arch.maps)
    if own and not config.get("tie_word_embeddings", kind="BOOL", default=False):
        return
    raise UnsupportedSource(
        f"{pair.a.path}: tensor {pair.a.name}: the table of tokens is the output of this model, "
        f"too (tie_word_embeddings), and llama.cpp has no adapter for one that is both; {MERGE}"
    )


@dataclass
class _Halves:
    """A tensor of the base, and what has arrived of the two halves of its change."""

    shape: tuple[int, ...]
    first: Pair  # the one that came first
    a: dict[int, Segment] = field(default_factory=dict)  # by the row they begin at
    b: dict[int, Segment] = field(default_factory=dict)
    left: int = field(init=False)  # rows of the tensor

    def __post_init__(self) -> None:
        self.left = prod(self.shape[:-1])

    def take(self, rows: int, a: Segment, b: Segment, pair: Pair) -> bool:
        """Add the halves of so many rows; False if they are there, or another pair has a part of
        their matrix. Raises UnsupportedSource."""
        if pair.rank != self.first.rank:
            raise UnsupportedSource(
                f"{pair.a.path}: tensor {pair.a.name} is of rank {pair.rank}, and "
                f"{self.first.a.name}, which is stacked with it, of rank {self.first.rank}; {MERGE}"
            )
        if b.first_row in self.b or self.a.setdefault(a.first_row, a) != a:
            return False
        self.b[b.first_row] = b
        self.left -= rows
        return True

    def tensors(self, name: str) -> Placed:
        """Both halves. Of a table of tokens `lora_a` is kept turned."""
        a, b = (tuple(half[row] for row in sorted(half)) for half in (self.a, self.b))
        rank, (*lead, rows, width) = self.first.rank, self.shape
        a_shape, b_shape = (rank, width), (rows, rank)
        if self.first.is_table:
            a_shape, b_shape = (rows, rank), (width, rank)
        return {
            f"{name}.lora_a": ((*lead, *a_shape), a),
            f"{name}.lora_b": ((*lead, *b_shape), b),
        }


def _halves(p: Piece, change: _Change, factor: float) -> tuple[Segment, Segment]:
    """The rows of `lora_a` and `lora_b` that come of a piece of the matrix; those of `lora_b` times
    `factor`. Raises UnsupportedSource."""
    s, (a, b) = p.rows, (change.pair.a, change.pair.b)
    rank, wide = a.shape
    of_rows = tuple(e for e in s.edits if e[0] in _OF_ROWS)
    of_columns = tuple(e for e in s.edits if e[0] in _OF_COLUMNS)
    scaled: tuple[Edit, ...] = () if factor == 1 else (("times", factor),)
    # whole rows, and of a stack one whole matrix
    apart = len(of_rows) + len(of_columns) == len(s.edits) and not change.map.flat
    if change.pair.is_table:
        apart = apart and (s.count, s.order, s.step, of_columns) == (wide, (), 1, ())
        halves = (
            Segment(a.name, 0, 0, wide, height=rank),
            Segment(b.name, 0, 0, b.shape[0], edits=(*of_rows, *scaled)),
        )
    else:
        matrix, inside = divmod(s.first_row, p.shape[-2])
        apart = (
            apart
            and p.shape[-1] == wide
            and (s.source_row, s.height) in ((s.source_row, 0), (0, wide))
        )
        apart = apart and (len(p.shape) == 2 or (s.count, inside) == (p.shape[-2], 0))
        at, edits = s.column if s.height else s.source_row, (*of_rows, *scaled)
        halves = (
            Segment(a.name, 0, matrix * rank, rank, edits=of_columns),
            Segment(b.name, at, s.first_row, s.count, s.order, s.step, edits=edits),
        )
    if not apart:
        raise UnsupportedSource(
            f"{a.path}: tensor {a.name}: llama.cpp has no adapter of "
            f"{in_block(p.role, change.bid)}, which is not made of its rows as they are; {MERGE}"
        )
    return halves
