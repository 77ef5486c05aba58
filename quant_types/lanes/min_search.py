"""ggml `make_qkx2_quants` and `make_qkx3_quants`, 64 sub-blocks at a time, one a lane.

Everything is in one flat float32 workspace: `[sub_block, LANES]` arrays and `[LANES]` arrays at
constant offsets, so that LLVM sees that they do not overlap and turns the loops over lanes into
SIMD. Four vectors of lanes go through all steps before the next. All weights of a lane are added in
a row to a local: ggml's order, and no sum is loaded or stored on the way.

A level is stored half a row from where X and W, which are loaded next, have that lane in a page:
AMD's Zen 4 takes some pages for each other, and waits for the store.

What counts is instructions (`docs/formats.md` has them): the weights are there twice, so that a
difference and a product each take theirs from memory. Without importance levels that cannot leave
their range are not clamped; with it some lane's nearly always can, and all are.
"""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import either, inner, spliced, to_even, vector_width
from quant_types.lanes.k_blocks import LANES
from quant_types.lanes.scalars import ONE, ZERO, clamped
from quant_types.search import MinSteps

# Lanes that go through the steps together. With fewer, sums wait for one another; with more, AVX2's
# 32 KB of the nearest cache are left too small for what a search holds.
WIDTH = 4 * vector_width()
_STEP = 8  # weights of a lane in one loop that LLVM unrolls
INFINITE = np.float32(np.inf)
_HALF = np.float32(0.5)
_LIMIT = np.float32(4194303.0)  # nearest_int is a rounding up to here, bits beyond
# Bits: a level may be past the top, or below 0, or its rounding out of range; a lane is flat.
_INSIDE, _ABOVE, _BELOW, _OUTSIDE, _FLAT = (np.int32(bit) for bit in (0, 1, 2, 4, 8))

# Offsets in the workspace, in arrays of [32, LANES], then of [LANES].
X = 0  # weights
W = X + 32 * LANES  # weight of each error
Q = W + 32 * LANES + LANES // 2  # levels of the step
COPY = Q + 32 * LANES  # weights again
X_LOW = COPY + 32 * LANES  # smallest weight
HIGH = X_LOW + LANES  # largest weight
LOW = HIGH + LANES  # bottom of the range, the minimum negated; moves
START = LOW + LANES  # where it began
SCALE = START + LANES
BEST = SCALE + LANES  # smallest error so far
BEST_INVERSE = BEST + LANES  # where it was found
BEST_LOW = BEST_INVERSE + LANES
NEGATIVE = BEST_LOW + LANES  # the inverse negated: it multiplies `low - x`
SUM_W = NEGATIVE + LANES
SUM_X = SUM_W + LANES
SUM_L = SUM_X + LANES
SUM_L2 = SUM_L + LANES
SUM_XL = SUM_L2 + LANES
ERROR = SUM_XL + LANES
FLAT = ERROR + LANES  # not zero: the lane has one value, which is not positive
TRIED_SCALE = FLAT + LANES  # of the step
TRIED_LOW = TRIED_SCALE + LANES
BAR = TRIED_LOW + LANES  # the error that the step has to be below
SIZE = BAR + LANES


def _all_of(eight, length: int):
    """`eight(ws, k, *carried)` for all weights of a lane in order: five values that it hands on."""

    def double(half, rows: int):
        @spliced
        def both(ws, k, a, b, c, d, e):
            a, b, c, d, e = half(ws, k, a, b, c, d, e)
            return half(ws, k + rows * LANES, a, b, c, d, e)

        return both

    rows = _STEP
    while rows < length:
        eight = double(eight, rows)
        rows *= 2
    return eight


