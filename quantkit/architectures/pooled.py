"""Keys of embedding models and classifiers: how the outputs of all tokens become one. llama.cpp:
`conversion/base.py`, _try_set_pooling_type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantkit.architectures.rules import Config, Key
from quantkit.errors import ConfigError

# what modules.json and its files say, under a name that config.json cannot have
POOLING = "pooling of its outputs"


def _pooled(name: str, *values: str) -> Callable[[Config], Any]:
    """A word of the config that says how a classifier pools, of `values`."""

    def read(config: Config) -> Any:
        value = config.get(name, kind="STRING", default=None)
        if value is not None and value not in values:
            raise ConfigError(f"{config.where}: {name} {value!r} is not one that llama.cpp runs")
        return value

    return read


_CLASSIFIER_POOLS = _pooled("classifier_pooling", "mean", "cls")
POOLING_KEYS = (
    Key("{arch}.pooling_type", POOLING, default=None),
    Key("{arch}.classifier.pooling_type",
        lambda c: {"mean": 1, "cls": 2}.get(_CLASSIFIER_POOLS(c))),
    Key("{arch}.classifier.activation",
        _pooled("classifier_activation", "gelu", "silu", "tanh"), "STRING"),
)  # fmt: skip
