"""What IQ4_NL and IQ4_XS share: sixteen uneven values, and the search for a scale of them."""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, contiguous, namespace, number, square_root, sum_rows
from quant_types.k_quants import columns
from quant_types.search import GROUP_MAX_EPS, extreme_of

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TRIES = 7  # inverse scales that the search tries on either side

# Borders between values are whole or half: floor(2 * v) tells on which side of all of them v is.
BORDERS = tuple((VALUES[k] + VALUES[k + 1]) / 2 for k in range(15))
_LOWEST, _HIGHEST = 2 * VALUES[0], 2 * VALUES[-1]
_PLACES = np.arange(_LOWEST, _HIGHEST + 1)
_INDEX = np.searchsorted(2 * np.array(BORDERS), _PLACES, side="right").astype(np.uint8)
_LEVEL = np.array(VALUES, np.float32)[_INDEX]


def _place(v: Array) -> Array:
    """float32 -> int32 index into the tables; NaN is above all."""
    xp = namespace(v)
    place = xp.floor(v * 2)
    place = xp.where(place < _HIGHEST, place, xp.full_like(place, _HIGHEST))
    return xp.astype(xp.clip(place, _LOWEST, None), xp.int32) - _LOWEST


def _table(table: np.ndarray, like: Array) -> Array:
    return namespace(like).asarray(table, device=like.device)


def nearest(v: Array) -> Array:
    """ggml `best_index_int8`: float32 -> uint8 index of the nearest value, the upper of two."""
    return _table(_INDEX, v)[_place(v)]


def values_of(q: Array) -> Array:
    """uint8 indices -> float32 values."""
    xp = namespace(q)
    return _table(np.array(VALUES, np.float32), q)[xp.astype(q, xp.int32)]


def search(x: Array, w: Array) -> Array:
    """The scale that a sub-block's values are best in, by weighted squared error.

    ggml `quantize_row_iq4_nl_impl`, its loop over sub-blocks.

    Args:
        x: float32 `[32, lanes]`.
        w: float32 `[32, lanes]`, the weight of each error.

    Returns:
        float32 `[lanes]`; 0 for a lane of (almost) zeros.
    """
    xp = namespace(x)
    levels = _table(_LEVEL, x)
    extreme = extreme_of(x)

    def sums(inverse: Array) -> tuple[Array, Array]:
        q = levels[_place(x * inverse)]
        wq = w * q
        sum_qx = sum_rows(wq * x)
        wq *= q
        return sum_qx, sum_rows(wq)

    sum_qx, sum_q2 = sums(number(1, x) / (-extreme / number(VALUES[0], x)))
    scale = xp.where(sum_q2 > 0, sum_qx / sum_q2, xp.zeros_like(sum_q2))
    best = scale * sum_qx
    for step in range(-TRIES, TRIES + 1):
        sum_qx, sum_q2 = sums(number(step + VALUES[0], x) / extreme)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        new_scale = sum_qx / sum_q2
        scale = xp.where(better, new_scale, scale)
        best = xp.where(better, new_scale * sum_qx, best)
    return xp.where(xp.abs(extreme) < GROUP_MAX_EPS, xp.zeros_like(scale), scale)


def error_weights(x: Array, importance: Array | None) -> Array:
    """`[blocks, n]` -> the weight of each error in columns, `[32, lanes]`.

    x squared, or `importance * sqrt(sigma2 + x * x)` with twice the block's mean square as sigma2.
    """
    xp = namespace(x)
    if importance is None:
        return columns(x * x, 32)
    lanes = contiguous(xp.permute_dims(x, (1, 0)))
    sigma2 = sum_rows(lanes * lanes) * (2 / x.shape[1])
    return columns(importance * square_root(sigma2[:, None] + x * x), 32)


def inverse_of(d: Array) -> Array:
    """1 / d, and 0 for 0."""
    xp = namespace(d)
    return xp.where(d != 0, number(1, d) / d, xp.zeros_like(d))
