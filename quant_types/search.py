"""The scale searches of ggml in array code: one sub-block a column, `[sub_block, lanes]`.

Every lane does the operations of ggml's scalar loop in its order; a branch becomes a select, and a
sum runs down the rows (`sum_rows`). So the results are ggml's, bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.arrays import (
    Array,
    clamp,
    lowest,
    namespace,
    nearest_int,
    number,
    selector,
    sum_rows,
)

GROUP_MAX_EPS = 1e-15  # ggml's: a sub-block below it counts as zero
_ROUND = 12582912.0
_ROUND_LIMIT = 4194303.0  # nearest_int is a rounding up to here, bits beyond


class MinSteps(NamedTuple):
    """The inverse scales that a search with a minimum tries (ggml's `rmin`, `rdelta`, `nstep`)."""

    top: int  # the greatest quant
    start: float
    delta: float
    last: int  # steps are counted from 0 to this
    clamps_first: bool = False  # a step clamps before it rounds; matters out of range only

    def numerators(self) -> list[float]:
        """What to divide by the range, exact in float32: `start + delta * step + top` in order."""
        steps = np.arange(self.last + 1, dtype=np.float32)
        ladder = np.float32(self.start) + np.float32(self.delta) * steps
        return [float(value) for value in ladder + np.float32(self.top)]


def _bounded_levels(
    x: Array, inverse: Array, low: Array, x_low: Array, x_high: Array, top: int
) -> Array:
    """`nearest_int(clamp(inverse * (x - low), 0, top))` as float32, 0 for NaN: `[n, lanes]`."""
    xp = namespace(x)
    v = x - low
    v *= inverse
    ends = inverse * (x_high - low) - inverse * (x_low - low)
    if not bool(xp.all(xp.isfinite(ends))):  # else no NaN is between
        v = xp.where(v > 0, v, xp.zeros_like(v))
    v = clamp(v, 0.0, float(top))
    v += _ROUND
    v -= _ROUND
    return v


def _min_levels(
    x: Array, inverse: Array, low: Array, x_low: Array, x_high: Array, top: int
) -> Array:
    """`clamp(nearest_int(inverse * (x - low)), 0, top)` as float32, `[n, lanes]`."""
    xp = namespace(x)
    v = x - low
    v *= inverse
    # v grows with x, so the lane's extremes bound it: in range, rounding is one addition.
    inside = (inverse * (x_low - low) > -_ROUND_LIMIT) & (inverse * (x_high - low) < _ROUND_LIMIT)
    if bool(xp.all(inside)):
        v += _ROUND
        v -= _ROUND
        return clamp(v, 0.0, float(top))
    return xp.astype(clamp(nearest_int(v), 0, top), xp.float32)


def search_min(
    x: Array, w: Array, steps: MinSteps, absolute: bool = False
) -> tuple[Array, Array, Array]:
    """ggml `make_qkx2_quants` and `make_qkx3_quants`: `x ~ scale * q - minimum`, by weighted error.

    Args:
        x: float32 `[n, lanes]`.
        w: float32 `[n, lanes]`, the weight of each error.
        steps: the scales to try.
        absolute: weigh absolute instead of squared errors.

    Returns:
        scale float32 `[lanes]`; minimum float32 `[lanes]`, not negative; quants int32 `[n, lanes]`.
    """
    xp = namespace(x)
    top = steps.top

    def error(levels: Array, scale: Array, low: Array) -> Array:
        difference = levels * scale
        difference += low
        difference -= x
        difference = xp.abs(difference) if absolute else difference * difference
        difference *= w
        return sum_rows(difference)

    x_low, high = lowest(x, axis=0)[0], xp.max(x, axis=0)
    low = xp.where(x_low > 0, xp.zeros_like(x_low), x_low)
    flat = high <= low
    start = low
    sum_w, sum_x = sum_rows(w), sum_rows(w * x)

    inverse = number(top, x) / (high - low)
    scale = number(1, x) / inverse
    # Out of range the first levels are zeros, of an infinite inverse: 0 says so.
    best_inverse = xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))
    best_low = low
    step_levels = _bounded_levels if steps.clamps_first else _min_levels
    zeros = xp.zeros_like(scale)
    best = error(_min_levels(x, inverse, low, x_low, high, top), scale, low)
    for numerator in steps.numerators():
        inverse = number(numerator, x) / (high - low)
        levels = step_levels(x, inverse, low, x_low, high, top)
        wl = w * levels
        sum_l = sum_rows(wl)
        sum_xl = sum_rows(wl * x)
        wl *= levels
        sum_l2 = sum_rows(wl)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        choose = selector(new_low > 0)
        new_scale = choose(sum_xl / sum_l2, new_scale)
        new_low = choose(zeros, new_low)
        new_error = error(levels, new_scale, new_low)
        choose = selector((determinant > 0) & (new_error < best))
        best = choose(new_error, best)
        scale = choose(new_scale, scale)
        best_inverse = choose(inverse, best_inverse)
        best_low = choose(low, best_low)  # the quants are of the range before it moves
        low = choose(new_low, low)

    if steps.clamps_first:
        levels = _bounded_levels(x, best_inverse, best_low, x_low, high, top)
        quants = xp.astype(levels, xp.int32)
    else:
        quants = clamp(nearest_int((x - best_low) * best_inverse), 0, top)
    quants = xp.where(flat, xp.zeros_like(quants), quants)
    return xp.where(flat, zeros, scale), -xp.where(flat, start, low), quants


