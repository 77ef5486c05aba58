"""config.json, read strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quantkit.errors import ConfigError

MOST_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
CLASS = "class of transformers"  # in a config's values: the model_type of what reads it there
REQUIRED: Any = object()
_RANGES: dict[str, tuple[Any, Any]] = {"UINT32": (0, (1 << 32) - 1), "FLOAT32": (-3e38, 3e38),
                                      "UINT64": (0, (1 << 64) - 1)}  # fmt: skip
_KINDS: dict[str, tuple[type, ...]] = {
    "UINT32": (int,), "UINT64": (int,), "INT32": (int,), "FLOAT32": (float, int), "BOOL": (bool,),
    "STRING": (str,), "STRINGS": (list,),
    "NUMBER": (float, int),  # of an array that may hold infinity
}  # fmt: skip

_HEADS = ("num_attention_heads", "num_key_value_heads")

# names of rotary settings outside their table, the first that is there counts
_LOCAL_THETA = (
    "local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta",
    "rope_local_base_freq",
)  # fmt: skip
_ROPE_SPELLINGS = {
    "rope_theta": ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta",
                   "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rope_pct", "rope_percent"),
    "original_max_position_embeddings": ("original_max_position_embeddings",),
}  # fmt: skip


def brief(value: Any) -> str:
    """A value of a config as messages have it: a table or list by its kind alone."""
    if isinstance(value, dict | list):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    return repr(value)


def _check_rope(rope: Mapping[Any, Any], where: str, depth: int = 0) -> None:
    """What stands in the rotary settings: texts, numbers, and lists and tables of such, one in
    another twice. Raises ConfigError."""
    for name, value in rope.items():
        if isinstance(value, dict) and depth == 0:
            _check_rope(value, where, 1)
        elif name in ("type", "rope_type"):
            if not isinstance(value, str | None):
                raise ConfigError(f"{where}: '{name}' of the rotary settings is {brief(value)}")
        elif isinstance(value, list):
            if not all(_is_finite(n) for n in value):
                raise ConfigError(f"{where}: '{name}' is not a list of numbers")
        elif not isinstance(value, str | None) and not _is_finite(value):
            raise ConfigError(f"{where}: '{name}' of the rotary settings is {brief(value)}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 3e38


@dataclass(frozen=True)
class Config:
    """config.json, read strictly: what is asked for is there and of its kind, or it is an error.

    `mtp` is the number of layers after the last that predict further tokens and are converted.
    `wrapper` is the architecture of the whole, where the values are those of its text part and that
    has a name of its own.
    """

    values: Mapping[str, Any]
    where: str = "config.json"
    mtp: int = 0
    wrapper: str = ""

    def get(
        self, *names: str, kind: str = "UINT32", default: Any = REQUIRED, lists: bool = False
    ) -> Any:
        """The first of `names` that is there and not null; `default` if none is.

        `a.b` is key b of table a. Heads that are listed layer by layer, as many in each, are one
        number, but for `lists`, which are wanted as they stand. A flag that is null is False, as
        llama.cpp and transformers take it, where it has no default or True for one. Raises
        ConfigError if none is there and no default is given, or the value is not `kind`.
        """
        for name in names:
            if (value := self.find(name)) is not None:
                alike = not lists and name in _HEADS and isinstance(value, list) and value
                if alike and value == value[:1] * len(value):
                    value = value[0]
                return self.typed(name, value, kind)
        flag = kind == "BOOL" and (default is REQUIRED or default is True)
        if flag and any(self._says(name) for name in names):
            return False
        if default is REQUIRED:
            raise ConfigError(f"{self.where}: '{names[0]}' is missing")
        return default

    def _says(self, name: str) -> bool:
        """Whether a key stands there, also if it is null."""
        table, _, key = name.rpartition(".")
        values = self.find(table) if table else self.values
        return isinstance(values, Mapping) and key in values

    def find(self, name: str) -> Any:
        """Whatever stands under `name`, or None."""
        value: Any = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def one(self, *names: str, default: Any = REQUIRED) -> int:
        """As `get`, for a whole number that is one for the whole model. Raises ConfigError."""
        value = self.get(*names, default=default)
        if isinstance(value, list):
            raise ConfigError(f"{self.where}: '{names[0]}' must be one number, not {brief(value)}")
        found: int = value
        return found

    def typed(self, name: str, value: Any, kind: str) -> Any:
        """`value`, if it is of the GGUF type `kind`, or a list of such. Raises ConfigError."""
        if isinstance(value, list) and kind not in ("STRING", "STRINGS"):
            return [self.typed(name, item, kind) for item in value]
        allowed = _KINDS[kind]
        if kind == "BOOL" and isinstance(value, int) and value in (0, 1):
            return bool(value)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ConfigError(f"{self.where}: '{name}' must be {kind.lower()}, not {brief(value)}")
        low, high = _RANGES.get(kind, (None, None))
        if low is not None and not low <= value <= high:
            raise ConfigError(f"{self.where}: '{name}' is {value}, which no model has")
        return value

    @property
    def layers(self) -> int:
        """Layers of the model itself."""
        n = self.one("num_hidden_layers", "n_layers", "num_layers")
        if not 1 <= n <= MOST_LAYERS:
            raise ConfigError(f"{self.where}: 'num_hidden_layers' must be 1 to {MOST_LAYERS}")
        return n

    @property
    def blocks(self) -> int:
        """Layers that are converted: the model's, and those that predict further tokens."""
        return self.layers + self.mtp

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        n = self.one("head_dim", default=0)
        return n or self.one("hidden_size") // max(self.one("num_attention_heads"), 1)

    @cached_property
    def rope(self) -> dict[str, Any]:
        """The rotary settings in one table, as transformers 5 writes them (`rope_parameters`);
        where it has one for each kind of layer, those of full attention stand beside them."""
        found = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(found, dict):
            raise ConfigError(f"{self.where}: 'rope_scaling' must be a table, not {brief(found)}")
        _check_rope(found, self.where)
        rope = dict(found)
        if "full_attention" in rope or "sliding_attention" in rope:
            full = rope.get("full_attention")
            return {**full, **rope} if isinstance(full, dict) else rope
        if odd := [name for name, value in rope.items() if isinstance(value, dict)]:
            raise ConfigError(
                f"{self.where}: rotary settings of a kind that is not known: {', '.join(odd)}"
            )
        if (local := self.first(_LOCAL_THETA)) is not None:
            rope["sliding_attention"] = {"rope_theta": local}
        if "type" in rope:
            rope.setdefault("rope_type", rope["type"])
        for name, spellings in _ROPE_SPELLINGS.items():
            if (value := self.first(spellings)) is not None:
                rope.setdefault(name, value)
        return rope

    def first(self, names: Sequence[str]) -> Any:
        """What stands under the first of `names` that is there and not null, or None."""
        return next((v for n in names if (v := self.values.get(n)) is not None), None)
