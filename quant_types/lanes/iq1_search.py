"""The search of IQ1_S and IQ1_M (`quant_types.iq1`), 16 sub-blocks at a time, one a lane."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.grids import LIST
from quant_types.iq1 import DELTA
from quant_types.lanes.compile import inner, start_of, take_floats, take_ints
from quant_types.lanes.grid_work import LANES
from quant_types.lanes.nearest import make_nearest_of_three
from quant_types.lanes.scalars import ONE, ZERO
from quant_types.lanes.splits import best_of_halves, best_of_thirds, make_places

_HIGHER, _LOWER = np.float32(DELTA), np.float32(-DELTA)
_HALF, _LOWEST = np.float32(0.5), np.float32(-1.5)
_nearest = make_nearest_of_three(8, LANES)


class Work(NamedTuple):
    """What the search works in: `[length, LANES]`, `[groups, LANES]` and `[LANES]` arrays, flat."""

    x: np.ndarray  # float32 [length, LANES]
    w: np.ndarray  # float32 [length, LANES]: weight of each error
    rank: np.ndarray  # int32 [length, LANES]: place among the sorted
    terms: np.ndarray  # float32 [length, 3, LANES]: the weighted error of each value
    sums: np.ndarray  # float32 [2 * halves, length + 1, LANES]: running sums of the sorted
    code: np.ndarray  # int32 [groups, LANES]
    point: np.ndarray  # int32 [groups, LANES]: the result
    shift: np.ndarray  # float32 [groups, LANES]
    scale: np.ndarray  # float32 [LANES]: the result
    shifts: np.ndarray  # int32 [LANES]: a bit for each half that is lower, the first the highest
    split: np.ndarray  # int32 [LANES]
    empty: np.ndarray  # int32 [LANES]: not zero for what counts as zero
    moved: np.ndarray  # int32 [LANES]: not zero where a group was off the grid


def make_search(length: int, halves: int, epsilon: float):
    """`work(memory)` for the arrays, and `search(work, points)`: fills `scale`, `point`, `shifts`
    and `empty` from `x` and `w`; False if errors overflow."""
    groups = length // 8
    part = length // halves
    per_half = groups // halves
    epsilon_float = np.float32(epsilon)
    span = (length + 1) * LANES
    best = best_of_thirds if halves == 1 else best_of_halves
    add_places = make_places(length)
    every = np.int32((1 << halves) - 1)

    @inner
    def work(memory):
        x, memory = take_floats(memory, length * LANES)
        w, memory = take_floats(memory, length * LANES)
        rank, memory = take_ints(memory, length * LANES)
        terms, memory = take_floats(memory, length * 3 * LANES)
        sums, memory = take_floats(memory, 2 * halves * span)
        code, memory = take_ints(memory, groups * LANES)
        point, memory = take_ints(memory, groups * LANES)
        shift, memory = take_floats(memory, groups * LANES)
        scale, memory = take_floats(memory, LANES)
        shifts, memory = take_ints(memory, LANES)
        split, memory = take_ints(memory, LANES)
        empty, memory = take_ints(memory, LANES)
        moved, memory = take_ints(memory, LANES)
        found = Work(
            x, w, rank, terms, sums, code, point, shift, scale, shifts, split, empty, moved
        )
        return found, memory

    @inner
    def add_ranks(ws):
        """Places among the sorted, the first of equals before the others."""
        add_places(start_of(ws.x), start_of(ws.rank))

    @inner
    def add_sums(ws):
        """Running sums in sorted order."""
        for i in range(2 * halves * span):
            ws.sums[i] = ZERO
        for i in range(length):
            half = i // part
            for j in range(LANES):
                k = i * LANES + j
                at = (ws.rank[k] + 1) * LANES + j
                ws.sums[half * span + at] = ws.w[k] * ws.x[k]
                ws.sums[(halves + half) * span + at] = ws.w[k]
        for a in range(2 * halves):
            for i in range(length):
                for j in range(LANES):
                    at = a * span + i * LANES + j
                    ws.sums[at + LANES] = ws.sums[at] + ws.sums[at + LANES]

    @inner
    def start(ws):
        for j in range(LANES):
            ws.scale[j] = abs(ws.x[j])
        for i in range(1, length):
            for j in range(LANES):
                v, largest = abs(ws.x[i * LANES + j]), ws.scale[j]
                ws.scale[j] = largest if largest > v else v
        for j in range(LANES):
            ws.empty[j] = np.int32(1) if ws.scale[j] < epsilon_float else np.int32(0)

    @inner
    def add_codes(ws):
        """Levels by the split, as codes, and the shift of each group."""
        for j in range(LANES):
            split = ws.split[j]
            negative = ws.scale[j] < ZERO
            shifts = np.int32(split & np.int32(3))
            shifts = np.int32(every - shifts) if negative else shifts
            ws.empty[j] = np.int32(1) if split < 0 else ws.empty[j]
            ws.shifts[j] = shifts if ws.empty[j] == 0 else np.int32(0)
            ws.moved[j] = np.int32(1) if negative else np.int32(0)
            ws.scale[j] = abs(ws.scale[j])
        for g in range(groups):
            bit = halves - 1 - g // per_half
            for j in range(LANES):
                split, negative = ws.split[j], ws.moved[j] != 0
                first, second = np.int32(split >> 8), np.int32(np.int32(split >> 2) & np.int32(63))
                code = np.int32(0)
                for i in range(7, -1, -1):
                    rank = ws.rank[(8 * g + i) * LANES + j]
                    above = np.int32(1) if rank >= first else np.int32(0)
                    above = np.int32(above + (np.int32(1) if rank >= second else np.int32(0)))
                    above = np.int32(np.int32(2) - above) if negative else above
                    code = np.int32(np.int32(code * np.int32(3)) + above)
                ws.code[g * LANES + j] = code
                lower = np.int32(np.int32(ws.shifts[j] >> bit) & np.int32(1)) != 0
                ws.shift[g * LANES + j] = _LOWER if lower else _HIGHER
        for j in range(LANES):
            ws.moved[j] = 0

    @inner
    def add_terms(ws):
        """Weighted errors of the values that each weight may get."""
        for g in range(groups):
            for i in range(8):
                k = 8 * g + i
                for j in range(LANES):
                    scale, shift = ws.scale[j], ws.shift[g * LANES + j]
                    x, w = ws.x[k * LANES + j], ws.w[k * LANES + j]
                    low = scale * (shift - ONE) - x
                    middle = scale * shift - x
                    high = scale * (shift + ONE) - x
                    ws.terms[3 * k * LANES + j] = w * low * low
                    ws.terms[(3 * k + 1) * LANES + j] = w * middle * middle
                    ws.terms[(3 * k + 2) * LANES + j] = w * high * high

    @inner
    def move(ws, points):
        """The points of all groups; False if errors overflow."""
        for g in range(groups):
            for j in range(LANES):
                at = g * LANES + j
                if ws.empty[j] != 0:
                    ws.point[at] = 0
                    continue
                code = ws.code[at]
                point = points.place[code]
                if point < 0:
                    first = np.int64(-1 - point)
                    place = _nearest(
                        start_of(ws.terms[24 * g * LANES + j :]),
                        start_of(points.near[first * (8 * LIST) :]), points.sizes[code],
                    )  # fmt: skip
                    if place < 0:
                        return False
                    point = np.int32(points.points[first * LIST + place])
                    ws.moved[j] = 1
                ws.point[at] = point
        return True

    @inner
    def refit(ws, points):
        """The scale that fits the points best, where they are not those of the split."""
        fine = True
        for j in range(LANES):
            if ws.empty[j] != 0:
                ws.scale[j] = ZERO
            elif ws.moved[j] != 0:
                sum_qx, sum_q2 = ZERO, ZERO
                for g in range(groups):
                    point = np.int64(ws.point[g * LANES + j])
                    for i in range(8):
                        k = (8 * g + i) * LANES + j
                        q = np.float32(points.odd[point * 8 + i]) * _HALF + _LOWEST
                        q = q + ws.shift[g * LANES + j]
                        sum_qx += ws.w[k] * q * ws.x[k]
                        sum_q2 += ws.w[k] * q * q
                if (sum_qx > ZERO) & (sum_q2 > ZERO):
                    ws.scale[j] = sum_qx / sum_q2
            fine &= ws.scale[j] >= ZERO
        return fine

    @inner
    def search(ws, points):
        start(ws)
        add_ranks(ws)
        add_sums(ws)
        best(start_of(ws.sums), start_of(ws.scale), start_of(ws.split))
        add_codes(ws)
        add_terms(ws)
        return move(ws, points) and refit(ws, points)

    return work, search
