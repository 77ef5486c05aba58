"""The words in which an architecture is written.

- `Key`: a value of config.json becomes a GGUF key.
- `Expect`: what the config has to say for the architecture to be the one we know.
- `Map`: a source tensor becomes rows of one or more GGUF tensors.
- `whole`, `stack`, `halves`, `rotary` ...: how its rows land there. Quantization is independent per
  row, so all of these are row maps; none touches a weight, and only `edited` changes one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from quantkit.architectures.config import REQUIRED
from quantkit.architectures.config import Config as Config
from quantkit.errors import ConfigError
from quantkit.source.segments import Edit, Segment


@dataclass(frozen=True)
class ConversionOptions:
    """What a person asks of a conversion; llama.cpp's converter options of the same names.

    `mtp`: "with" the layers that predict further tokens, "without" them, or "only" them.
    """

    mtp: str = "with"
    fuse_qkv: bool = False
    fuse_gate_up_exps: bool = False
    fp8_as_q8: bool = False


DEFAULTS = ConversionOptions()


@dataclass(frozen=True)
class Key:
    """One GGUF key. `{arch}` in its name is the GGUF architecture.

    `config` names the config keys it is read from, the first that is there; or computes the value
    (None leaves the key out). Without a `default`, a missing config key is an error; a default of
    None leaves the GGUF key out. A list becomes an array.
    """

    name: str
    config: str | tuple[str, ...] | Callable[[Config], Any]
    kind: str = "UINT32"
    default: Any = REQUIRED

    def read(self, config: Config) -> Any:
        """The value, or None for a key that is left out."""
        if callable(self.config):
            value = self.config(config)
            return None if value is None else config.typed(self.name, value, self.kind)
        names = (self.config,) if isinstance(self.config, str) else self.config
        return config.get(*names, kind=self.kind, default=self.default)


@dataclass(frozen=True)
class Expect:
    """What the config has to say: one of `values` where the key is present (any value if none are
    listed), and the key itself where it is `required`."""

    config: str
    values: tuple[Any, ...] = ()
    required: bool = False

    def check(self, config: Config) -> None:
        """Raises ConfigError."""
        value = config.values.get(self.config)
        if value is None and self.required:
            raise ConfigError(f"{config.where}: '{self.config}' is missing")
        if value is not None and self.values and value not in self.values:
            allowed = " or ".join(repr(v) for v in self.values)
            raise ConfigError(
                f"{config.where}: '{self.config}' is {value!r}; this architecture needs {allowed}"
            )

    def differs(self, config: Config) -> str | None:
        """A line for people where the config says something else than is computed with."""
        value = config.values.get(self.config)
        if value is None or value in self.values:
            return None
        return (
            f"'{self.config}' is {value!r}, and llama.cpp computes as if it were "
            f"{self.values[0]!r}: the GGUF file will answer differently from the checkpoint"
        )


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
            piece(role, (*lead, n, height), n, x * n, x * height, height=height,
                  column=i if interleave else i * n, step=k if interleave else 1)
            for x in range(prod(lead))
            for i, role in enumerate(roles)
        ]  # fmt: skip

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


@dataclass(frozen=True)
class Map:
    """A source tensor, by name, and what becomes of it.

    `source` may hold `{bid}` (the block), `{mid}` (a block that predicts further tokens, counted
    from 0) and `{xid}` (the expert, of as many as `experts` says). `shape` names the dimensions it
    must have. `layers` names the kind of layers that have it (`Architecture.layers`), all of them
    if empty. `like` is the older spelling of the same tensor: llama.cpp orders tensors by name, so
    a respelled checkpoint keeps the order of the spelling that its converter knows. `flat`: its
    weights count as rows of one.
    """

    source: str
    shape: tuple[str, ...]
    rows: RowMap
    layers: str = ""
    optional: bool = False
    like: str = ""
    flat: bool = False
    experts: str = "experts"

    @property
    def template(self) -> str:
        """The name with every number replaced by a star."""
        return re.sub(r"\{\w+\}", "*", self.source)

    @property
    def fields(self) -> list[str]:
        """What the stars stand for, in order."""
        return re.findall(r"\{(\w+)\}", self.source)


def linear(
    source: str, shape: tuple[str, ...], role: str, rows: Callable[..., RowMap] = whole,
    *args: str, layers: str = "", bias: bool | None = None,
) -> tuple[Map, ...]:  # fmt: skip
    """A weight and the bias beside it: `bias` says whether there is one, None that some
    checkpoints have it."""
    weight = Map(f"{source}.weight", shape, rows(f"{role}.weight", *args), layers)
    if bias is False:
        return (weight,)
    optional = bias is None
    return (
        weight,
        Map(f"{source}.bias", shape[:1], rows(f"{role}.bias", *args), layers, optional),
    )


def vector(source: str, role: str, dim: str = "hidden", layers: str = "", **more: Any) -> Map:
    """The weight of a norm: one axis, taken as it is."""
    return Map(f"{source}.weight", (dim,), whole(f"{role}.weight"), layers, **more)


Dim = Callable[[Config], "int | Sequence[int]"]


@dataclass(frozen=True)
class Architecture:
    """One or more `architectures` of config.json that convert alike. A variant is
    `dataclasses.replace(family, ...)`."""

    hf_names: tuple[str, ...]
    gguf_arch: str
    keys: tuple[Key, ...]  # after general.* and before general.file_type in the file
    late_keys: tuple[Key, ...]  # after it; a key of both keeps its place and takes this value
    expects: tuple[Expect, ...]
    dims: Mapping[str, Dim]  # a list holds one value a layer
    maps: tuple[Map, ...]
    # kinds of layers: name -> whether layer `bid` is one
    layers: Mapping[str, Callable[[Config, int], bool]] = field(default_factory=dict)
    # keys that come before general.*
    first_keys: tuple[Key, ...] = ()
    # another architecture of the same name in config.json, where the config asks for it
    variant: Callable[[Config], Architecture | None] = lambda config: None
    # roles in the order in which llama.cpp emits the stacked experts of a block
    expert_order: tuple[str, ...] = ()
    # names of source tensors that are dropped, as regular expressions
    drops: tuple[str, ...] = (r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq")
    # our name of a config key -> the family's own; `a.b` is key b of table a
    aliases: Mapping[str, str] = field(default_factory=dict)
    # what llama.cpp computes with, whatever config.json says: another value is told, not refused
    assumes: tuple[Expect, ...] = ()
    # what transformers assumes where config.json is silent
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # tensors computed from the config: name -> float32 values, or None where there is none
    computed: Mapping[str, Callable[[Config], Any]] = field(default_factory=dict)
    # how many layers after the last predict further tokens, and whether they are converted
    mtp: Callable[[Config], int] = lambda config: 0
    keeps_mtp: bool = False
    # tensors that may be joined: of "qkv", "gate_up_exps"
    fuses: tuple[str, ...] = ()
    # roles that llama.cpp's converter leaves in float32 elsewhere, and not here
    rounds: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := {m.layers for m in self.maps} - {"", *self.layers}:
            raise ValueError(f"{self.hf_names[0]}: unknown kind of layers {unknown}")
