"""The halves B of the changes of stacked experts, of which PEFT keeps the columns in turns: column
`k * experts + e` is column k of expert e (`ParamWrapper.get_delta_weight` of peft)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from quantkit.source.codings.parts import Decoder, Rows, joined
from quantkit.source.tensors import Files, SourceTensor

_CACHE = 1 << 19  # bytes that are turned at once


def by_expert(t: SourceTensor, experts: int) -> SourceTensor:
    """A matrix `[out, rank * experts]` as one of each expert, `[experts, out, rank]`."""
    shape = (experts, t.shape[0], t.shape[1] // experts)
    return joined(t.name, t.ggml.name, shape, "by_expert", t, settings=(experts,))


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int, of: Decoder
) -> Rows:
    """A rectangle of the matrices, one below another, in the dtype that `of` reads them in."""
    whole = _turned(files, t.parts[0], t.settings[0], of)
    return whole[first : first + count, column : column + width]


@lru_cache(maxsize=4)
def _turned(files: Files, t: SourceTensor, experts: int, of: Decoder) -> Rows:
    """All of a half, expert by expert `[experts * out, rank]`: it is small beside the experts."""
    whole = of(files, t, 0, t.n_rows, 0, t.n_per_row)
    rank, some = t.n_per_row // experts, max(_CACHE // t.row_bytes, 1)
    bits = whole.view(f"u{whole.dtype.itemsize}").reshape(t.n_rows, rank, experts)
    out = np.empty((experts, t.n_rows, rank), bits.dtype)
    for first in range(0, t.n_rows, some):
        rows = slice(first, first + some)
        out[:, rows] = bits[rows].transpose(2, 0, 1)
    turned: Rows = out.view(whole.dtype).reshape(-1, rank)
    return turned
