"""Match a checkpoint's tensors with the rows of its architecture: what lands where, in which order.

llama.cpp's converter walks the files in order and the names in each in string order; the experts
of a block come out together where the last of them arrives, in the order of their family. The
order decides the bytes of the file, so it is kept here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantkit import roles
from quantkit.checkpoint import SourceTensor
from quantkit.errors import ConfigError, TensorMissing, TensorShape, TensorUnknown
from quantkit.rules import Architecture, Config, Map


@dataclass(frozen=True)
class Segment:
    """A run of source rows that lands in a tensor: `count` rows of `source` from `source_row` on
    become rows `first_row` ... `order` permutes the rows inside each group of `len(order)`."""

    source: str
    source_row: int
    first_row: int
    count: int
    order: tuple[int, ...] = ()


# GGUF tensor name -> its shape (NumPy order) and the segments that tile it
Placed = dict[str, tuple[tuple[int, ...], tuple[Segment, ...]]]


@dataclass(frozen=True)
class _Match:
    tensor: SourceTensor
    map: Map
    bid: int | None
    xid: int

    @property
    def sort_key(self) -> tuple[str, str]:
        return self.tensor.path.name, self.map.sort_name(self.bid, self.xid)


def place(arch: Architecture, config: Config, sources: Mapping[str, SourceTensor]) -> Placed:
    """Every GGUF tensor of the model, in the order of llama.cpp's converter.

    Raises ConfigError, TensorUnknown, TensorShape, TensorMissing.
    """
    dims = {name: value(config) for name, value in arch.dims.items()}
    if empty := [name for name, n in dims.items() if n < 1]:
        raise ConfigError(f"{config.where}: the model has no {empty[0]}")
    if "experts" in dims and not 1 <= config.get("num_experts_per_tok") <= dims["experts"]:
        raise ConfigError(
            f"{config.where}: {config.get('num_experts_per_tok')} experts are used of "
            f"{dims['experts']}"
        )
    totals = _total_rows(arch, dims)
    n_blocks: int = config.get("num_hidden_layers")
    placed: Placed = {}
    waiting: dict[str, list[Segment]] = {}  # tensors of which not all rows have arrived
    for m in sorted(_matches(arch, sources), key=lambda m: m.sort_key):
        _check(m, config, dims, n_blocks)
        names: dict[str, str] = {}  # role -> tensor that m adds rows to
        for piece in m.map.rows(dims, m.xid):
            name = names.setdefault(piece.role, _full_name(piece.role, m.bid))
            rows = waiting.setdefault(name, [])
            if name in placed or any(s.first_row == piece.first_row for s in rows):
                raise TensorUnknown(
                    f"tensor {m.tensor.name} is a second spelling of rows of {name}"
                )
            rows.append(
                Segment(m.tensor.name, piece.source_row, piece.first_row, piece.count, piece.order)
            )
        block = [_full_name(f"{role}.weight", m.bid) for role in arch.expert_order]
        together = block if set(block) & set(names.values()) else list(names.values())
        if all(sum(s.count for s in waiting.get(n, ())) == totals[_role(n)] for n in together):
            for n in together:
                segments = tuple(sorted(waiting.pop(n), key=lambda s: s.first_row))
                placed[n] = (_shape(n, totals[_role(n)], dims, segments, sources), segments)
    _check_nothing_missing(arch, config, dims, n_blocks, sources, placed)
    return placed


def _full_name(role: str, bid: int | None) -> str:
    return role if bid is None else f"blk.{bid}.{role}"


def _role(name: str) -> str:
    parsed = roles.parse(name)
    return parsed.role + parsed.suffix


def _total_rows(arch: Architecture, dims: Mapping[str, int]) -> dict[str, int]:
    """Rows of every role's tensor; each spelling of a tensor has to give the same."""
    out: dict[str, int] = {}
    for m in arch.maps:
        rows: dict[str, int] = {}
        for piece in m.rows(dims, 0):
            rows[piece.role] = rows.get(piece.role, 0) + piece.count
        for role, n in rows.items():
            n *= dims["experts"] if "{xid}" in m.source else 1
            if out.setdefault(role, n) != n:
                raise ConfigError(f"{arch.hf_names[0]}: {role} has {out[role]} or {n} rows")
    return out


