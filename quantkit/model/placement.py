"""Match a checkpoint's tensors with the rows of its architecture: what lands where, in which order.

llama.cpp's converter walks the files in order and the names in each in string order; the experts of
a block come out where the last of them arrives, in their family's order. It decides the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from quantkit.architectures.common import DROPS, OTHER_MODES
from quantkit.architectures.rules import (
    DEFAULTS,
    Architecture,
    Config,
    ConversionOptions,
    Map,
    Piece,
)
from quantkit.errors import (
    ConfigError,
    TensorMissing,
    TensorShape,
    TensorUnknown,
    UnsupportedSource,
)
from quantkit.gguf.tensor_names import in_block, parse
from quantkit.loading.kinds import ENCODER
from quantkit.model.blocks import BLOCKS, leaving
from quantkit.model.joining import (
    Joins,
    asked_joins,
    joined_pieces,
    joined_role,
    tensors_apart,
)
from quantkit.model.missing import check_nothing_missing
from quantkit.model.names import NUMBER, known_names, predicts
from quantkit.model.order import Order, order_of
from quantkit.model.products import multiplied
from quantkit.source.codings import is_idle, widened
from quantkit.source.codings.plain import INTEGERS, indices
from quantkit.source.codings.scaled import by_rank, check_order
from quantkit.source.mistaken import stranger
from quantkit.source.segments import Segment
from quantkit.source.tensors import SourceTensor

# GGUF tensor name -> its shape (NumPy order) and the segments that tile it
Placed = dict[str, tuple[tuple[int, ...], tuple[Segment, ...]]]


def place(
    arch: Architecture,
    config: Config,
    sources: Mapping[str, SourceTensor],
    options: ConversionOptions = DEFAULTS,
) -> tuple[Placed, dict[str, SourceTensor]]:
    """Every GGUF tensor of the model, in the order of llama.cpp's converter, and the sources that
    make them.

    Raises ConfigError, TensorUnknown, TensorShape, TensorMissing.
    """
    layout = Layout(arch, config, options, sources)
    layout.check_dims()
    placed: Placed = {}
    used: dict[str, SourceTensor] = {}
    waiting: dict[str, _Waiting] = {}
    kin: dict[tuple[str, ...], dict[str, None]] = {}
    matches = _in_blocks(list(_matches(layout, sources)), layout)
    # NVFP4 experts whose count llama.cpp does not find in the config follow all else in NVFP4
    counted = any(config.find(name) for name in ("num_local_experts", "num_experts"))
    late: dict[str, None] = {}
    for m in sorted(matches, key=lambda m: m.order):
        _check(m, layout)
        if late and m.tensor.coding != "nvfp4":
            _finish(late, waiting, placed)
            late.clear()
        source = m.map.counted(m.tensor, layout.dims[m.bid or 0])
        used[source.name] = source
        names: dict[str, None] = {}
        for piece in layout.pieces(m.map, m.bid, m.xid):
            name = in_block(piece.role, m.bid)
            target = waiting.setdefault(name, _Waiting(piece.shape))
            if name in placed or not target.take(piece, source):
                raise TensorUnknown(f"tensor {source.name} is a second spelling of rows of {name}")
            names[name] = None
        # one tensor an expert: the stacks of a block come together, those of blocks one by one
        if not m.tensor.ggml.is_float:
            if m.tensor.coding == "nvfp4" and not counted and "xid" in m.map.fields:
                late |= names
                continue
        elif "{xid}" in (m.map.like or m.map.source):
            kinds = tuple(names)
            if kinds not in kin:
                kin[kinds] = dict.fromkeys(kin_of(names, m.bid, layout)) or names
            names = kin[kinds]
        _finish(names, waiting, placed)
    for name in [*late, *waiting]:  # and those whose kin are in blocks, and were placed alone
        _finish([name], waiting, placed)
    check_nothing_missing(layout, sources, placed)
    if waiting:
        raise TensorMissing(f"{config.where}: only part of {min(waiting)} is in the checkpoint")
    return placed, used


def _finish(names: Iterable[str], waiting: dict[str, _Waiting], placed: Placed) -> None:
    """Place tensors, if all rows of all of them have arrived."""
    names = list(names)
    if all(name in waiting and waiting[name].left == 0 for name in names):
        for name in names:
            done = waiting.pop(name)
            segments = sorted(done.rows.values(), key=lambda s: s.first_row)
            placed[name] = (done.shape, tuple(segments))


@dataclass
class _Waiting:
    """A tensor of which not all rows have arrived."""

    shape: tuple[int, ...]
    rows: dict[int, Segment] = field(default_factory=dict)  # by the row they begin at
    left: int = field(init=False)  # weights

    def __post_init__(self) -> None:
        self.left = prod(self.shape)

    def take(self, piece: Piece, source: SourceTensor) -> bool:
        """Add rows of `source`; False if they are there, or are of a tensor of another shape."""
        if piece.rows.first_row in self.rows or piece.shape != self.shape:
            return False
        self.rows[piece.rows.first_row] = replace(piece.rows, source=source.name)
        self.left -= piece.rows.count * piece.rows.row_length(source)
        return True


@dataclass(frozen=True)
class _Match:
    tensor: SourceTensor
    map: Map
    bid: int | None
    xid: int
    number: int  # of the tensor in the checkpoint

    @property
    def order(self) -> Order:
        return order_of(self.tensor, self.map, self.bid or 0, self.xid, self.number)


@dataclass(frozen=True)
class Layout:
    """The architecture with the config's numbers put in."""

    arch: Architecture
    config: Config
    options: ConversionOptions
    sources: Mapping[str, SourceTensor]
    kinds: dict[tuple[str, int], bool] = field(default_factory=dict)  # what `has` found
    kept: set[str] = field(default_factory=set)  # tensors in the blocks that they are released in

    @cached_property
    def blocks(self) -> int:
        """Layers, those that predict further tokens among them."""
        return self.config.blocks

    @cached_property
    def dims(self) -> list[dict[str, int]]:
        """The dimensions of each block."""
        values = {name: value(self.config) for name, value in self.arch.dims.items()}
        blocks = range(max(self.config.blocks, 1))
        try:
            return [
                {n: v if isinstance(v, int) else v[bid] for n, v in values.items()}
                for bid in blocks
            ]
        except IndexError:
            raise ConfigError(
                f"{self.config.where}: a list has fewer than {len(blocks)} values, one a layer"
            ) from None

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The sources' names as the architecture knows them."""
        return known_names(self.sources, self.arch.maps, self.arch.plain)

    @cached_property
    def dropped(self) -> list[re.Pattern[str]]:
        others = () if self.arch.gguf_arch == ENCODER else OTHER_MODES
        return [re.compile(d) for d in (*self.arch.drops, *DROPS, *others)]

    @cached_property
    def maps(self) -> dict[str, list[Map]]:
        """The rows by template."""
        out: dict[str, list[Map]] = {}
        for m in self.arch.maps:
            out.setdefault(m.template, []).append(m)
        return out

    @cached_property
    def joins(self) -> Joins:
        """What is joined, as a person asks."""
        return asked_joins(self)

    @cached_property
    def apart(self) -> set[tuple[int | None, str]]:
        """The block and the role of every tensor that is a source tensor by itself."""
        return tensors_apart(self)

    @cached_property
    def own_names(self) -> bool:
        """Whether layers that predict further tokens are counted by themselves."""
        ahead = ["bid" in m.fields for m in self.arch.maps if m.layers == "mtp"]
        return bool(ahead) and not any(ahead)

    def blocks_of(self, m: Map) -> Sequence[int | None]:
        """The blocks that must have the tensor."""
        layers, blocks = self.config.layers, self.config.blocks
        if "bid" in m.fields:
            first = layers if self.options.mtp == "only" else 0
            found: Sequence[int] = range(first, layers if self.own_names else blocks)
        elif "mid" in m.fields:
            found = range(layers, blocks)
        elif m.layers == "mtp":
            found = range(layers, min(layers + 1, blocks))
        else:
            return (None,) if self.has(m, None) else ()
        return [bid for bid in found if self.has(m, bid)]

    def has(self, m: Map, bid: int | None) -> bool:
        """Whether layer `bid` is of the kind that has the tensor."""
        if not m.layers:
            return True
        kind = (m.layers, bid or 0)
        if kind not in self.kinds:
            self.kinds[kind] = self.arch.layers[m.layers](self.config, bid or 0)
        return self.kinds[kind]

    def find(self, t: SourceTensor) -> tuple[Map | None, int | None, int]:
        """The row for a tensor, its block and its expert."""
        name = self.names[t.name]
        numbers = [int(n) for n in NUMBER.findall(name)]
        best: tuple[Map | None, int | None, int] = (None, (*numbers, None)[0], 0)
        for m in self.maps.get(NUMBER.sub("*", name), ()):
            ids = dict(zip(m.fields, numbers, strict=True))
            if any(f.isdecimal() and int(f) != n for f, n in zip(m.fields, numbers, strict=True)):
                continue
            bid = ids.get("bid")
            if "mid" in ids or (bid is None and m.layers == "mtp"):
                bid = self.config.layers + ids.get("mid", 0)
            best = (m, bid, ids.get("xid", 0))
            if (bid or 0) >= self.blocks or self.has(m, bid):
                break
        return best

    def drops(self, t: SourceTensor) -> bool:
        """Whether a tensor that no row takes may be left out."""
        name = self.names[t.name]  # an encoder's drops tell by the whole of it
        inner = () if self.arch.gguf_arch == ENCODER else (name.removeprefix("model."),)
        return any(d.fullmatch(n) for d in self.dropped for n in (t.name, name, *inner))

    def predicted(self, t: SourceTensor) -> int | None:
        """The block of a tensor that only layers have which predict further tokens, counted after
        the model's own; None for any other."""
        if not predicts(self.names[t.name]):
            return None
        bid = self.find(t)[1]
        return bid if bid is not None and bid >= self.config.layers else None

    def shape(self, m: Map, bid: int | None) -> tuple[int, ...]:
        return tuple(self.dims[bid or 0][d] for d in m.shape)

    def rows(self, m: Map, bid: int | None, xid: int) -> Sequence[Piece]:
        return m.rows(self.dims[bid or 0], self.shape(m, bid), xid)

    def pieces(self, m: Map, bid: int | None, xid: int) -> list[Piece]:
        found = self.rows(m, bid, xid)
        return joined_pieces(self, found, bid) if self.joins else list(found)

    def check_dims(self) -> None:
        for m in self.arch.maps:
            for bid in self.blocks_of(m):
                if min(self.shape(m, bid)) < 1:
                    empty = next(name for name, n in self.dims[bid or 0].items() if n < 1)
                    raise ConfigError(f"{self.config.where}: the model has no {empty}")
        experts, per_token = (self.dims[0].get(name) for name in ("experts", "used"))
        if experts and per_token is not None and not 1 <= per_token <= experts:
            raise ConfigError(f"{self.config.where}: {per_token} experts are used of {experts}")


