"""The words in which an architecture is written.

- `Key`: a value of config.json becomes a GGUF key.
- `Expect`: what the config has to say for the architecture to be the one we know.
- `Map`: a source tensor becomes rows of one or more GGUF tensors.
- `stack`, `halves`, `rotary`: how its rows land there. Quantization is independent per row, so
  all of these are row maps; none touches a weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from quantkit.errors import ConfigError

_REQUIRED: Any = object()
_RANGES: dict[str, tuple[Any, Any]] = {"UINT32": (0, (1 << 32) - 1), "FLOAT32": (-3e38, 3e38)}
_KINDS: dict[str, tuple[type, ...]] = {
    "UINT32": (int,), "FLOAT32": (float, int), "BOOL": (bool,), "STRING": (str,),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """config.json, read strictly: what is asked for is there and of its kind, or it is an error."""

    values: Mapping[str, Any]
    where: str = "config.json"

    def get(self, *names: str, kind: str = "UINT32", default: Any = _REQUIRED) -> Any:
        """The first of `names` that is there and not null; `default` if none is.

        Raises ConfigError if none is there and no default is given, or the value is not `kind`.
        """
        name = next((n for n in names if self.values.get(n) is not None), None)
        if name is None:
            if default is _REQUIRED:
                raise ConfigError(f"{self.where}: '{names[0]}' is missing")
            return default
        return self.typed(name, self.values[name], kind)

    def typed(self, name: str, value: Any, kind: str) -> Any:
        """`value`, if it is of the GGUF type `kind`. Raises ConfigError."""
        allowed = _KINDS[kind]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ConfigError(f"{self.where}: '{name}' must be {kind.lower()}, not {value!r}")
        low, high = _RANGES.get(kind, (None, None))
        if low is not None and not low <= value <= high:
            raise ConfigError(f"{self.where}: '{name}' is {value}, which no model has")
        return value

    @cached_property
    def rope(self) -> dict[str, Any]:
        """The rotary settings under one name, as transformers 5 writes them (`rope_parameters`)."""
        found = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(found, dict):
            raise ConfigError(f"{self.where}: 'rope_scaling' must be a table, not {found!r}")
        rope = dict(found)
        if "type" in rope:
            rope.setdefault("rope_type", rope["type"])
        for name in ("rope_theta", "original_max_position_embeddings"):
            if self.values.get(name) is not None:
                rope.setdefault(name, self.values[name])
        return rope


@dataclass(frozen=True)
class Key:
    """One GGUF key. `{arch}` in its name is the GGUF architecture.

    `config` names the config keys it is read from, the first that is there; or computes the value
    (None leaves the key out). Without a `default`, a missing config key is an error; a default of
    None leaves the GGUF key out.
    """

    name: str
    config: str | tuple[str, ...] | Callable[[Config], Any]
    kind: str = "UINT32"
    default: Any = _REQUIRED

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


@dataclass(frozen=True)
class Piece:
    """Where part of a source tensor lands: `count` rows from `source_row` on become rows
    `first_row` ... of `role`. `order` permutes the rows inside each group of `len(order)`."""

    role: str
    source_row: int
    first_row: int
    count: int
    order: tuple[int, ...] = ()


# (dims, expert id or 0) -> pieces; rows are counted over all leading axes of the source
RowMap = Callable[[Mapping[str, int], int], Sequence[Piece]]


def whole(role: str, rows: str) -> RowMap:
    """All rows as they are. `rows` names the dimension that counts them."""
    return lambda dims, xid: (Piece(role, 0, 0, dims[rows]),)


def stack(role: str, rows: str) -> RowMap:
    """One expert's rows become its place in the stacked tensor."""
    return lambda dims, xid: (Piece(role, 0, xid * dims[rows], dims[rows]),)


def stacked(role: str, rows: str) -> RowMap:
    """All experts, stacked already."""
    return lambda dims, xid: (Piece(role, 0, 0, dims["experts"] * dims[rows]),)


def halves(first: str, second: str, rows: str) -> RowMap:
    """Each expert's rows are `first`'s, then `second`'s (a fused `gate_up_proj`)."""

    def pieces(dims: Mapping[str, int], xid: int) -> Sequence[Piece]:
        n = dims[rows]
        return [
            Piece(role, (2 * x + half) * n, x * n, n)
            for x in range(dims["experts"])
            for half, role in enumerate((first, second))
        ]

    return pieces


def rotary(role: str, rows: str, heads: str) -> RowMap:
    """Interleave the two halves of every head, from the order of transformers' rotary embedding
    to that of the original Llama (llama.cpp `LlamaModel.permute`)."""

    def pieces(dims: Mapping[str, int], xid: int) -> Sequence[Piece]:
        half = dims[rows] // dims[heads] // 2
        order = tuple(j * half + i for i in range(half) for j in range(2))
        return (Piece(role, 0, 0, dims[rows], order),)

    return pieces


@dataclass(frozen=True)
class Map:
    """A source tensor, by name, and what becomes of it.

    `source` may hold `{bid}` (the block) and `{xid}` (the expert). `shape` names the dimensions it
    must have. `like` is the older spelling of the same tensor: llama.cpp orders tensors by name, so
    a respelled checkpoint keeps the order of the spelling that its converter knows.
    """

    source: str
    shape: tuple[str, ...]
    rows: RowMap
    optional: bool = False
    like: str = ""
    pattern: re.Pattern[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        text = re.escape(self.source)
        text = text.replace(r"\{bid\}", r"(?P<bid>\d+)").replace(r"\{xid\}", r"(?P<xid>\d+)")
        object.__setattr__(self, "pattern", re.compile(text))

    def sort_name(self, bid: int | None, xid: int) -> str:
        """The name that decides the tensor's place in the file."""
        return (self.like or self.source).format(bid=bid, xid=xid)


def linear(
    source: str, shape: tuple[str, ...], rows: Callable[..., RowMap], role: str, *args: str
) -> tuple[Map, Map]:
    """A weight and the bias that some checkpoints have beside it."""
    return (
        Map(f"{source}.weight", shape, rows(f"{role}.weight", *args)),
        Map(f"{source}.bias", shape[:1], rows(f"{role}.bias", *args), optional=True),
    )


@dataclass(frozen=True)
class Architecture:
    """One or more `architectures` of config.json that convert alike. A variant is
    `dataclasses.replace(family, ...)`."""

    hf_names: tuple[str, ...]
    gguf_arch: str
    keys: tuple[Key, ...]  # before general.file_type in the file
    late_keys: tuple[Key, ...]  # after it
    expects: tuple[Expect, ...]
    dims: Mapping[str, Callable[[Config], int]]
    maps: tuple[Map, ...]
    # roles in the order in which llama.cpp emits the stacked experts of a block
    expert_order: tuple[str, ...] = ()
    # names of source tensors that are dropped, as regular expressions
    drops: tuple[str, ...] = (r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq")
    # what transformers assumes where config.json is silent
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # tensors computed from the config: name -> float32 values, or None where there is none
    computed: Mapping[str, Callable[[Config], Any]] = field(default_factory=dict)
