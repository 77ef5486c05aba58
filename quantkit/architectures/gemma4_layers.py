"""How the layers of a Gemma 4 differ: windows, sizes of heads, shared keys and values."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.architectures.rules import Config
from quantkit.errors import ConfigError


def slides(config: Config) -> list[bool]:
    types = config.find("layer_types")
    if not isinstance(types, list) or len(types) != config.layers:
        raise ConfigError(f"{config.where}: 'layer_types' must name each of {config.layers} layers")
    return [kind == "sliding_attention" for kind in types]


def shares(config: Config, bid: int) -> bool:
    """Whether a layer takes the keys and values of an earlier one."""
    return bool(bid >= config.layers - config.get("num_kv_shared_layers"))


def has_values(config: Config, bid: int) -> bool:
    """Whether a layer has values beside its keys."""
    alike = config.get("attention_k_eq_v", kind="BOOL", default=False)
    return not shares(config, bid) and (slides(config)[bid] or not alike)


def of_full_layers(config: Config, name: str, inner: str) -> int | None:
    """A size of the layers with full attention, if it is one of their own: `name`, or, as
    transformers 5.23 writes it, `inner` in its table of the layers that differ."""
    full = (bid for bid, slides in enumerate(slides(config)) if not slides)
    names = (name, *(f"per_layer_config.{bid}.{inner}" for bid in full))
    found: int | None = config.get(*names, default=None)
    return found


def head(config: Config) -> int:
    n: int = of_full_layers(config, "global_head_dim", "head_dim") or config.head_dim
    return n


def kv_heads(config: Config) -> int | None:
    return of_full_layers(config, "num_global_key_value_heads", "num_key_value_heads")


def _by_kind(full: Callable[[Config], int | None], name: str) -> Callable[[Config], list[int]]:
    """A size of every layer: `full`'s, or that which config.json calls `name`."""

    def read(config: Config) -> list[int]:
        values = full(config) or config.get(name), config.get(name)
        return [values[slides] for slides in slides(config)]

    return read


HEAD = _by_kind(head, "head_dim")
KV_HEADS = _by_kind(kv_heads, "num_key_value_heads")


def ffn(config: Config) -> list[int]:
    n = config.get("intermediate_size")
    wide = config.get("use_double_wide_mlp", kind="BOOL", default=False)
    return [2 * n if wide and shares(config, bid) else n for bid in range(config.layers)]
