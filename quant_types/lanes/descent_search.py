"""ggml `make_q3_quants`, 64 sub-blocks of 16 at a time, one a lane; see `min_search`."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import inner
from quant_types.lanes.k_blocks import LANES
from quant_types.lanes.scalars import ONE, ZERO, clamped
from quant_types.lanes.symmetric_search import LENGTH
from quant_types.search import GROUP_MAX_EPS

_ROUNDS = 5
_EPS = np.float32(GROUP_MAX_EPS)

# Offsets in the workspace, in arrays of [16, LANES], then of [LANES].
X = 0  # weights
W = X + LENGTH * LANES  # weight of each error: x squared
WX = W + LENGTH * LANES
Q = WX + LENGTH * LANES  # quants; in the end 0 where the lane is zero, too
EXTREME = Q + LENGTH * LANES  # the weight of greatest magnitude
SUM_LX = EXTREME + LANES
SUM_L2 = SUM_LX + LANES
MOVES = SUM_L2 + LANES  # not zero: the lane moved in this round
SCALE = MOVES + LANES
SIZE = SCALE + LANES


def make_search(top: int):
    """`start(ws)` and `go_on(ws)`: the search with quants from -top to top - 1.

    `start` reads X and leaves SCALE and Q, as float32, after one round of moves, and MOVES for the
    lanes that moved in it: one in five. The others are done. `go_on` reads X, Q, SUM_LX and SUM_L2
    of lanes that are not, and leaves SCALE and Q. A lane of zeros gets SCALE 0 and Q -top.
    """
    low = np.float32(-top)
    low_int, high_int = np.int32(-top), np.int32(top - 1)

    @inner
    def move(ws):
        """One round."""
        for j in range(LANES):
            ws[MOVES + j] = ZERO
        for i in range(LENGTH):
            for j in range(LANES):
                k = i * LANES + j
                sum_lx = ws[SUM_LX + j]
                sum_l2 = ws[SUM_L2 + j]
                moves = ws[MOVES + j]
                w = ws[W + k]
                wx = ws[WX + k]
                old = ws[Q + k]
                lx = sum_lx - wx * old
                l2 = sum_l2 - w * old * old
                new = np.float32(clamped(ws[X + k] * l2 / lx, low_int, high_int))
                new_lx = lx + wx * new
                new_l2 = l2 + w * new * new
                better = (lx > ZERO) & (new != old) & (new_l2 > ZERO)
                better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
                ws[Q + k] = new if better else old
                ws[SUM_LX + j] = new_lx if better else sum_lx
                ws[SUM_L2 + j] = new_l2 if better else sum_l2
                ws[MOVES + j] = ONE if better else moves

    @inner
    def finish(ws):
        for j in range(LANES):
            scale = ws[SUM_LX + j] / ws[SUM_L2 + j]
            scale = scale if ws[SUM_L2 + j] > ZERO else ZERO
            zero = abs(ws[EXTREME + j]) < _EPS
            ws[SCALE + j] = ZERO if zero else scale
        for i in range(LENGTH):
            for j in range(LANES):
                k = Q + i * LANES + j
                level = ws[k]
                zero = abs(ws[EXTREME + j]) < _EPS
                ws[k] = low if zero else level

    @inner
    def start(ws):
        for j in range(LANES):
            ws[EXTREME + j] = ZERO
            ws[SUM_LX + j] = ZERO
            ws[SUM_L2 + j] = ZERO
        for i in range(LENGTH):
            for j in range(LANES):
                x = ws[X + i * LANES + j]
                extreme = ws[EXTREME + j]
                ws[EXTREME + j] = x if abs(x) > abs(extreme) else extreme
        for j in range(LANES):
            ws[SCALE + j] = low / ws[EXTREME + j]
        for i in range(LENGTH):
            for j in range(LANES):
                k = i * LANES + j
                x = ws[X + k]
                q = np.float32(clamped(ws[SCALE + j] * x, low_int, high_int))
                w = x * x
                wx = w * x
                ws[Q + k] = q
                ws[W + k] = w
                ws[WX + k] = wx
                ws[SUM_LX + j] += wx * q
                ws[SUM_L2 + j] += w * q * q
        move(ws)
        # A lane of zeros stays so, whatever its sums are.
        for j in range(LANES):
            moves = ws[MOVES + j]
            ws[MOVES + j] = ZERO if abs(ws[EXTREME + j]) < _EPS else moves
        finish(ws)

    @inner
    def go_on(ws):
        for j in range(LANES):
            ws[EXTREME + j] = ONE  # none is of zeros
        for k in range(LENGTH * LANES):
            x = ws[X + k]
            w = x * x
            ws[W + k] = w
            ws[WX + k] = w * x
        for _ in range(_ROUNDS - 1):
            move(ws)
            # A round without a move leaves what it found, so lanes that are done go along.
            moved = ZERO
            for j in range(LANES):
                moved += ws[MOVES + j]
            if moved == ZERO:
                break
        finish(ws)

    return start, go_on
