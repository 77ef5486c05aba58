"""ggml `make_qp_quants`, one super-block's scales or minimums a lane."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import inner
from quant_types.lanes.k_blocks import TILE
from quant_types.lanes.scalars import ONE, ZERO, nearest_int
from quant_types.search import GROUP_MAX_EPS

_SCALES = 2 * TILE  # of a tile, then the minimums
_EPS = np.float32(GROUP_MAX_EPS)


def make_search(n: int, top: int, lanes: int = _SCALES):
    """The search for `n` values a lane with quants from 0 to `top`.

    `search(x, w, q, scale, t)`: values and weights `[n, lanes]` flat -> quants `[n, lanes]` as
    float32, wrapped as in a uint8, and scale `[lanes]`; `t` is scratch of `6 * lanes`.
    """
    top_int, top_float = np.int32(top), np.float32(top)
    steps = [step for step in range(-4, 5) if step]
    numerators = np.array(
        [np.float32(0.1) * np.float32(step) + top_float for step in steps], np.float32
    )
    trials = len(steps)
    MAX, INVERSE, TRIAL, ERROR, BEST, SCALE = (k * lanes for k in range(6))
    LX, L2, CHANGED = TRIAL, ERROR, SCALE

    @inner
    def bounded(v):
        i = nearest_int(v)
        return i if i < top_int else top_int

    @inner
    def wrapped(i):
        return np.float32(np.int32(i & np.int32(255)))

    @inner
    def search(x, w, q, scale, t):
        for b in range(lanes):
            t[MAX + b] = ZERO
        for j in range(n):
            for b in range(lanes):
                v = x[j * lanes + b]
                largest = t[MAX + b]
                t[MAX + b] = largest if largest > v else v  # lets go of a NaN, as C's MAX
        for b in range(lanes):
            t[INVERSE + b] = top_float / t[MAX + b]
            t[BEST + b] = ZERO
            t[SCALE + b] = ONE / t[INVERSE + b]
        for j in range(n):
            for b in range(lanes):
                k = j * lanes + b
                level = wrapped(nearest_int(t[INVERSE + b] * x[k]))
                rest = x[k] - t[SCALE + b] * level
                t[BEST + b] += w[k] * rest * rest
        for step in range(trials):
            for b in range(lanes):
                t[TRIAL + b] = numerators[step] / t[MAX + b]
                t[SCALE + b] = ONE / t[TRIAL + b]
                t[ERROR + b] = ZERO
            for j in range(n):
                for b in range(lanes):
                    k = j * lanes + b
                    level = np.float32(bounded(t[TRIAL + b] * x[k]))
                    rest = x[k] - t[SCALE + b] * level
                    t[ERROR + b] += w[k] * rest * rest
            for b in range(lanes):
                error, best = t[ERROR + b], t[BEST + b]
                trial, inverse = t[TRIAL + b], t[INVERSE + b]
                better = error < best
                t[BEST + b] = error if better else best
                t[INVERSE + b] = trial if better else inverse

        for b in range(lanes):
            t[LX + b] = ZERO
            t[L2 + b] = ZERO
        for j in range(n):
            for b in range(lanes):
                k = j * lanes + b
                i = bounded(t[INVERSE + b] * x[k])
                level = np.float32(i)
                t[LX + b] += w[k] * x[k] * level
                t[L2 + b] += w[k] * level * level
                q[k] = wrapped(i)
        for _ in range(5):
            for b in range(lanes):
                t[CHANGED + b] = ZERO
            for j in range(n):
                for b in range(lanes):
                    k = j * lanes + b
                    lx = t[LX + b]
                    l2 = t[L2 + b]
                    wk = w[k]
                    wx = wk * x[k]
                    old = q[k]
                    rest_lx = lx - wx * old
                    rest_l2 = l2 - wk * old * old
                    i = bounded(x[k] * rest_l2 / rest_lx)
                    level = np.float32(i)
                    new_lx = rest_lx + wx * level
                    new_l2 = rest_l2 + wk * level * level
                    better = (rest_lx > ZERO) & (rest_l2 > ZERO) & (level != old)
                    better = better & (new_lx * new_lx * l2 > lx * lx * new_l2)
                    level = wrapped(i)
                    q[k] = level if better else old
                    t[CHANGED + b] += ONE if better else ZERO
                    t[LX + b] = new_lx if better else lx
                    t[L2 + b] = new_l2 if better else l2
            changes = ZERO
            for b in range(lanes):
                changes += t[CHANGED + b]
            if changes == ZERO:
                break
        for b in range(lanes):
            zero = t[MAX + b] < _EPS
            value = t[LX + b] / t[L2 + b]
            value = value if t[L2 + b] > ZERO else ZERO
            scale[b] = ZERO if zero else value
            t[MAX + b] = ZERO if zero else ONE
        for j in range(n):
            for b in range(lanes):
                level = q[j * lanes + b]
                found = t[MAX + b] > ZERO
                q[j * lanes + b] = level if found else ZERO

    return search
