"""The pairs of an adapter matched with the rows of its base's architecture: what of either half
lands where, in the order of llama.cpp's converter.

It walks the pairs as the adapter's file has them; the experts of a block come out together where
the last of those that the adapter has arrives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from quantkit.architectures.rules import DEFAULTS, Architecture, Config, Map, Piece
from quantkit.errors import TensorMissing, TensorShape, TensorUnknown, UnsupportedSource
from quantkit.gguf.tensor_names import in_block
from quantkit.gguf.types import type_by_name
from quantkit.loading.adapted import adds_unscaled
from quantkit.loading.patterns import ENCODERS
from quantkit.model.halves import Change, Landed, landed
from quantkit.model.peft import MERGE, Pair
from quantkit.model.placement import Layout, Placed, kin_of
from quantkit.source.codings.by_expert import by_expert
from quantkit.source.segments import Segment
from quantkit.source.tensors import SourceTensor

_TOKENS, _OUTPUT = "token_embd.weight", "output.weight"
# tables that are looked up, of which llama.cpp knows an adapter of the first alone
_TABLES = (_TOKENS, "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")


def placed_pairs(
    arch: Architecture, config: Config, pairs: Sequence[Pair]
) -> tuple[Placed, dict[str, SourceTensor], frozenset[str], float]:
    """Every tensor of the adapter's file; the sources that make them, those of which rows are used
    more than once, and the alpha of the file, which is that of most matrices.

    Raises ConfigError, TensorUnknown, TensorShape, TensorMissing, UnsupportedSource.
    """
    parameters = {m.source.rpartition(".")[2] for m in arch.maps if _is_stack(m)} - {"weight"}
    products = {n: _product(n, p) for p in pairs for n in _names(p, parameters)}
    arch = arch.respelled(config, {arch.plain(n): t.shape for n, t in products.items()}) or arch
    layout = Layout(arch, config, DEFAULTS, products)
    changes = [_change(layout, pair, _names(pair, parameters)) for pair in pairs]
    alpha = Counter(change.alpha for change in changes).most_common(1)[0][0]
    there = {name for change in changes for name in change.names}
    waiting: dict[str, _Halves] = {}
    placed: Placed = {}
    shared: set[str] = set()
    sources: dict[str, SourceTensor] = {}
    for change in changes:
        a, b = change.pair.a, change.pair.b
        if any(adds_unscaled(arch.gguf_arch, name) for name in change.names):
            raise UnsupportedSource(
                f"{a.path}: tensor {a.name}: llama.cpp scales what comes of {change.names[0]} "
                f"before it adds a change, which is to be scaled, too; {MERGE}"
            )
        sources |= {a.name: a, b.name: by_expert(b, change.experts) if change.takes_turns else b}
        for p in change.pieces:
            name = in_block(p.role, change.bid)
            target = waiting.setdefault(name, _Halves(p.shape, change))
            halves = landed(p, change, change.alpha / alpha)
            if name in placed or not target.take(p.rows.count, halves, change):
                raise UnsupportedSource(
                    f"{a.path}: tensor {a.name} is one of several that {name} is made of, and of "
                    f"such no adapter is made; {MERGE}"
                )
        if len(change.names) > 1 or len(change.pieces) > 1:
            shared |= {a.name, b.name}
        names: Iterable[str] = change.names
        if "{xid}" in (change.map.like or change.map.source):
            kin = kin_of(names, change.bid, layout) or names
            names = [other for other in kin if other in there]
        if all(name in waiting and waiting[name].left == 0 for name in names):
            for name in names:
                placed |= waiting.pop(name).tensors(name)
    for name, target in waiting.items():
        raise TensorMissing(
            f"{target.first.pair.a.path}: only part of {name} is in the adapter, which llama.cpp "
            f"takes whole (all experts, or none); {MERGE}"
        )
    return placed, sources, frozenset(shared), alpha


def _is_stack(m: Map) -> bool:
    """Whether all experts are in one tensor."""
    return len(m.shape) == 3 and "xid" not in m.fields


def _names(pair: Pair, parameters: Iterable[str]) -> list[str]:
    """The tensor that a pair may be of: the weight of its module, or one of the parameters of
    stacked experts, which PEFT wraps one in another."""
    stem = pair.module.replace(".base_layer", "")
    more = [f"{stem}.{name}" for name in parameters] if stem.endswith("experts") else []
    return [f"{pair.module}.weight", *more]


def _product(name: str, pair: Pair) -> SourceTensor:
    """The matrix that a pair changes, as its halves have it."""
    shape = (pair.b.shape[0], pair.a.shape[1])
    return SourceTensor(name, type_by_name("F32"), shape, pair.b.path, 0)


def _change(layout: Layout, pair: Pair, names: Sequence[str]) -> Change:
    """Where the matrix of a pair is in the base. Raises TensorUnknown, TensorShape,
    UnsupportedSource."""
    arch, config, t = layout.arch, layout.config, layout.sources[names[0]]
    where = f"{pair.a.path}: tensor {pair.a.name}"
    m, bid, xid = layout.find(t)
    if layout.names[t.name] == "lm_head.weight":
        _check_tied(layout, pair)
    if bid is not None and bid >= layout.blocks:
        raise TensorUnknown(
            f"{where} is of layer {bid}; {config.where} says num_hidden_layers {config.layers}: "
            "the adapter is of another base, or of a layer that predicts further tokens"
        )
    found = [layout.find(layout.sources[name])[0] for name in names]
    if stacks := [m for m in found if m is not None and _is_stack(m) and layout.has(m, bid)]:
        return _change_of_stack(layout, pair, stacks, bid)
    if m is None or not layout.has(m, bid):
        why = "is the adapter of another base?"
        if layout.drops(t):
            why = f"it is of a part that is not in the file of the text; {MERGE}"
        kind = f", which has no {m.layers} in layer {bid}" if m is not None else ""
        raise TensorUnknown(f"{where} has no place in {arch.hf_names[0]}{kind}; {why}")
    experts = layout.dims[bid or 0].get(m.experts, 0)
    if "xid" in m.fields and xid >= experts:
        raise TensorUnknown(f"{where} is of expert {xid}; {config.where} says {experts} experts")
    pieces = tuple(layout.pieces(m, bid, xid))
    _check_shape(layout, m, bid, pair, pieces)
    if any(p.role in (_TOKENS, _OUTPUT) for p in pieces):
        _check_tied(layout, pair)
    change = Change(pair, m, bid, pieces)
    tables = [name for name in change.names if name in _TABLES]
    norms = [name for name in change.names if "norm" in name]
    if m.times or m.beside or norms or tables != ([_TOKENS] if pair.is_table else []):
        raise UnsupportedSource(f"{where}: llama.cpp has no adapter of {change.names[0]}; {MERGE}")
    return change


def _change_of_stack(layout: Layout, pair: Pair, stacks: Sequence[Map], bid: int | None) -> Change:
    """Which of the stacks of a module's experts a pair changes: its halves say so by their shapes.

    Raises TensorShape, UnsupportedSource.
    """
    where = f"{pair.a.path}: tensor {pair.a.name}"
    sizes = (pair.b.shape[0], pair.a.shape[1])
    shapes = [layout.shape(m, bid) for m in stacks]
    found = [
        (m, shape[0])
        for m, shape in zip(stacks, shapes, strict=True)
        if sizes in (shape[1:], shape[:0:-1]) and pair.a.shape[0] % shape[0] == 0
    ]
    if not found:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise TensorShape(
            f"{where}: a change of {list(sizes)} found, experts of {expected} expected (of "
            f"{layout.config.where}); is the adapter of another base?"
        )
    (m, experts), *others = found
    pieces = tuple(layout.pieces(m, bid, 0))
    lie_turned = any(p.rows.height for p in pieces)
    if others or (sizes[0] == sizes[1] and (lie_turned or not pair.turns)):
        raise UnsupportedSource(
            f"{where}: the matrices of the experts are square, and the adapter does not tell which "
            f"way its halves lie; {MERGE}"
        )
    turned = sizes != layout.shape(m, bid)[1:]
    return Change(pair, m, bid, pieces, experts, turned)


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
    if layout.arch.gguf_arch in ENCODERS:  # which give vectors
        return
    outside = [m for m in layout.arch.maps if "bid" not in m.fields and layout.has(m, None)]
    own = any(p.role == _OUTPUT for m in outside for p in layout.pieces(m, None, 0))
    if own and not layout.config.get("tie_word_embeddings", kind="BOOL", default=False):
        return
    raise UnsupportedSource(
        f"{pair.a.path}: tensor {pair.a.name}: the table of tokens is the output of this model, "
        f"too (tie_word_embeddings), and llama.cpp has no adapter for one that is both; {MERGE}"
    )


@dataclass
class _Halves:
    """A tensor of the base, and what has arrived of the two halves of its change."""

    shape: tuple[int, ...]
    first: Change  # the one that came first
    a: dict[int, Segment] = field(default_factory=dict)  # by the row they begin at
    b: dict[int, Segment] = field(default_factory=dict)
    left: int = field(init=False)  # rows of the tensor

    def __post_init__(self) -> None:
        self.left = prod(self.shape[:-1])

    def take(self, rows: int, halves: Landed, change: Change) -> bool:
        """Add the halves of so many rows; False if they are there, or another pair has a part of
        their matrix. Raises UnsupportedSource."""
        a, other = change.pair.a, self.first.pair.a
        if change.rank != self.first.rank:
            raise UnsupportedSource(
                f"{a.path}: tensor {a.name} is of rank {change.rank}, and {other.name}, which is "
                f"stacked with it, of rank {self.first.rank}; {MERGE}"
            )
        of_a, of_b = halves
        if any(self.a.setdefault(s.first_row, s) != s for s in of_a):
            return False
        if any(s.first_row in self.b for s in of_b):
            return False
        self.b |= {s.first_row: s for s in of_b}
        self.left -= rows
        return True

    def tensors(self, name: str) -> Placed:
        """Both halves. Of a table of tokens `lora_a` is kept turned."""
        a, b = (tuple(half[row] for row in sorted(half)) for half in (self.a, self.b))
        rank, (*lead, rows, width) = self.first.rank, self.shape
        a_shape, b_shape = (rank, width), (rows, rank)
        if self.first.pair.is_table:
            a_shape, b_shape = (rows, rank), (width, rank)
        return {
            f"{name}.lora_a": ((*lead, *a_shape), a),
            f"{name}.lora_b": ((*lead, *b_shape), b),
        }
