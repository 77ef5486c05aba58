"""ggml `make_qx_quants`, 64 sub-blocks of 16 at a time, one a lane; see `min_search`."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import inner
from quant_types.lanes.scalars import ONE, ROUND, ZERO
from quant_types.search import GROUP_MAX_EPS

LANES = 64
LENGTH = 16
_STEP = 8
_EPS = np.float32(GROUP_MAX_EPS)

# Offsets in the workspace, in arrays of [16, LANES], then of [LANES].
X = 0  # weights
W = X + LENGTH * LANES  # weight of each error
WX = W + LENGTH * LANES  # their product
EXTREME = WX + LENGTH * LANES  # the weight of greatest magnitude
SCALE = EXTREME + LANES
BEST = SCALE + LANES
BEST_INVERSE = BEST + LANES
INVERSE = BEST_INVERSE + LANES
SUM_LX = INVERSE + LANES
SUM_L2 = SUM_LX + LANES
SIZE = SUM_L2 + LANES


def make_search(top: int):  # type: ignore[no-untyped-def]
    """The search with quants from -top to top - 1, over the workspace.

    It reads X and W, and leaves SCALE and BEST_INVERSE: the quants are
    `clamped(BEST_INVERSE * x, -top, top - 1)`. A lane of zeros gets SCALE 0 and BEST_INVERSE 0.
    """
    numerators = np.array(
        [-(np.float32(top) + np.float32(0.1) * np.float32(step)) for step in range(-9, 10)],
        np.float32,
    )
    low = np.float32(-top)
    round_high = np.float32(ROUND + np.float32(top - 1))

    @inner
    def add_levels(ws):
        """Weighted sums of the levels under INVERSE."""
        for j in range(LANES):
            ws[SUM_LX + j] = ZERO
            ws[SUM_L2 + j] = ZERO
        for r in range(LENGTH // _STEP):
            at = r * _STEP * LANES
            for j in range(LANES):
                sum_lx = ws[SUM_LX + j]
                sum_l2 = ws[SUM_L2 + j]
                inverse = ws[INVERSE + j]
                for i in range(_STEP):
                    k = at + i * LANES + j
                    # Within top + 1 (x is at most EXTREME), so rounding is one addition.
                    q = inverse * ws[X + k] + ROUND
                    q = q if q < round_high else round_high
                    q = q - ROUND
                    q = q if q > low else low
                    sum_lx += ws[WX + k] * q
                    sum_l2 += ws[W + k] * q * q
                ws[SUM_LX + j] = sum_lx
                ws[SUM_L2 + j] = sum_l2

    @inner
    def search(ws):
        for j in range(LANES):
            ws[EXTREME + j] = ZERO
        for i in range(LENGTH):
            for j in range(LANES):
                x = ws[X + i * LANES + j]
                ws[WX + i * LANES + j] = ws[W + i * LANES + j] * x
                extreme = ws[EXTREME + j]
                ws[EXTREME + j] = x if abs(x) > abs(extreme) else extreme
        for j in range(LANES):
            inverse = low / ws[EXTREME + j]
            ws[INVERSE + j] = inverse
            ws[BEST_INVERSE + j] = inverse
        add_levels(ws)
        for j in range(LANES):
            sum_lx = ws[SUM_LX + j]
            sum_l2 = ws[SUM_L2 + j]
            scale = ZERO if sum_l2 == ZERO else sum_lx / sum_l2
            ws[SCALE + j] = scale
            ws[BEST + j] = scale * sum_lx
        for step in range(19):
            if step == 9:  # the start
                continue
            for j in range(LANES):
                ws[INVERSE + j] = numerators[step] / ws[EXTREME + j]
            add_levels(ws)
            for j in range(LANES):
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
        for j in range(LANES):
            zero = abs(ws[EXTREME + j]) < _EPS
            ws[SCALE + j] = ZERO if zero else ws[SCALE + j]
            ws[BEST_INVERSE + j] = ZERO if zero else ws[BEST_INVERSE + j]

    return search
