"""A table of positions for images of another size: RADIO's, which llama.cpp's converter scales to
the one size that its runtime takes.

llama.cpp: `conversion/nemotron.py`, which leaves it to torch's bilinear interpolation with aligned
corners: in float32, with the products of the weights rounded, and each pixel fused into the sum.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from quantkit.source.codings.parts import Decoder, Rows, joined
from quantkit.source.tensors import Files, SourceTensor

_FUSED = (2, 3, 1, 0)  # of the four corners, the order in which torch adds them up


def resized(t: SourceTensor, side: int) -> SourceTensor:
    """A table `[1, n * n, width]` as one of `side` x `side` places; as it is where n is `side`."""
    _, places, width = t.shape
    if isqrt(places) == side:
        return t
    return joined(t.name, "F32", (1, side * side, width), "resized", t, settings=(side,))


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int, of: Decoder
) -> Rows:
    """Places `first` to `first + count`, float32 `[count, width]`; `of` reads the table."""
    (part,), side = t.parts, t.settings[0]
    places = isqrt(part.n_rows)
    low, high, near, far = _corners(places, side)
    out = np.empty((count, part.n_per_row), np.float32)
    for i in range(first // side, -(-(first + count) // side)):
        begin, end = max(i * side, first), min((i + 1) * side, first + count)
        columns = slice(begin - i * side, end - i * side)
        above, below = (
            of(files, part, int(at[i]) * places, places, 0, part.n_per_row).astype(np.float32)
            for at in (low, high)
        )
        left, right = low[columns], high[columns]
        corners = (above[left], above[right], below[left], below[right])
        shares = [(row * share[columns])[:, None] for row in (near[i], far[i])
                  for share in (near, far)]  # fmt: skip
        one, *others = _FUSED
        total = shares[one] * corners[one]
        for at in others:
            total = _fused(shares[at], corners[at], total)
        out[begin - first : end - first] = total
    return out[:, column : column + width]


def _corners(places: int, side: int) -> tuple[Rows, Rows, Rows, Rows]:
    """Of each of `side` places: the two that it lies between, and their shares, float32."""
    f32 = np.float32
    scale = f32(places - 1) / f32(side - 1) if side > 1 else f32(0)
    at = scale * np.arange(side, dtype=f32)
    low = np.minimum(at.astype(np.int64), places - 1)
    far = np.clip(at - low.astype(f32), f32(0), f32(1))
    return low, np.minimum(low + 1, places - 1), f32(1) - far, far


def _fused(a: Rows, b: Rows, c: Rows) -> Rows:
    """`a * b + c` in float32, rounded once."""
    out: Rows = (a.astype(np.float64) * b + c).astype(np.float32)
    return out
