"""The search of IQ4_NL and IQ4_XS, 32 sub-blocks of 32 at a time, one a lane; see `min_search`.

From the first inverse scale tried to the last, a weight times it grows by 134 / 120, and no two
borders between values are so close. So a weight has one of two values in all tries, which are
looked up once: a try holds it against the border between them.
"""

from __future__ import annotations

import numpy as np

from quant_types.iq4 import BORDERS, TRIES, VALUES
from quant_types.lanes.compile import either, inner
from quant_types.lanes.scalars import ONE, ZERO
from quant_types.lanes.vectors import make_steps
from quant_types.search import GROUP_MAX_EPS

SIDE = 32  # sub-blocks side by side
_STEP = 8
_EPS = np.float32(GROUP_MAX_EPS)
_LOWEST = np.float32(VALUES[0])
_NUMERATORS = np.array([step + VALUES[0] for step in range(-TRIES, TRIES + 1)], np.float32)
_INFINITY = np.float32(np.inf)
_FIRST, _LAST = _NUMERATORS[0], _NUMERATORS[-1]

# Offsets in the workspace, in arrays of [32, SIDE], then of [SIDE].
X = 0  # weights
W = X + 32 * SIDE  # weight of each error
BORDER = W + 32 * SIDE  # between the two values of a weight
PRODUCT_BELOW = BORDER + 32 * SIDE  # w * q * x of the lower value
PRODUCT = PRODUCT_BELOW + 32 * SIDE  # of the upper one
SQUARE_BELOW = PRODUCT + 32 * SIDE  # w * q * q of the lower value
SQUARE = W  # of the upper one, in place of the weights of errors
EXTREME = SQUARE_BELOW + 32 * SIDE  # the weight of greatest magnitude
INVERSE = EXTREME + SIDE
SUM_QX = INVERSE + SIDE
SUM_Q2 = SUM_QX + SIDE
BEST = SUM_Q2 + SIDE
SIZE = BEST + SIDE

index = make_steps(BORDERS, range(16))  # `quant_types.iq4.nearest`, of any float32
_value = make_steps(BORDERS, VALUES)
_border = make_steps(BORDERS[1:], BORDERS)  # the last that is not above, or the first
_below = make_steps(BORDERS[1:], VALUES[:15])  # the value below that border


@inner
def _set(ws):
    """One value of each weight, that under INVERSE."""
    for i in range(32):
        for j in range(SIDE):
            k = i * SIDE + j
            x = ws[X + k]
            q = _value(ws[INVERSE + j] * x)
            wq = ws[W + k] * q
            ws[BORDER + k] = _INFINITY
            ws[PRODUCT_BELOW + k] = wq * x
            ws[SQUARE_BELOW + k] = wq * q


@inner
def _look_up(ws):
    """The two values that each weight has in the tries, as what they add to the sums."""
    for i in range(32):
        for j in range(SIDE):
            k = i * SIDE + j
            x = ws[X + k]
            w = ws[W + k]
            extreme = ws[EXTREME + j]
            one, other = _FIRST / extreme * x, _LAST / extreme * x
            highest = either(one > other, one, other)
            border, below = _border(highest), _below(highest)
            above = border + border - below
            ws[BORDER + k] = border
            ws[PRODUCT_BELOW + k] = w * below * x
            ws[PRODUCT + k] = w * above * x
            ws[SQUARE_BELOW + k] = w * below * below
            ws[SQUARE + k] = w * above * above


@inner
def _add(ws):
    """Weighted sums of the values under INVERSE."""
    for j in range(SIDE):
        ws[SUM_QX + j] = ZERO
        ws[SUM_Q2 + j] = ZERO
    for r in range(32 // _STEP):
        at = r * _STEP * SIDE
        for j in range(SIDE):
            sum_qx = ws[SUM_QX + j]
            sum_q2 = ws[SUM_Q2 + j]
            inverse = ws[INVERSE + j]
            for i in range(_STEP):
                k = at + i * SIDE + j
                lower = inverse * ws[X + k] < ws[BORDER + k]
                sum_qx += either(lower, ws[PRODUCT_BELOW + k], ws[PRODUCT + k])
                sum_q2 += either(lower, ws[SQUARE_BELOW + k], ws[SQUARE + k])
            ws[SUM_QX + j] = sum_qx
            ws[SUM_Q2 + j] = sum_q2


@inner
def search(ws, scales):
    """It reads X and W, and leaves float32 [SIDE], 0 for a lane of (almost) zeros."""
    for j in range(SIDE):
        ws[EXTREME + j] = ZERO
    for i in range(32):
        for j in range(SIDE):
            x = ws[X + i * SIDE + j]
            extreme = ws[EXTREME + j]
            ws[EXTREME + j] = x if abs(x) > abs(extreme) else extreme
    for j in range(SIDE):
        ws[INVERSE + j] = ONE / (-ws[EXTREME + j] / _LOWEST)
    _set(ws)
    _add(ws)
    for j in range(SIDE):
        sum_qx = ws[SUM_QX + j]
        sum_q2 = ws[SUM_Q2 + j]
        scale = sum_qx / sum_q2 if sum_q2 > ZERO else ZERO
        scales[j] = scale
        ws[BEST + j] = scale * sum_qx
    _look_up(ws)
    for step in range(_NUMERATORS.size):
        numerator = _NUMERATORS[step]
        for j in range(SIDE):
            ws[INVERSE + j] = numerator / ws[EXTREME + j]
        _add(ws)
        for j in range(SIDE):
            sum_qx = ws[SUM_QX + j]
            sum_q2 = ws[SUM_Q2 + j]
            best = ws[BEST + j]
            scale = sum_qx / sum_q2
            square = sum_qx * sum_qx
            bar = best * sum_q2
            bar = bar if sum_q2 > ZERO else square
            better = square > bar
            scales[j] = scale if better else scales[j]
            ws[BEST + j] = scale * sum_qx if better else best
    for j in range(SIDE):
        zero = abs(ws[EXTREME + j]) < _EPS
        scales[j] = ZERO if zero else scales[j]
