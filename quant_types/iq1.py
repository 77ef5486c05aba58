"""What IQ1_S and IQ1_M share: three values a weight, a scale and a shift a sub-block.

ggml `quantize_row_iq1_s_impl` and `quantize_row_iq1_m_impl`. A sub-block's weights are sorted, and
every way of cutting them into three is tried; then each group of 8 is moved to the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quant_types.arrays import (
    Array,
    clamp,
    contiguous,
    namespace,
    nearest_int,
    number,
    square_root,
    sum_rows,
)
from quant_types.errors import OutOfRange
from quant_types.grids import grid
from quant_types.iq_search import LARGEST, nearest_points, scaled, table
from quant_types.k_quants import QK_K

GRID = "IQ1_S"
DELTA = 0.125  # values are -1, 0 and 1, all of them this much higher or lower


class Split(NamedTuple):
    """The best way of cutting sorted weights into three, `[lanes]` each."""

    scale: Array  # float32
    first: Array  # int32: weights with the lowest value
    second: Array  # int32: weights with the lowest or middle value
    shifts: Array  # int32: which shifts, -1 where no way is good


class SubBlocks(NamedTuple):
    """Sub-blocks of whole blocks, before their scales are rounded; `n` of them a block."""

    scale: Array  # float32 [blocks, n]
    points: Array  # int32 [blocks, 32]
    shifts: Array  # int32 [blocks, n]: as in `Split`
    found: Array  # bool [blocks, n]: False for those that count as zero


def weights(x: Array, importance: Array | None) -> Array:
    """The weight of each error, float32 `[blocks, 256]`."""
    xp = namespace(x)
    if importance is None:
        return x * x
    columns = contiguous(xp.permute_dims(x, (1, 0)))
    sigma2 = 2 * sum_rows(columns * columns) / QK_K
    return importance * square_root(sigma2[:, None] + x * x)


def sorted_sums(x: Array, w: Array, order: Array) -> tuple[list[Array], list[Array]]:
    """Running sums of w * x and w in sorted order, from 0: `length + 1` of `[lanes]` each.

    Args:
        x, w: float32 `[length, lanes]`.
        order: `[length, lanes]`, as of argsort.
    """
    xp = namespace(x)
    sum_x, sum_w = [xp.zeros_like(x[0])], [xp.zeros_like(x[0])]
    wx = xp.take_along_axis(w * x, order, axis=0)
    w = xp.take_along_axis(w, order, axis=0)
    for j in range(x.shape[0]):
        sum_x.append(sum_x[-1] + wx[j])
        sum_w.append(sum_w[-1] + w[j])
    return sum_x, sum_w


# (x, w, order of x, largest magnitudes), of columns
Splitter = Callable[[Array, Array, Array, Array], Split]


class Best:
    """The best split so far, of those that are offered one after another."""

    def __init__(self, scale: Array) -> None:
        xp = namespace(scale)
        self.scale = scale
        self.score = xp.full_like(scale, -LARGEST)
        none = xp.full_like(scale, -1, dtype=xp.int32)
        self.split = Split(scale, none, none, none)

    def offer(self, sum_qx: Array, sum_q2: Array, first: int, second: int, shifts: int) -> None:
        xp = namespace(sum_qx)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > self.score * sum_q2)
        if not bool(xp.any(better)):
            return
        scale = sum_qx / sum_q2
        self.score = xp.where(better, scale * sum_qx, self.score)
        old = self.split
        self.split = Split(
            xp.where(better, scale, old.scale),
            *(
                xp.where(better, xp.full_like(was, new), was)
                for was, new in zip(old[1:], (first, second, shifts), strict=True)
            ),
        )


def shift_of(shifts: Array, half: int, halves: int) -> Array:
    """What the values of a half of a sub-block are higher by, of the code of its shifts."""
    xp = namespace(shifts)
    lower = shifts >> (halves - 1 - half) & 1
    return DELTA - 2 * DELTA * xp.astype(lower, xp.float32)


def quantize_sub_blocks(
    x: Array, w: Array, length: int, halves: int, epsilon: float, split: Splitter
) -> SubBlocks:
    """Scales, points and shifts.

    Args:
        x, w: float32 `[blocks, 256]`.
        length: weights in a sub-block.
        halves: parts of it that have a shift each; bit `halves - 1 - h` of `shifts` is set where
            part h is lower.
        epsilon: a sub-block whose largest magnitude is below it counts as zero.
        split: the format's.

    Raises:
        OutOfRange: an error of a sub-block is not a number: ggml then reads what it should not.
    """
    xp = namespace(x)
    x, w = (xp.reshape(a, (-1, length)) for a in (x, w))
    largest = xp.max(xp.abs(x), axis=1)
    used = xp.nonzero(~(largest < epsilon))[0]
    lanes = x.shape[0]
    scale = xp.zeros_like(largest)
    points = xp.zeros((lanes, length // 8), dtype=xp.int32, device=x.device)
    shifts = xp.zeros(lanes, dtype=xp.int32, device=x.device)
    found = xp.zeros(lanes, dtype=xp.bool, device=x.device)
    if used.shape[0]:
        columns, column_w = (contiguous(xp.permute_dims(a[used], (1, 0))) for a in (x, w))
        scale[used], points[used], shifts[used], found[used] = _search(
            columns, column_w, largest[used], halves, split
        )
    n = QK_K // length
    return SubBlocks(
        xp.reshape(scale, (-1, n)),
        xp.reshape(points, (-1, 32)),
        xp.reshape(shifts, (-1, n)),
        xp.reshape(found, (-1, n)),
    )


def _search(x: Array, w: Array, largest: Array, halves: int, split: Splitter) -> tuple[Array, ...]:
    """Scale, points `[lanes, groups]`, shifts and whether found, of columns `[length, lanes]`."""
    xp = namespace(x)
    length = x.shape[0]
    order = xp.argsort(x, axis=0, stable=True)
    scale, first, second, shifts = split(x, w, order, largest)
    found = shifts >= 0
    rank = xp.argsort(order, axis=0)
    level = xp.astype(rank >= first, xp.int32) + xp.astype(rank >= second, xp.int32)
    negative = scale < 0
    level = xp.where(negative, 2 - level, level)
    shifts = xp.where(negative, (1 << halves) - 1 - shifts, shifts)
    scale = xp.abs(scale)

    groups = length // 8
    shift = xp.stack([shift_of(shifts, g * halves // groups, halves) for g in range(groups)])
    level = xp.reshape(level, (groups, 8, -1))
    code = level[:, 0]
    for i in range(1, 8):
        code = code + level[:, i] * 3**i
    x_groups, w_groups = (
        contiguous(xp.permute_dims(xp.reshape(a, (groups, 8, -1)), (1, 0, 2))) for a in (x, w)
    )
    scales, wanted = (xp.broadcast_to(a, code.shape) for a in (scale, found))
    point, on_grid = nearest_points(grid(GRID), code, x_groups, w_groups, scales, wanted, shift)
    q = values(point, shift)
    sum_qx, sum_q2 = sum_rows(w * q * x), sum_rows(w * q * q)
    refit = ~xp.all(on_grid, axis=0) & (sum_qx > 0) & (sum_q2 > 0)
    scale = xp.where(refit, sum_qx / sum_q2, scale)
    zero = xp.zeros_like(scale)
    scale = xp.where(found, scale, zero)
    if not bool(xp.all(scale >= 0)):
        raise OutOfRange
    point = xp.where(found, point, xp.zeros_like(point))
    shifts = xp.where(found, shifts, xp.zeros_like(shifts))
    return scale, xp.permute_dims(point, (1, 0)), shifts, found


def values(point: Array, shift: Array) -> Array:
    """Points and shifts `[groups, lanes]` -> float32 `[8 * groups, lanes]`."""
    xp = namespace(point)
    ternary = table(grid(GRID).odd.astype(np.float32) * 0.5 - 1.5, point)
    q = xp.permute_dims(ternary[xp.astype(point, xp.int32)], (0, 2, 1)) + shift[:, None, :]
    return xp.reshape(q, (-1, point.shape[1]))


def dequantized(points: Array, shift: Array, scales: Array) -> Array:
    """Weights, float32 `[blocks, 256]`.

    Args:
        points: `[blocks, 32]`; shift: float32 `[blocks, 32]`; scales: float32 `[blocks, n]`.
    """
    xp = namespace(points)
    ternary = table(grid(GRID).odd.astype(np.float32) * 0.5 - 1.5, points)
    q = ternary[xp.astype(points, xp.int32)] + shift[:, :, None]
    return scaled(xp.reshape(q, (-1, QK_K)), scales)


def codes_of(scale: Array) -> tuple[Array, Array, Array]:
    """`[blocks, n]` -> the unit that makes the largest 15, 3-bit codes (odd values in it), and
    whether there is nothing but zeros."""
    xp = namespace(scale)
    largest = xp.max(scale, axis=1, keepdims=True)
    d = largest / number(15, scale)
    codes = clamp(nearest_int(0.5 * (number(1, scale) / d * scale - 1)), 0, 7)
    empty = largest == 0
    return d, xp.where(empty, xp.zeros_like(codes), codes), empty
