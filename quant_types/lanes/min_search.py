"""ggml `make_qkx2_quants` and `make_qkx3_quants`, 64 sub-blocks at a time, one a lane.

Everything is in one flat float32 workspace: `[sub_block, LANES]` arrays and `[LANES]` arrays at
constant offsets, so that LLVM sees that they do not overlap and turns the loops over lanes into
SIMD. Eight weights of a lane are added in a row to a local: ggml's order, and an eighth of the
loads and stores of the sums.
"""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import either, inner
from quant_types.lanes.k_blocks import LANES
from quant_types.lanes.scalars import ONE, ROUND, ZERO, clamped
from quant_types.search import MinSteps

_STEP = 8  # weights of a lane in one pass of the inner loop
INFINITE = np.float32(np.inf)
_LIMIT = np.float32(4194303.0)  # nearest_int is a rounding up to here, bits beyond

# Offsets in the workspace, in arrays of [32, LANES], then of [LANES].
X = 0  # weights
W = X + 32 * LANES  # weight of each error
Q = W + 32 * LANES  # levels of the step
X_LOW = Q + 32 * LANES  # smallest weight
HIGH = X_LOW + LANES  # largest weight
LOW = HIGH + LANES  # bottom of the range, the minimum negated; moves
START = LOW + LANES  # where it began
SCALE = START + LANES
BEST = SCALE + LANES  # smallest error so far
BEST_INVERSE = BEST + LANES  # where it was found
BEST_LOW = BEST_INVERSE + LANES
INVERSE = BEST_LOW + LANES
NEW_SCALE = INVERSE + LANES
NEW_LOW = NEW_SCALE + LANES
DETERMINANT = NEW_LOW + LANES
SUM_W = DETERMINANT + LANES
SUM_X = SUM_W + LANES
SUM_L = SUM_X + LANES
SUM_L2 = SUM_L + LANES
SUM_XL = SUM_L2 + LANES
ERROR = SUM_XL + LANES
OUTSIDE = ERROR + LANES  # not zero: a rounding of the lane may be out of range
SIZE = OUTSIDE + LANES