def kin_of(names: Iterable[str], bid: int | None, layout: Layout) -> list[str]:
    """All stacked experts of a block that are of one kind with `names`, in the family's order;
    none, if these are not among those that it puts in order."""
    kinds = {parse(name).role.rpartition("_")[2] for name in names}
    found = [
        in_block(joined_role(layout, f"{role}.weight"), bid)
        for role in layout.arch.expert_order
        if role.rpartition("_")[2] in kinds
    ]
    return found if {*names} <= {*found} else []


def _matches(layout: Layout, sources: Mapping[str, SourceTensor]) -> Iterator[_Match]:
    arch, config, blocks = layout.arch, layout.config, layout.blocks
    ahead = {bid for t in sources.values() if (bid := layout.predicted(t)) is not None}
    if not ahead:  # those that are left out may lack what tells them
        ahead.update(range(blocks, blocks + max(arch.mtp(config) - config.mtp, 0)))
    for i, t in enumerate(multiplied(arch.maps, sources, layout.names).values()):
        m, bid, xid = layout.find(t)
        if bid is not None and bid >= blocks and bid in ahead:
            continue
        if layout.names[t.name].startswith("mtp.") and not config.mtp:
            continue
        if layout.options.mtp == "only" and bid is not None and bid < config.layers:
            continue
        if m is None or not layout.has(m, bid):
            if layout.drops(t) or is_idle(t, sources):
                continue
            _check_block(t, bid, layout)
            kind = f", which has no {m.layers} in layer {bid}" if m is not None else ""
            raise TensorUnknown(
                f"{t.path}: tensor {t.name} has no place in {arch.hf_names[0]}{kind}; "
                f"{stranger(t.name, sources)}"
            )
        if m.indices and t.raw in INTEGERS:
            t = indices(t, layout.dims[bid or 0][m.indices])
        if m.by_rank and t.coding == "scaled":
            t = by_rank(t, [layout.dims[bid or 0][dim] for dim in m.by_rank])
        check_order(t)
        yield _Match(t, m, bid, xid, i)


