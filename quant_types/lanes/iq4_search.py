"""The search of IQ4_NL and IQ4_XS, 64 sub-blocks of 32 at a time, one a lane; see `min_search`."""

from __future__ import annotations

import numpy as np

from quant_types.iq4 import BORDERS, TRIES, VALUES
from quant_types.lanes.compile import inner
from quant_types.lanes.k_blocks import LANES
from quant_types.lanes.scalars import ONE, ZERO
from quant_types.search import GROUP_MAX_EPS

_STEP = 8
_EPS = np.float32(GROUP_MAX_EPS)
_VALUES = tuple(np.float32(value) for value in VALUES)
_BORDERS = tuple(np.float32(border) for border in BORDERS)
_NUMERATORS = np.array([step + VALUES[0] for step in range(-TRIES, TRIES + 1)], np.float32)

# Offsets in the workspace, in arrays of [32, LANES], then of [LANES].
X = 0  # weights
W = X + 32 * LANES  # weight of each error
EXTREME = W + 32 * LANES  # the weight of greatest magnitude
INVERSE = EXTREME + LANES
SUM_QX = INVERSE + LANES
SUM_Q2 = SUM_QX + LANES
SCALE = SUM_Q2 + LANES
BEST = SCALE + LANES
SIZE = BEST + LANES


@inner
def index(v):
    """`quant_types.iq4.nearest`: uint8."""
    i = np.int32(15)
    for k in range(15):
        i = i - np.int32(v < _BORDERS[k])
    return np.uint8(i)


@inner
def _value(v):
    """The nearest of `VALUES`; NaN gives the last."""
    q = _VALUES[0]
    for k in range(15):
        q = q if v < _BORDERS[k] else _VALUES[k + 1]
    return q


@inner
def _add(ws):
    """Weighted sums of the values under INVERSE."""
    for j in range(LANES):
        ws[SUM_QX + j] = ZERO
        ws[SUM_Q2 + j] = ZERO
    for r in range(32 // _STEP):
        at = r * _STEP * LANES
        for j in range(LANES):
            sum_qx = ws[SUM_QX + j]
            sum_q2 = ws[SUM_Q2 + j]
            inverse = ws[INVERSE + j]
            for i in range(_STEP):
                k = at + i * LANES + j
                x = ws[X + k]
                q = _value(inverse * x)
                wq = ws[W + k] * q
                sum_qx += wq * x
                sum_q2 += wq * q
            ws[SUM_QX + j] = sum_qx
            ws[SUM_Q2 + j] = sum_q2


@inner
def search(ws):
    """It reads X and W, and leaves SCALE, 0 for a lane of (almost) zeros."""
    for j in range(LANES):
        ws[EXTREME + j] = ZERO
    for i in range(32):
        for j in range(LANES):
            x = ws[X + i * LANES + j]
            extreme = ws[EXTREME + j]
            ws[EXTREME + j] = x if abs(x) > abs(extreme) else extreme
    for j in range(LANES):
        ws[INVERSE + j] = ONE / (-ws[EXTREME + j] / _VALUES[0])
    _add(ws)
    for j in range(LANES):
        sum_qx = ws[SUM_QX + j]
        sum_q2 = ws[SUM_Q2 + j]
        scale = sum_qx / sum_q2 if sum_q2 > ZERO else ZERO
        ws[SCALE + j] = scale
        ws[BEST + j] = scale * sum_qx
    for step in range(_NUMERATORS.size):
        numerator = _NUMERATORS[step]
        for j in range(LANES):
            ws[INVERSE + j] = numerator / ws[EXTREME + j]
        _add(ws)
        for j in range(LANES):
            sum_qx = ws[SUM_QX + j]
            sum_q2 = ws[SUM_Q2 + j]
            best = ws[BEST + j]
            scale = sum_qx / sum_q2
            square = sum_qx * sum_qx
            bar = best * sum_q2
            bar = bar if sum_q2 > ZERO else square
            better = square > bar
            ws[SCALE + j] = scale if better else ws[SCALE + j]
            ws[BEST + j] = scale * sum_qx if better else best
    for j in range(LANES):
        zero = abs(ws[EXTREME + j]) < _EPS
        ws[SCALE + j] = ZERO if zero else ws[SCALE + j]