def make_search(length: int, steps: MinSteps, absolute: bool):
    """The search for sub-blocks of `length` weights, over the workspace.

    It reads X and W, and leaves SCALE, LOW, and BEST_INVERSE and BEST_LOW: the quants are
    `clamped(BEST_INVERSE * (x - BEST_LOW), 0, top)`. A flat lane gets SCALE 0 and BEST_INVERSE 0.
    """
    numerators = np.array(steps.numerators(), np.float32)
    count = len(numerators)
    top = np.float32(steps.top)
    top_int = np.int32(steps.top)
    clamps_first = steps.clamps_first
    rounds = length // _STEP

    def make_level(exact: bool):
        @inner
        def rounded(v):
            v = (v + ROUND) - ROUND
            v = v if v < top else top
            return v if v > ZERO else ZERO

        @inner
        def by_bits(v):
            return np.float32(clamped(v, np.int32(0), top_int))

        return by_bits if exact else rounded

    @inner
    def bounded(v):
        """As if it were clamped before it is rounded: a NaN is 0."""
        v = v if v > ZERO else ZERO
        v = (v + ROUND) - ROUND
        return v if v < top else top

    def make_add_levels(level):
        @inner
        def add_levels(ws):
            """Q, and its weighted sums."""
            for j in range(LANES):
                ws[SUM_L + j] = ZERO
                ws[SUM_L2 + j] = ZERO
                ws[SUM_XL + j] = ZERO
            for r in range(rounds):
                at = r * _STEP * LANES
                for j in range(LANES):
                    sum_l = ws[SUM_L + j]
                    sum_l2 = ws[SUM_L2 + j]
                    sum_xl = ws[SUM_XL + j]
                    inverse = ws[INVERSE + j]
                    low = ws[LOW + j]
                    for i in range(_STEP):
                        k = at + i * LANES + j
                        x = ws[X + k]
                        q = level(inverse * (x - low))
                        ws[Q + k] = q
                        wl = ws[W + k] * q
                        sum_l += wl
                        sum_l2 += wl * q
                        sum_xl += wl * x
                    ws[SUM_L + j] = sum_l
                    ws[SUM_L2 + j] = sum_l2
                    ws[SUM_XL + j] = sum_xl

        return add_levels

    def make_pass(exact: bool):
        @inner
        def add_errors(ws):
            """ERROR of the levels in Q under NEW_SCALE and NEW_LOW."""
            for j in range(LANES):
                ws[ERROR + j] = ZERO
            for r in range(rounds):
                at = r * _STEP * LANES
                for j in range(LANES):
                    total = ws[ERROR + j]
                    scale = ws[NEW_SCALE + j]
                    low = ws[NEW_LOW + j]
                    for i in range(_STEP):
                        k = at + i * LANES + j
                        v = scale * ws[Q + k] + low - ws[X + k]
                        v = abs(v) if absolute else v * v
                        total += ws[W + k] * v
                    ws[ERROR + j] = total

        add_first = make_add_levels(make_level(exact))
        add_levels = make_add_levels(bounded) if clamps_first else add_first

        @inner
        def bound(ws):
            """Mark lanes where INVERSE and LOW may round out of range, NaN included."""
            for j in range(LANES):
                # Levels grow with x, so these two bound the lane's.
                least = ws[INVERSE + j] * (ws[X_LOW + j] - ws[LOW + j])
                most = ws[INVERSE + j] * (ws[HIGH + j] - ws[LOW + j])
                ok = ZERO if least > -_LIMIT else ONE
                ok = ok if most < _LIMIT else ONE
                ws[OUTSIDE + j] = ws[OUTSIDE + j] + ok

        @inner
        def run(ws):
            for j in range(LANES):
                ws[X_LOW + j] = ws[X + j]
                ws[HIGH + j] = ws[X + j]
                ws[SUM_W + j] = ZERO
                ws[SUM_X + j] = ZERO
                ws[OUTSIDE + j] = ZERO
            for r in range(rounds):
                at = r * _STEP * LANES
                for j in range(LANES):
                    low = ws[X_LOW + j]
                    high = ws[HIGH + j]
                    sum_w = ws[SUM_W + j]
                    sum_x = ws[SUM_X + j]
                    for i in range(_STEP):
                        k = at + i * LANES + j
                        x = ws[X + k]
                        w = ws[W + k]
                        low = x if x < low else low
                        high = x if x > high else high
                        sum_w += w
                        sum_x += w * x
                    ws[X_LOW + j] = low
                    ws[HIGH + j] = high
                    ws[SUM_W + j] = sum_w
                    ws[SUM_X + j] = sum_x
            for j in range(LANES):
                low = ws[X_LOW + j]
                low = ZERO if low > ZERO else low
                ws[LOW + j] = low
                ws[START + j] = low
                ws[BEST_LOW + j] = low
                ws[NEW_LOW + j] = low
                inverse = top / (ws[HIGH + j] - low)
                ws[INVERSE + j] = inverse
                # Out of range the first levels are zeros, of an infinite inverse: 0 says so.
                ws[BEST_INVERSE + j] = inverse if inverse < INFINITE else ZERO
                scale = ONE / inverse
                ws[SCALE + j] = scale
                ws[NEW_SCALE + j] = scale
            bound(ws)
            add_first(ws)
            add_errors(ws)
            for j in range(LANES):
                ws[BEST + j] = ws[ERROR + j]

            for step in range(count):
                numerator = numerators[step]
                for j in range(LANES):
                    ws[INVERSE + j] = numerator / (ws[HIGH + j] - ws[LOW + j])
                if not clamps_first:
                    bound(ws)
                add_levels(ws)
                for j in range(LANES):
                    sum_w = ws[SUM_W + j]
                    sum_x = ws[SUM_X + j]
                    sum_l = ws[SUM_L + j]
                    sum_l2 = ws[SUM_L2 + j]
                    sum_xl = ws[SUM_XL + j]
                    determinant = sum_w * sum_l2 - sum_l * sum_l
                    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
                    low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
                    through_zero = sum_xl / sum_l2
                    above = low > ZERO
                    ws[NEW_SCALE + j] = either(above, through_zero, scale)
                    ws[NEW_LOW + j] = either(above, ZERO, low)
                    ws[DETERMINANT + j] = determinant
                add_errors(ws)
                for j in range(LANES):
                    error = ws[ERROR + j]
                    best = ws[BEST + j]
                    scale, new_scale = ws[SCALE + j], ws[NEW_SCALE + j]
                    low, new_low = ws[LOW + j], ws[NEW_LOW + j]
                    inverse, best_inverse = ws[INVERSE + j], ws[BEST_INVERSE + j]
                    best_low = ws[BEST_LOW + j]
                    better = (ws[DETERMINANT + j] > ZERO) & (error < best)
                    ws[BEST + j] = either(better, error, best)
                    ws[SCALE + j] = either(better, new_scale, scale)
                    ws[BEST_INVERSE + j] = either(better, inverse, best_inverse)
                    # The quants are of the range before it moves.
                    ws[BEST_LOW + j] = either(better, low, best_low)
                    ws[LOW + j] = either(better, new_low, low)

            outside = ZERO
            for j in range(LANES):
                start, scale, low = ws[START + j], ws[SCALE + j], ws[LOW + j]
                inverse, best_low, odd = ws[BEST_INVERSE + j], ws[BEST_LOW + j], ws[OUTSIDE + j]
                flat = ws[HIGH + j] <= start
                ws[SCALE + j] = ZERO if flat else scale
                ws[LOW + j] = start if flat else low
                ws[BEST_INVERSE + j] = ZERO if flat else inverse
                ws[BEST_LOW + j] = ZERO if flat else best_low
                outside += ZERO if flat else odd
            return outside == ZERO

        return run

    fast, exact = make_pass(False), make_pass(True)

    @inner
    def search(ws):
        if not fast(ws):
            exact(ws)

    return search
