"""The search of IQ2 and IQ3 (`quant_types.iq_search`), 32 sub-blocks at a time, one a lane.

Scales, roundings and sums run over the lanes. What is off the grid is looked up lane by lane, with
the candidates of its list side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types import grids
from quant_types.iq_search import Search
from quant_types.lanes import positive_search
from quant_types.lanes.compile import (
    inner,
    take_bytes,
    take_floats,
    take_halfs,
    take_ints,
)
from quant_types.lanes.grid_tile import LANES, make_nearest
from quant_types.lanes.scalars import ONE, ZERO, clamped

assert positive_search.LANES == LANES
_STEP = 8  # weights of a lane in one pass of the sums
_HALF = np.float32(0.5)
_OFF = np.int32(1 << 16)  # added to a point that was not rounded to


class Work(NamedTuple):
    """What the search works in: `[length, LANES]`, `[groups, LANES]` and `[LANES]` arrays, flat."""

    x: np.ndarray  # float32 [length, LANES]: magnitudes
    w: np.ndarray  # float32 [length, LANES]: weight of each error
    root: np.ndarray  # float32 [length, LANES]: its square root
    q: np.ndarray  # float32 [length, LANES]: 2 * level + 1
    code: np.ndarray  # int32 [groups, LANES]
    point: np.ndarray  # int32 [groups, LANES]: of a try, plus `_OFF`
    best_point: np.ndarray  # int32 [groups, LANES]
    empty: np.ndarray  # int32 [LANES]: not zero for what counts as zero
    divisor: np.ndarray  # float32 [LANES]
    inverse: np.ndarray  # float32 [LANES]
    trial: np.ndarray  # float32 [LANES]: one over it
    scale: np.ndarray  # float32 [LANES]: the result
    best: np.ndarray  # float32 [LANES]
    sum_qx: np.ndarray  # float32 [LANES]
    sum_q2: np.ndarray  # float32 [LANES]
    refit: np.ndarray  # int32 [LANES]
    least: np.ndarray  # float32 [LIST]
    chunk: np.ndarray  # int32 [LIST]
    scratch: np.ndarray  # float32 [6 * LANES]


class Points(NamedTuple):
    """A grid in memory, as `quant_types.grids.Grid`, flat."""

    place: np.ndarray
    chunks: np.ndarray
    odd: np.ndarray
    points: np.ndarray
    near: np.ndarray


def make_points(name: str):
    """`points(address)`: the arrays of a grid."""
    grid = grids.grid(name)
    codes, odd = grid.place.size, grid.odd.size
    listed, near = grid.points.size, grid.near.size

    @inner
    def points(address):
        place, address = take_ints(address, codes)
        chunks, address = take_ints(address, codes)
        odd_values, address = take_bytes(address, odd)
        candidates, address = take_halfs(address, listed)
        values, address = take_bytes(address, near)
        return Points(place, chunks, odd_values, candidates, values)

    return points


def make_work(length: int, dim: int):
    """`work(memory)`: the arrays, and what is behind them."""
    size, groups = length * LANES, length // dim * LANES

    @inner
    def work(memory):
        x, memory = take_floats(memory, size)
        w, memory = take_floats(memory, size)
        root, memory = take_floats(memory, size)
        q, memory = take_floats(memory, size)
        code, memory = take_ints(memory, groups)
        point, memory = take_ints(memory, groups)
        best_point, memory = take_ints(memory, groups)
        empty, memory = take_ints(memory, LANES)
        divisor, memory = take_floats(memory, LANES)
        inverse, memory = take_floats(memory, LANES)
        trial, memory = take_floats(memory, LANES)
        scale, memory = take_floats(memory, LANES)
        best, memory = take_floats(memory, LANES)
        sum_qx, memory = take_floats(memory, LANES)
        sum_q2, memory = take_floats(memory, LANES)
        refit, memory = take_ints(memory, LANES)
        least, memory = take_floats(memory, grids.LIST)
        chunk, memory = take_ints(memory, grids.LIST)
        scratch, memory = take_floats(memory, 6 * LANES)
        found = Work(
            x, w, root, q, code, point, best_point, empty, divisor, inverse, trial, scale, best,
            sum_qx, sum_q2, refit, least, chunk, scratch,
        )  # fmt: skip
        return found, memory

    return work


def make_search(name: str, how: Search):
    """`search(work, points)`: fills `scale`, `best_point` and `empty` from `x` and `w`; False if
    errors overflow."""
    base, dim = grids.grid(name).base, grids.grid(name).dim
    length, groups = how.length, how.length // dim
    numerators = np.array(how.numerators(base), np.float32)
    top, top_float = np.int32(base - 1), np.float32(2 * base - 1)
    base_float, base_int = np.float32(base), np.int32(base)
    epsilon = np.float32(how.epsilon)
    least_squares = how.least_squares
    redo_all, redo_off = how.again == "all", how.again == "off"
    nearest = make_nearest(dim)
    if least_squares:
        first_scale = positive_search.make_search(length, base + 1)

    @inner
    def start(ws):
        """Divisors and scales before the first try, and what is empty."""
        for j in range(LANES):
            ws.best[j] = ws.x[j]
        for i in range(1, length):
            for j in range(LANES):
                v = ws.x[i * LANES + j]
                largest = ws.best[j]
                ws.best[j] = largest if largest > v else v
        for j in range(LANES):
            largest = ws.best[j]
            none = largest < epsilon if epsilon > ZERO else largest == ZERO
            ws.empty[j] = np.int32(1) if none else np.int32(0)
            ws.divisor[j] = largest
            ws.scale[j] = largest / top_float
        if least_squares:
            first_scale(ws.x, ws.w, ws.q, ws.scale, ws.scratch)
            for j in range(LANES):
                ws.divisor[j] = ws.scale[j] * base_float
                ws.empty[j] = np.int32(1) if ws.divisor[j] <= ZERO else ws.empty[j]
        for j in range(LANES):
            ws.best[j] = ZERO
        for g in range(groups * LANES):
            ws.best_point[g] = _OFF if redo_off else np.int32(0)
        for i in range(length * LANES):
            ws.root[i] = np.sqrt(ws.w[i])

    @inner
    def add_codes(ws):
        """Codes under INVERSE, and their levels as q."""
        for k in range(groups):
            for j in range(LANES):
                inverse = ws.inverse[j]
                code = np.int32(0)
                for i in range(dim - 1, -1, -1):
                    at = (k * dim + i) * LANES + j
                    level = clamped(_HALF * (inverse * ws.x[at] - ONE), np.int32(0), top)
                    ws.q[at] = np.float32(np.int32(np.int32(level + level) + np.int32(1)))
                    code = np.int32(np.int32(code * base_int) + level)
                ws.code[k * LANES + j] = code

    @inner
    def move(ws, points, k, j, scale):
        """The nearest point of a group off the grid, plus `_OFF`; negative if errors overflow."""
        code = ws.code[k * LANES + j]
        first = -1 - points.place[code]
        at = k * dim * LANES + j
        place = nearest(
            ws.x, ws.root, at, scale, points.near, first, points.chunks[code], ws.least, ws.chunk
        )
        if place < 0:
            return place
        return np.int32(np.int32(points.points[first * grids.LIST + place]) + _OFF)

    @inner
    def put(ws, points, k, j, point):
        """A point's levels as q."""
        for i in range(dim):
            ws.q[(k * dim + i) * LANES + j] = np.float32(points.odd[point * dim + i])

    @inner
    def add(ws):
        """Weighted sums of q."""
        for j in range(LANES):
            ws.sum_qx[j] = ZERO
            ws.sum_q2[j] = ZERO
        for r in range(0, length, _STEP):
            for j in range(LANES):
                sum_qx, sum_q2 = ws.sum_qx[j], ws.sum_q2[j]
                for i in range(_STEP):
                    at = (r + i) * LANES + j
                    q, w = ws.q[at], ws.w[at]
                    sum_qx += w * ws.x[at] * q
                    sum_q2 += w * q * q
                ws.sum_qx[j] = sum_qx
                ws.sum_q2[j] = sum_q2

    @inner
    def try_all(ws, points):
        for step in range(numerators.size):
            for j in range(LANES):
                inverse = numerators[step] / ws.divisor[j]
                ws.inverse[j] = inverse
                ws.trial[j] = ONE / inverse
            add_codes(ws)
            for k in range(groups):
                for j in range(LANES):
                    point = points.place[ws.code[k * LANES + j]]
                    if point < 0:
                        if ws.empty[j] != 0:
                            continue
                        point = move(ws, points, k, j, ws.trial[j])
                        if point < 0:
                            return False
                        put(ws, points, k, j, np.int32(point - _OFF))
                    ws.point[k * LANES + j] = point
            add(ws)
            for j in range(LANES):
                sum_qx, sum_q2, best = ws.sum_qx[j], ws.sum_q2[j], ws.best[j]
                scale = sum_qx / sum_q2
                better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
                ws.scale[j] = scale if better else ws.scale[j]
                ws.best[j] = scale * sum_qx if better else best
                ws.refit[j] = np.int32(1) if better else np.int32(0)
            for k in range(groups):
                for j in range(LANES):
                    at = k * LANES + j
                    better = ws.refit[j] != 0
                    ws.best_point[at] = ws.point[at] if better else ws.best_point[at]
        return True

    @inner
    def again(ws, points):
        """Groups rounded once more under the best scale, and the scale that fits them best."""
        for j in range(LANES):
            ws.inverse[j] = ONE / ws.scale[j]
            ws.refit[j] = 0
        for k in range(groups):
            for j in range(LANES):
                off = np.int32(1) if redo_all | (ws.best_point[k * LANES + j] >= _OFF) else np.int32(0)
                ws.refit[j] = np.int32(ws.refit[j] | off)
        for j in range(LANES):
            redo = (ws.empty[j] == 0) & (ws.scale[j] > ZERO)
            ws.refit[j] = ws.refit[j] if redo else np.int32(0)
        add_codes(ws)
        for k in range(groups):
            for j in range(LANES):
                point = ws.best_point[k * LANES + j]
                if ws.refit[j] != 0:
                    if redo_all | redo_off | (point >= _OFF):
                        point = points.place[ws.code[k * LANES + j]]
                        if point < 0:
                            point = move(ws, points, k, j, ws.scale[j])
                            if point < 0:
                                return False
                point = np.int32(point & np.int32(_OFF - 1))
                ws.best_point[k * LANES + j] = point
                put(ws, points, k, j, point)
        add(ws)
        fine = True
        for j in range(LANES):
            better = (ws.refit[j] != 0) & (ws.sum_q2[j] > ZERO)
            ws.scale[j] = ws.sum_qx[j] / ws.sum_q2[j] if better else ws.scale[j]
            if ws.empty[j] != 0:
                ws.scale[j] = ZERO
                for k in range(groups):
                    ws.best_point[k * LANES + j] = 0
            fine &= abs(ws.scale[j]) >= ZERO
        return fine

    @inner
    def search(ws, points):
        start(ws)
        return try_all(ws, points) and again(ws, points)

    return search
