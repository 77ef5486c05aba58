"""Numbers as people write them."""

from __future__ import annotations

from collections.abc import Iterable


def gigabytes(n: int) -> str:
    """Bytes as people write them on model cards: GB of 10^9, MB below one."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.2f} MB"


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def billions(n: int) -> str:
    """A count of weights as people say it: 46.7B, 8.1M."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= unit:
            return f"{n / unit:.1f}{name}"
    return str(n)
