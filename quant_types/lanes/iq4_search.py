"""The search of IQ4_NL and IQ4_XS, 32 sub-blocks of 32 at a time, one a lane; see `min_search`.

From the first inverse scale tried to the last, a weight times it grows by 134 / 120, and no two
borders between values are so close. So a weight has one of two values in all tries, which are
looked up once: a try holds it against the border between them.
"""

from __future__ import annotations

import numpy as np

from quant_types.iq4 import TRIES, VALUES
from quant_types.lanes.compile import behind, either, inner
from quant_types.lanes.iq4_vectors import add_values, divide, first_inverse, look_up
from quant_types.lanes.scalars import ONE, ZERO, bits, from_bits
from quant_types.search import GROUP_MAX_EPS

SIDE = 32  # sub-blocks side by side
_STEP = 8
_SAME = np.int32(0)
_EPS = np.float32(GROUP_MAX_EPS)
_NUMERATORS = np.array([step + VALUES[0] for step in range(-TRIES, TRIES + 1)], np.float32)
_FOLLOWING = np.append(_NUMERATORS[1:], _NUMERATORS[-1])  # what the last try leaves is not used
_FIRST, _LAST = _NUMERATORS[0], _NUMERATORS[-1]

# Offsets in the workspace, in arrays of [32, SIDE], then of [SIDE].
X = 0  # weights
W = X + 32 * SIDE  # weight of each error
BORDER = W + 32 * SIDE  # between the two values of a weight
PRODUCT_BELOW = BORDER + 32 * SIDE  # w * q * x of the lower value: bits that differ from
PRODUCT = PRODUCT_BELOW + 32 * SIDE  # that of the upper one
SQUARE_BELOW = PRODUCT + 32 * SIDE  # w * q * q of the lower value, as such bits
SQUARE = W  # of the upper one, in place of the weights of errors
EXTREME = SQUARE_BELOW + 32 * SIDE  # the weight of greatest magnitude
LAST = EXTREME + SIDE  # inverse scale of the last try
INVERSE = LAST + SIDE
SUM_QX = INVERSE + SIDE
SUM_Q2 = SUM_QX + SIDE
BEST = SUM_Q2 + SIDE
LOW = BEST  # the smallest weight, while EXTREME is looked for
SIZE = BEST + SIDE


@inner
def _add_first(ws):
    """Weighted sums of the values under INVERSE, of all sixteen."""
    for j in range(SIDE):
        ws[SUM_QX + j] = ZERO
        ws[SUM_Q2 + j] = ZERO
    for k in range(0, 32 * SIDE, SIDE):
        add_values(
            behind(ws, X + k), behind(ws, W + k), behind(ws, INVERSE),
            behind(ws, SUM_QX), behind(ws, SUM_Q2),
        )  # fmt: skip


@inner
def _look_up(ws):
    """The two values that each weight has in the tries, as what they add to the sums; INVERSE of
    the first try."""
    divide(_FIRST, behind(ws, EXTREME), behind(ws, INVERSE))
    divide(_LAST, behind(ws, EXTREME), behind(ws, LAST))
    for k in range(0, 32 * SIDE, SIDE):
        look_up(
            behind(ws, X + k), behind(ws, W + k), behind(ws, INVERSE), behind(ws, LAST),
            behind(ws, BORDER + k), behind(ws, PRODUCT_BELOW + k), behind(ws, PRODUCT + k),
            behind(ws, SQUARE_BELOW + k), behind(ws, SQUARE + k),
        )  # fmt: skip


@inner
def _find_extremes(ws):
    """EXTREME, the first of equals: of the smallest and the largest weight one is it, unless they
    are as far from 0."""
    for j in range(SIDE):
        ws[LOW + j] = ZERO
        ws[EXTREME + j] = ZERO
    for r in range(0, 32, _STEP):
        for j in range(SIDE):
            low, high = ws[LOW + j], ws[EXTREME + j]
            for i in range(_STEP):
                x = ws[X + (r + i) * SIDE + j]
                low = x if x < low else low
                high = x if x > high else high
            ws[LOW + j] = low
            ws[EXTREME + j] = high
    ties = ZERO
    for j in range(SIDE):
        low, high = ws[LOW + j], ws[EXTREME + j]
        ws[EXTREME + j] = either(high < -low, low, high)
        ties += either((high == -low) & (high > ZERO), ONE, ZERO)
    if ties > ZERO:
        for j in range(SIDE):
            if ws[LOW + j] == -ws[EXTREME + j]:
                for i in range(32):
                    x = ws[X + i * SIDE + j]
                    if abs(x) == ws[EXTREME + j]:
                        ws[EXTREME + j] = x
                        break


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
                turned = either(lower, bits(ws[PRODUCT_BELOW + k]), _SAME)
                sum_qx += from_bits(bits(ws[PRODUCT + k]) ^ turned)
                turned = either(lower, bits(ws[SQUARE_BELOW + k]), _SAME)
                sum_q2 += from_bits(bits(ws[SQUARE + k]) ^ turned)
            ws[SUM_QX + j] = sum_qx
            ws[SUM_Q2 + j] = sum_q2


@inner
def search(ws, scales):
    """It reads X and W, and leaves float32 [SIDE], 0 for a lane of (almost) zeros."""
    _find_extremes(ws)
    first_inverse(behind(ws, EXTREME), behind(ws, INVERSE))
    _add_first(ws)
    for j in range(SIDE):
        sum_qx = ws[SUM_QX + j]
        sum_q2 = ws[SUM_Q2 + j]
        scale = sum_qx / sum_q2
        scale = either(sum_q2 > ZERO, scale, ZERO)
        scales[j] = scale
        ws[BEST + j] = scale * sum_qx
    _look_up(ws)
    for step in range(_FOLLOWING.size):
        _add(ws)
        following = _FOLLOWING[step]
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
            ws[INVERSE + j] = following / ws[EXTREME + j]
    for j in range(SIDE):
        zero = abs(ws[EXTREME + j]) < _EPS
        scales[j] = ZERO if zero else scales[j]
