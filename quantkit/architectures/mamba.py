"""Mamba 2 layers inside hybrid models: rows, dimensions and keys. llama.cpp:
`conversion/mamba.py`, `conversion/granite.py`."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.architectures.rules import Config, Dim, Key, Map, edited, linear, whole


def mamba2(base: str, layers: str) -> tuple[Map, ...]:
    """The tensors of one layer below `base`."""
    return (
        Map(
            f"{base}.A_log",
            ("ssm_heads",),
            edited(whole("ssm_a", "ssm_heads", "one"), ("minus_exp",)),
            layers,
        ),
        Map(f"{base}.D", ("ssm_heads",), whole("ssm_d", "ssm_heads", "one"), layers),
        Map(f"{base}.dt_bias", ("ssm_heads",), whole("ssm_dt.bias"), layers),
        Map(
            f"{base}.conv1d.weight",
            ("conv", "one", "kernel"),
            whole("ssm_conv1d.weight", "conv", "kernel"),
            layers,
        ),
        Map(f"{base}.conv1d.bias", ("conv",), whole("ssm_conv1d.bias"), layers, optional=True),
        *linear(f"{base}.in_proj", ("ssm_in", "hidden"), "ssm_in", layers=layers, bias=False),
        *linear(f"{base}.out_proj", ("hidden", "inner"), "ssm_out", layers=layers, bias=False),
        Map(f"{base}.norm.weight", ("inner",), whole("ssm_norm.weight", "groups", "group"), layers),
    )


def mamba2_dims(heads: str, head: str, groups: str, state: str, kernel: str) -> dict[str, Dim]:
    """The dimensions of such layers, by what config.json calls their sizes."""

    def inner(c: Config) -> int:
        n: int = c.get(heads) * c.get(head)
        return n

    return {
        "ssm_heads": lambda c: c.get(heads),
        "groups": lambda c: c.get(groups),
        "group": lambda c: inner(c) // c.get(groups),
        "inner": inner,
        "kernel": lambda c: c.get(kernel),
        "conv": lambda c: inner(c) + 2 * c.get(groups) * c.get(state),
        "ssm_in": lambda c: 2 * (inner(c) + c.get(groups) * c.get(state)) + c.get(heads),
    }


def ssm_keys(heads: str, head: str, groups: str, state: str, kernel: str) -> tuple[Key, ...]:
    """Their keys, in the order of llama.cpp's GraniteHybridModel."""
    return (
        Key("{arch}.ssm.conv_kernel", kernel),
        Key("{arch}.ssm.state_size", state),
        Key("{arch}.ssm.group_count", groups),
        Key("{arch}.ssm.inner_size", lambda c: c.get(heads) * c.get(head)),
        Key("{arch}.ssm.time_step_rank", heads),
    )


def per_layer(key: str, name: str, where: Callable[[Config, int], bool]) -> Key:
    """A value of config.json for the layers of one kind, zero for the others."""

    def read(config: Config) -> list[int]:
        n = config.get(name)
        return [n if where(config, bid) else 0 for bid in range(config.blocks)]

    return Key("{arch}." + key, read)