def _in_blocks(matches: list[_Match], layout: Layout) -> list[_Match]:
    """The matches, with sources in blocks as float32 where they cannot stay as they are."""
    if not any(m.tensor.coding in BLOCKS for m in matches):
        return matches
    uses = [
        (m.tensor, {in_block(p.role, m.bid): p.rows for p in layout.rows(m.map, m.bid, m.xid)})
        for m in matches
    ]
    wide = leaving(uses, layout.arch.gguf_arch, layout.config.layers)
    layout.kept.update(
        name for t, rows in uses if t.coding in BLOCKS and t.name not in wide for name in rows
    )
    return [replace(m, tensor=widened(m.tensor)) if m.tensor.name in wide else m for m in matches]


def _check_block(t: SourceTensor, bid: int | None, layout: Layout) -> None:
    if bid is not None and bid >= layout.blocks:
        raise TensorUnknown(
            f"tensor {t.name} is of layer {bid}; "
            f"{layout.config.where} says num_hidden_layers {layout.config.layers}"
        )


def _check(m: _Match, layout: Layout) -> None:
    config = layout.config
    _check_block(m.tensor, m.bid, layout)
    experts = layout.dims[m.bid or 0].get(m.map.experts, 0)
    if "xid" in m.map.fields and m.xid >= experts:
        raise TensorUnknown(
            f"tensor {m.tensor.name} is of expert {m.xid}; {config.where} says {experts} experts"
        )
    if m.tensor.raw:
        raise UnsupportedSource(
            f"{m.tensor.path}: tensor {m.tensor.name} is {m.tensor.raw}, and neither scales beside "
            f"it nor quantization_config of {config.where} say how it is read; get them, or the "
            "16-bit release"
        )
    expected = layout.shape(m.map, m.bid)
    if not m.map.fits(m.tensor.shape, expected):
        raise TensorShape(
            f"tensor {m.tensor.name}: shape {list(m.tensor.shape)} found, {list(expected)} "
            f"expected ({' x '.join(m.map.shape)} of {config.where})"
        )