def make_search(length: int, steps: MinSteps, absolute: bool):
    """The search for sub-blocks of `length` weights, over the workspace.

    It reads X and W, and leaves SCALE, LOW, and BEST_INVERSE and BEST_LOW: the quants are
    `clamped(BEST_INVERSE * (x - BEST_LOW), 0, top)`. A flat lane gets SCALE 0 and BEST_INVERSE 0.
    """
    # One more than steps: the last is not used.
    negatives = -np.array([*steps.numerators(), steps.top], np.float32)
    count = len(negatives) - 1
    top = np.float32(steps.top)
    past_top = np.float32(steps.top) + _HALF  # rounds to more than the top: all tops are odd
    top_int = np.int32(steps.top)
    clamps_first = steps.clamps_first

    @inner
    def inside(v):
        return to_even(v)

    @inner
    def below_top(v):
        v = to_even(v)
        return v if v < top else top

    @inner
    def rounded(v):
        v = to_even(v)
        v = v if v < top else top
        return v if v > ZERO else ZERO

    @inner
    def by_bits(v):
        return np.float32(clamped(v, np.int32(0), top_int))

    @inner
    def bounded(v):
        """What it is if it is clamped before it is rounded, of a NaN 0: LLVM makes more of that."""
        v = to_even(v)
        v = v if v > ZERO else ZERO
        return v if v < top else top

    def make_add_levels(level):
        @spliced
        def eight(ws, k, negative, low, sum_l, sum_l2, sum_xl):
            for i in range(_STEP):
                at = k + i * LANES
                q = level((low - ws[COPY + at]) * negative)
                ws[Q + at] = q
                wl = q * ws[W + at]
                sum_l += wl
                sum_l2 += wl * q
                sum_xl += wl * ws[X + at]
            return negative, low, sum_l, sum_l2, sum_xl

        every = _all_of(eight, length)

        @inner
        def add_levels(ws):
            """Q, and its weighted sums."""
            for j in range(WIDTH):
                sums = every(ws, j, ws[NEGATIVE + j], ws[LOW + j], ZERO, ZERO, ZERO)
                _, _, ws[SUM_L + j], ws[SUM_L2 + j], ws[SUM_XL + j] = sums

        return add_levels

    @spliced
    def eight_errors(ws, k, scale, low, total, b, c):
        for i in range(_STEP):
            at = k + i * LANES
            v = scale * ws[Q + at] + low - ws[X + at]
            v = abs(v) if absolute else v * v
            total += v * ws[W + at]
        return scale, low, total, b, c

    @spliced
    def eight_ends(ws, k, low, high, sum_w, sum_x, c):
        for i in range(_STEP):
            at = k + i * LANES
            x = ws[X + at]
            w = ws[W + at]
            ws[COPY + at] = x
            low = x if x < low else low
            high = x if x > high else high
            sum_w += w
            sum_x += w * x
        return low, high, sum_w, sum_x, c

    errors, ends = _all_of(eight_errors, length), _all_of(eight_ends, length)
    add_inside, add_below_top = make_add_levels(inside), make_add_levels(below_top)
    add_bounded = make_add_levels(bounded)

    @spliced
    def beyond(negative, low, x_low, high):
        """Which bounds a lane's levels may pass: they grow with x, so two of them tell."""
        least = (low - x_low) * negative
        most = (low - high) * negative
        found = either(least >= -_HALF, _INSIDE, _BELOW)
        found = np.int32(found | either(most < past_top, _INSIDE, _ABOVE))
        found = np.int32(found | either(least > -_LIMIT, _INSIDE, _OUTSIDE))
        return np.int32(found | either(most < _LIMIT, _INSIDE, _OUTSIDE))

    @inner
    def start(ws):
        """What is known of the weights alone; which bounds the first levels may pass."""
        passed = _INSIDE
        for j in range(WIDTH):
            x = ws[X + j]
            x_low, high, sum_w, sum_x, _ = ends(ws, j, x, x, ZERO, ZERO, ZERO)
            low = either(x_low > ZERO, ZERO, x_low)
            flat = high <= low
            ws[FLAT + j] = either(flat, ONE, ZERO)
            passed = np.int32(passed | either(flat, _FLAT, _INSIDE))
            ws[START + j] = low
            # Whatever is found for a flat lane, it is in range.
            x_low, low = either(flat, ZERO, x_low), either(flat, ZERO, low)
            high = either(flat, ONE, high)
            ws[X_LOW + j] = x_low
            ws[HIGH + j] = high
            ws[SUM_W + j] = sum_w
            ws[SUM_X + j] = sum_x
            ws[LOW + j] = low
            ws[BEST_LOW + j] = low
            inverse = top / (high - low)
            ws[NEGATIVE + j] = -inverse
            # Out of range the first levels are zeros, of an infinite inverse: 0 says so.
            ws[BEST_INVERSE + j] = either(inverse < INFINITE, inverse, ZERO)
            ws[SCALE + j] = ONE / inverse
            passed = np.int32(passed | beyond(-inverse, low, x_low, high))
        return passed

    @inner
    def first_errors(ws, negative):
        """BEST of the first levels, and NEGATIVE of the next."""
        passed = _INSIDE
        for j in range(WIDTH):
            low, high = ws[LOW + j], ws[HIGH + j]
            _, _, total, _, _ = errors(ws, j, ws[SCALE + j], low, ZERO, ZERO, ZERO)
            ws[BEST + j] = total
            inverse = negative / (high - low)
            ws[NEGATIVE + j] = inverse
            if not clamps_first:
                found = beyond(inverse, low, ws[X_LOW + j], high)
                passed = np.int32(passed | found)
        return passed

    @spliced
    def fit(ws, j):
        """The scale and bottom that fit a step's levels best, and the error they have to be below.
        Where the bottom is above 0 the line goes through 0."""
        sum_w = ws[SUM_W + j]
        sum_x = ws[SUM_X + j]
        sum_l = ws[SUM_L + j]
        sum_l2 = ws[SUM_L2 + j]
        sum_xl = ws[SUM_XL + j]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_low > ZERO
        product = either(above, sum_xl, sum_w * sum_xl - sum_x * sum_l)
        new_scale = product / either(above, sum_l2, determinant)
        bar = either(determinant > ZERO, ws[BEST + j], -INFINITE)
        return new_scale, either(above, ZERO, new_low), bar

    @inner
    def fit_all(ws):
        """Errors wait for divisions: those of all lanes are under way before the first is summed.
        (Without importance, where bounds are looked for as well, it costs more than it saves.)"""
        for j in range(WIDTH):
            new_scale, new_low, bar = fit(ws, j)
            ws[TRIED_SCALE + j] = new_scale
            ws[TRIED_LOW + j] = new_low
            ws[BAR + j] = bar

    @inner
    def choose(ws, negative):
        """The best after a step, and NEGATIVE of the next; which bounds its levels may pass."""
        if clamps_first:
            fit_all(ws)
        passed = _INSIDE
        for j in range(WIDTH):
            if clamps_first:
                new_scale, new_low, bar = ws[TRIED_SCALE + j], ws[TRIED_LOW + j], ws[BAR + j]
            else:
                new_scale, new_low, bar = fit(ws, j)
            _, _, error, _, _ = errors(ws, j, new_scale, new_low, ZERO, ZERO, ZERO)
            best, scale, low = ws[BEST + j], ws[SCALE + j], ws[LOW + j]
            inverse, best_inverse = -ws[NEGATIVE + j], ws[BEST_INVERSE + j]
            best_low = ws[BEST_LOW + j]
            better = error < bar
            ws[BEST + j] = either(better, error, best)
            ws[SCALE + j] = either(better, new_scale, scale)
            ws[BEST_INVERSE + j] = either(better, inverse, best_inverse)
            # The quants are of the range before it moves.
            ws[BEST_LOW + j] = either(better, low, best_low)
            low = either(better, new_low, low)
            ws[LOW + j] = low
            high = ws[HIGH + j]
            inverse = negative / (high - low)
            ws[NEGATIVE + j] = inverse
            if not clamps_first:
                found = beyond(inverse, low, ws[X_LOW + j], high)
                passed = np.int32(passed | found)
        return passed

    @inner
    def flatten(ws):
        """Lanes of one value, which is not positive, have no scale."""
        for j in range(WIDTH):
            flat = ws[FLAT + j] != ZERO
            begin, scale, low = ws[START + j], ws[SCALE + j], ws[LOW + j]
            inverse, best_low = ws[BEST_INVERSE + j], ws[BEST_LOW + j]
            ws[SCALE + j] = either(flat, ZERO, scale)
            ws[LOW + j] = either(flat, begin, low)
            ws[BEST_INVERSE + j] = either(flat, ZERO, inverse)
            ws[BEST_LOW + j] = either(flat, ZERO, best_low)

    def make_pass(exact: bool):
        add_first = make_add_levels(by_bits if exact else rounded)

        @inner
        def run(ws):
            """Whether no rounding was out of range."""
            all_passed = start(ws)
            add_first(ws)
            passed = first_errors(ws, negatives[0])
            for step in range(count):
                all_passed = np.int32(all_passed | passed)
                if clamps_first:
                    add_bounded(ws)
                elif passed == _INSIDE:
                    add_inside(ws)
                elif passed == _ABOVE and not exact:
                    add_below_top(ws)
                else:
                    add_first(ws)
                passed = choose(ws, negatives[step + 1])
            if all_passed & _FLAT:
                flatten(ws)
            return all_passed & _OUTSIDE == 0

        return run

    fast, exact = make_pass(False), make_pass(True)

    @inner
    def search(ws):
        for first in range(0, LANES, WIDTH):
            part = ws[first:]
            if not fast(part):
                exact(part)

    return search