def _matches(arch: Architecture, sources: Mapping[str, SourceTensor]) -> Iterator[_Match]:
    drops = [re.compile(d) for d in arch.drops]
    for t in sources.values():
        for m in arch.maps:
            if found := m.pattern.fullmatch(t.name):
                ids = {k: int(v) for k, v in found.groupdict().items()}
                yield _Match(t, m, ids.get("bid"), ids.get("xid", 0))
                break
        else:
            if not any(d.fullmatch(t.name) for d in drops):
                raise TensorUnknown(
                    f"{t.path}: tensor {t.name} has no place in {arch.hf_names[0]}; "
                    "is the checkpoint of another architecture?"
                )


def _check(m: _Match, config: Config, dims: Mapping[str, int], n_blocks: int) -> None:
    if m.bid is not None and m.bid >= n_blocks:
        raise TensorUnknown(
            f"tensor {m.tensor.name} is of layer {m.bid}; "
            f"{config.where} says num_hidden_layers {n_blocks}"
        )
    if "{xid}" in m.map.source and m.xid >= dims["experts"]:
        raise TensorUnknown(
            f"tensor {m.tensor.name} is of expert {m.xid}; "
            f"{config.where} says {dims['experts']} experts"
        )
    expected = tuple(dims[d] for d in m.map.shape)
    if m.tensor.shape != expected:
        raise TensorShape(
            f"tensor {m.tensor.name}: shape {list(m.tensor.shape)} found, {list(expected)} "
            f"expected ({' x '.join(m.map.shape)} of {config.where})"
        )


def _shape(
    name: str, rows: int, dims: Mapping[str, int], segments: tuple[Segment, ...],
    sources: Mapping[str, SourceTensor],
) -> tuple[int, ...]:  # fmt: skip
    source = sources[segments[0].source]
    if roles.parse(name).role.endswith("_exps"):
        return dims["experts"], rows // dims["experts"], source.shape[-1]
    return (rows,) if len(source.shape) == 1 else (rows, source.shape[-1])


def _check_nothing_missing(
    arch: Architecture, config: Config, dims: Mapping[str, int], n_blocks: int,
    sources: Mapping[str, SourceTensor], placed: Placed,
) -> None:  # fmt: skip
    tied = config.get("tie_word_embeddings", kind="BOOL", default=False)
    for m in arch.maps:
        if m.optional or (tied and m.source == "lm_head.weight"):
            continue
        for bid in range(n_blocks) if "{bid}" in m.source else (None,):
            for target in (_full_name(piece.role, bid) for piece in m.rows(dims, 0)):
                if target in placed or not (missing := _missing(arch, dims, bid, target, sources)):
                    continue
                experts = f" and {dims['experts']} experts" if "experts" in dims else ""
                raise TensorMissing(
                    f"tensor {missing[0]} is not in the checkpoint ({len(missing)} missing for "
                    f"{target}); {config.where} says {n_blocks} layers{experts}"
                )


def _missing(
    arch: Architecture, dims: Mapping[str, int], bid: int | None, target: str,
    sources: Mapping[str, SourceTensor],
) -> list[str]:  # fmt: skip
    """The source tensors that are missing for `target`, in the spelling that the checkpoint uses
    elsewhere or else misses the smallest part of."""
    spellings: list[tuple[bool, float, int, list[str]]] = []
    for m in arch.maps:
        if target in (_full_name(piece.role, bid) for piece in m.rows(dims, 0)):
            xids = range(dims["experts"] if "{xid}" in m.source else 1)
            names = [m.source.format(bid=bid, xid=x) for x in xids]
            missing = [name for name in names if name not in sources]
            unused = not any(m.pattern.fullmatch(name) for name in sources)
            spellings.append((unused, len(missing) / len(names), len(spellings), missing))
    return min(spellings)[-1]