def extreme_of(x: Array) -> Array:
    """`[n, lanes]` -> the value of greatest magnitude with its sign; first of equals, no NaN."""
    xp = namespace(x)
    high, low = xp.max(x, axis=0), xp.min(x, axis=0)
    if bool(xp.any(xp.isnan(high))):
        return extreme_of(xp.where(xp.isnan(x), xp.zeros_like(x), x))
    extreme = selector(high > -low)(high, low)
    tie = (high == -low) & (high > 0)
    if bool(xp.any(tie)):
        part = x[:, tie]
        first = xp.argmax(xp.abs(part), axis=0)[None, :]
        extreme[tie] = xp.take_along_axis(part, first, axis=0)[0]
    return extreme


def search_symmetric(x: Array, w: Array, top: int) -> tuple[Array, Array]:
    """ggml `make_qx_quants` (its error type 1): `x ~ scale * q`, q from -top to top - 1.

    Args:
        x: float32 `[n, lanes]`; infinity and NaN, as overflow leaves in scales, are let through.
        w: float32 `[n, lanes]`, the weight of each squared error.
        top: half the number of levels.

    Returns:
        scale float32 `[lanes]` and quants int32 `[n, lanes]`. A lane of (almost) zeros has scale 0
        and quants -top.
    """
    xp = namespace(x)
    wx = w * x
    finite = bool(xp.all(xp.isfinite(x)))

    def sums(inverse: Array) -> tuple[Array, Array]:
        levels = x * inverse
        if finite:  # within top + 1, so rounding is one addition
            levels += _ROUND
            levels -= _ROUND
        else:
            levels = xp.astype(nearest_int(levels), xp.float32)
        levels = clamp(levels, float(-top), float(top - 1))
        sum_lx = sum_rows(wx * levels)
        weighted = w * levels
        weighted *= levels
        return sum_lx, sum_rows(weighted)

    extreme = extreme_of(x)
    best_inverse = number(-top, x) / extreme
    sum_lx, sum_l2 = sums(best_inverse)
    scale = xp.where(sum_l2 != 0, sum_lx / sum_l2, xp.zeros_like(sum_l2))
    best = scale * sum_lx
    for step in [*range(-9, 0), *range(1, 10)]:
        numerator = -float(np.float32(top) + np.float32(0.1) * np.float32(step))
        inverse = number(numerator, x) / extreme
        sum_lx, sum_l2 = sums(inverse)
        choose = selector((sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2))
        new_scale = sum_lx / sum_l2
        scale = choose(new_scale, scale)
        best = choose(new_scale * sum_lx, best)
        best_inverse = choose(inverse, best_inverse)
    quants = clamp(nearest_int(x * best_inverse), -top, top - 1)
    zero = xp.abs(extreme) < GROUP_MAX_EPS
    return (
        xp.where(zero, xp.zeros_like(scale), scale),
        xp.where(zero, xp.zeros_like(quants) - top, quants),
    )


def _as_uint8(i: Array) -> Array:
    """int32 -> what is left of it in a uint8, as int32."""
    return i & 255


