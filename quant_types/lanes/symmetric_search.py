"""ggml `make_qx_quants`, many sub-blocks at a time, one a lane; see `min_search`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.lanes.compile import either, inner
from quant_types.lanes.scalars import ROUND, ZERO, clamped
from quant_types.search import GROUP_MAX_EPS

LENGTH = 16  # of the sub-blocks of K-quants
_STEP = 8
_EPS = np.float32(GROUP_MAX_EPS)


class Layout(NamedTuple):
    """Offsets in the workspace: arrays of `[length, lanes]`, then of `[lanes]`."""

    x: int  # weights
    w: int  # weight of each error
    wx: int  # their product
    extreme: int  # the weight of greatest magnitude
    scale: int
    best: int
    best_inverse: int
    inverse: int
    sum_lx: int
    sum_l2: int
    size: int


def layout(lanes: int, length: int = LENGTH) -> Layout:
    """The offsets for a number of lanes, each of `length` values."""
    wide = [k * length * lanes for k in range(3)]
    return Layout(*wide, *(3 * length * lanes + k * lanes for k in range(8)))


def make_search(top: int, lanes: int, finite: bool, length: int = LENGTH):
    """The search with quants from -top to top - 1, over a workspace in `layout`.

    It reads x and w, and leaves scale and best_inverse: the quants are
    `clamped(best_inverse * x, -top, top - 1)`. A lane of zeros gets 0 for both. x is finite, or
    else, as scales after an overflow, may not be.
    """
    steps = [step for step in range(-9, 10) if step]
    trials = len(steps)
    # One more than trials: the last inverse is not used.
    numerators = np.array(
        [-(np.float32(top) + np.float32(0.1) * np.float32(step)) for step in [*steps, 0]],
        np.float32,
    )
    low = np.float32(-top)
    high = np.float32(top - 1)
    low_int, high_int = np.int32(-top), np.int32(top - 1)
    X, W, WX, EXTREME, SCALE, BEST, BEST_INVERSE, INVERSE, SUM_LX, SUM_L2, _ = layout(lanes, length)

    @inner
    def rounded(v):
        # Within top + 1 (x is at most the extreme), so rounding is one addition.
        v = (v + ROUND) - ROUND
        v = v if v < high else high
        return v if v > low else low

    @inner
    def by_bits(v):
        return np.float32(clamped(v, low_int, high_int))

    level = rounded if finite else by_bits

    @inner
    def add_levels(ws):
        """Weighted sums of the levels under the inverse."""
        for j in range(lanes):
            ws[SUM_LX + j] = ZERO
            ws[SUM_L2 + j] = ZERO
        for r in range(length // _STEP):
            at = r * _STEP * lanes
            for j in range(lanes):
                sum_lx = ws[SUM_LX + j]
                sum_l2 = ws[SUM_L2 + j]
                inverse = ws[INVERSE + j]
                for i in range(_STEP):
                    k = at + i * lanes + j
                    q = level(inverse * ws[X + k])
                    sum_lx += ws[WX + k] * q
                    sum_l2 += ws[W + k] * q * q
                ws[SUM_LX + j] = sum_lx
                ws[SUM_L2 + j] = sum_l2

    @inner
    def search(ws):
        for j in range(lanes):
            ws[EXTREME + j] = ZERO
        for i in range(length):
            for j in range(lanes):
                x = ws[X + i * lanes + j]
                ws[WX + i * lanes + j] = ws[W + i * lanes + j] * x
                extreme = ws[EXTREME + j]
                ws[EXTREME + j] = x if abs(x) > abs(extreme) else extreme
        for j in range(lanes):
            inverse = low / ws[EXTREME + j]
            ws[INVERSE + j] = inverse
            ws[BEST_INVERSE + j] = inverse
        add_levels(ws)
        for j in range(lanes):
            sum_lx = ws[SUM_LX + j]
            sum_l2 = ws[SUM_L2 + j]
            scale = sum_lx / sum_l2
            scale = ZERO if sum_l2 == ZERO else scale
            ws[SCALE + j] = scale
            ws[BEST + j] = scale * sum_lx
            ws[INVERSE + j] = numerators[0] / ws[EXTREME + j]
        for step in range(trials):
            add_levels(ws)
            next_numerator = numerators[step + 1]
            for j in range(lanes):
                sum_lx = ws[SUM_LX + j]
                sum_l2 = ws[SUM_L2 + j]
                best = ws[BEST + j]
                old_scale = ws[SCALE + j]
                inverse = ws[INVERSE + j]
                best_inverse = ws[BEST_INVERSE + j]
                scale = sum_lx / sum_l2
                product = scale * sum_lx
                better = (sum_l2 > ZERO) & (sum_lx * sum_lx > best * sum_l2)
                ws[SCALE + j] = either(better, scale, old_scale)
                ws[BEST + j] = either(better, product, best)
                ws[BEST_INVERSE + j] = either(better, inverse, best_inverse)
                ws[INVERSE + j] = next_numerator / ws[EXTREME + j]
        for j in range(lanes):
            zero = abs(ws[EXTREME + j]) < _EPS
            scale = ws[SCALE + j]
            inverse = ws[BEST_INVERSE + j]
            ws[SCALE + j] = ZERO if zero else scale
            ws[BEST_INVERSE + j] = ZERO if zero else inverse

    return search
