"""ggml `make_qx_quants`, many sub-blocks of 16 at a time, one a lane; see `min_search`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.lanes.compile import inner
from quant_types.lanes.scalars import ROUND, ZERO, clamped
from quant_types.search import GROUP_MAX_EPS

LENGTH = 16
_STEP = 8
_EPS = np.float32(GROUP_MAX_EPS)


class Layout(NamedTuple):
    """Offsets in the workspace: arrays of `[16, lanes]`, then of `[lanes]`."""

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


def layout(lanes: int) -> Layout:
    """The offsets for a number of lanes."""
    wide = [k * LENGTH * lanes for k in range(3)]
    return Layout(*wide, *(3 * LENGTH * lanes + k * lanes for k in range(8)))


def make_search(top: int, lanes: int, finite: bool):  # type: ignore[no-untyped-def]
    """The search with quants from -top to top - 1, over a workspace in `layout(lanes)`.

    It reads x and w, and leaves scale and best_inverse: the quants are
    `clamped(best_inverse * x, -top, top - 1)`. A lane of zeros gets 0 for both. x is finite, or
    else, as scales after an overflow, may not be.
    """
    numerators = np.array(
        [-(np.float32(top) + np.float32(0.1) * np.float32(step)) for step in range(-9, 10)],
        np.float32,
    )
    low = np.float32(-top)
    round_high = np.float32(ROUND + np.float32(top - 1))
    low_int, high_int = np.int32(-top), np.int32(top - 1)
    X, W, WX, EXTREME, SCALE, BEST, BEST_INVERSE, INVERSE, SUM_LX, SUM_L2, _ = layout(lanes)

    @inner
    def rounded(v):
        # Within top + 1 (x is at most the extreme), so rounding is one addition.
        v = v + ROUND
        v = v if v < round_high else round_high
        v = v - ROUND
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
        for r in range(LENGTH // _STEP):
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
        for i in range(LENGTH):
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
            scale = ZERO if sum_l2 == ZERO else sum_lx / sum_l2
            ws[SCALE + j] = scale
            ws[BEST + j] = scale * sum_lx
        for step in range(19):
            if step == 9:  # the start
                continue
            for j in range(lanes):
                ws[INVERSE + j] = numerators[step] / ws[EXTREME + j]
            add_levels(ws)
            for j in range(lanes):
                sum_lx = ws[SUM_LX + j]
                sum_l2 = ws[SUM_L2 + j]
                best = ws[BEST + j]
                scale = sum_lx / sum_l2
                square = sum_lx * sum_lx
                bar = best * sum_l2
                bar = bar if sum_l2 > ZERO else square
                better = square > bar
                ws[SCALE + j] = scale if better else ws[SCALE + j]
                ws[BEST + j] = scale * sum_lx if better else best
                ws[BEST_INVERSE + j] = ws[INVERSE + j] if better else ws[BEST_INVERSE + j]
        for j in range(lanes):
            zero = abs(ws[EXTREME + j]) < _EPS
            ws[SCALE + j] = ZERO if zero else ws[SCALE + j]
            ws[BEST_INVERSE + j] = ZERO if zero else ws[BEST_INVERSE + j]

    return search