def search_positive(x: Array, w: Array, top: int) -> tuple[Array, Array]:
    """ggml `make_qp_quants`: `x ~ scale * q` for values that are not negative, q from 0 to top.

    Args:
        x: float32 `[n, lanes]`.
        w: float32 `[n, lanes]`, the weight of each squared error.
        top: the greatest quant.

    Returns:
        scale float32 `[lanes]` and quants int32 `[n, lanes]`. A value that is negative after all
        wraps as in a uint8.
    """
    xp = namespace(x)
    n = x.shape[0]

    def as_float(i: Array) -> Array:
        return xp.astype(i, xp.float32)

    def error(scale: Array, quants: Array) -> Array:
        difference = x - scale * as_float(quants)
        return sum_rows(w * difference * difference)

    largest = xp.zeros_like(x[0])
    for i in range(n):  # C's MAX, which lets go of a NaN
        largest = xp.where(largest > x[i], largest, x[i])
    zero = largest < GROUP_MAX_EPS

    one = number(1, x)
    inverse = number(top, x) / largest
    best = error(one / inverse, _as_uint8(nearest_int(inverse * x)))
    for step in [*range(-4, 0), *range(1, 5)]:
        numerator = float(np.float32(0.1) * np.float32(step) + np.float32(top))
        new_inverse = number(numerator, x) / largest
        quants = clamp(nearest_int(new_inverse * x), None, top)
        new_error = error(one / new_inverse, quants)
        better = new_error < best
        best = xp.where(better, new_error, best)
        inverse = xp.where(better, new_inverse, inverse)

    quants = clamp(nearest_int(inverse * x), None, top)
    wx = w * x
    sum_lx = sum_rows(wx * as_float(quants))
    sum_l2 = sum_rows(w * as_float(quants) * as_float(quants))
    quants = _as_uint8(quants)
    for _ in range(5):
        changed = False
        for i in range(n):
            level = as_float(quants[i])
            lx = sum_lx - wx[i] * level
            l2 = sum_l2 - w[i] * level * level
            new = clamp(nearest_int(x[i] * l2 / lx), None, top)
            level = as_float(new)
            new_lx = lx + wx[i] * level
            new_l2 = l2 + w[i] * level * level
            better = (lx > 0) & (l2 > 0) & (new != quants[i])
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            if bool(xp.any(better)):
                changed = True
                quants[i] = xp.where(better, _as_uint8(new), quants[i])
                sum_lx = xp.where(better, new_lx, sum_lx)
                sum_l2 = xp.where(better, new_l2, sum_l2)
        if not changed:
            break
    scale = xp.where(sum_l2 > 0, sum_lx / sum_l2, xp.zeros_like(sum_l2))
    return (
        xp.where(zero, xp.zeros_like(scale), scale),
        xp.where(zero, xp.zeros_like(quants), quants),
    )


def search_descent(x: Array, top: int) -> tuple[Array, Array]:
    """ggml `make_q3_quants`: `x ~ scale * q`, q from -top to top - 1, one quant after another.

    Errors are weighed by x squared. ggml goes over a lane's quants in up to five rounds, until one
    changes nothing, and moves a quant where that raises the correlation. Between two moves of a
    lane nothing changes, so here a step makes the next move of every lane at once.

    Args:
        x: float32 `[n, lanes]`.
        top: half the number of levels.

    Returns:
        scale float32 `[lanes]` and quants int32 `[n, lanes]`; a lane of (almost) zeros has scale 0
        and quants -top.
    """
    xp = namespace(x)
    extreme = extreme_of(x)
    zero = xp.abs(extreme) < GROUP_MAX_EPS
    levels = xp.astype(clamp(nearest_int(number(-top, x) / extreme * x), -top, top - 1), xp.float32)
    w = x * x
    sum_lx = sum_rows(w * x * levels)
    sum_l2 = sum_rows(w * levels * levels)

    at = xp.arange(x.shape[0], device=x.device)[:, None]
    lanes = xp.arange(x.shape[1], device=x.device)  # those that may move again
    next_row = xp.zeros_like(lanes)
    rounds = xp.zeros_like(lanes)
    part, part_levels, lx, l2 = x, levels, sum_lx, sum_l2
    while lanes.shape[0]:
        new, new_lx, new_l2, better = _moves(part, part_levels, lx, l2, top)
        ahead = better & (at >= next_row)
        same_round = xp.any(ahead, axis=0)
        rounds = rounds + xp.astype(~same_round, rounds.dtype)
        better = xp.where(same_round, ahead, better)
        going = xp.nonzero(xp.any(better, axis=0) & (rounds < 5))[0]
        row = xp.argmax(xp.astype(better[:, going], xp.int8), axis=0)
        lanes, rounds, next_row = lanes[going], rounds[going], row + 1
        lx, l2 = new_lx[row, going], new_l2[row, going]
        levels[row, lanes] = new[row, going]
        sum_lx[lanes], sum_l2[lanes] = lx, l2
        part, part_levels = x[:, lanes], levels[:, lanes]

    scale = xp.where(sum_l2 > 0, sum_lx / sum_l2, xp.zeros_like(sum_l2))
    quants = xp.astype(levels, xp.int32)
    return (
        xp.where(zero, xp.zeros_like(scale), scale),
        xp.where(zero, xp.zeros_like(quants) - top, quants),
    )


def _moves(
    x: Array, levels: Array, sum_lx: Array, sum_l2: Array, top: int
) -> tuple[Array, Array, Array, Array]:
    """What moving each quant alone would give: the quant, both sums, and whether it is better."""
    xp = namespace(x)
    w = x * x
    wx = w * x
    lx = sum_lx - wx * levels
    l2 = w * levels
    l2 *= levels
    l2 = sum_l2 - l2
    best = x * l2
    best /= lx
    new = xp.astype(clamp(nearest_int(best), -top, top - 1), xp.float32)
    better = lx > 0
    better &= new != levels
    wx *= new
    wx += lx
    w *= new
    w *= new
    w += l2
    better &= w > 0
    better &= wx * wx * sum_l2 > sum_lx * sum_lx * w
    return new, wx, w, better
