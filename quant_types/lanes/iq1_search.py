"""The search of IQ1_S and IQ1_M (`quant_types.iq1`), 16 sub-blocks at a time, one a lane.

The best split is a scale's, mostly: then each weight has the value nearest to it, its errors grow
from there outwards, and a group off the grid is compared with its short list (`Grid`). In IQ1_M
two halves share the splits and not the shifts, so some weights are on the wrong side of a border;
their groups are compared with the whole list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.grids import LIST, SIZE, SIZE_BITS
from quant_types.iq1 import DELTA
from quant_types.lanes.compile import (
    behind,
    either,
    inner,
    peek,
    start_of,
    take_floats,
    take_ints,
)
from quant_types.lanes.grid_work import LANES
from quant_types.lanes.iq1_terms import make_fit, make_levels
from quant_types.lanes.nearest import make_nearest_of_three
from quant_types.lanes.scalars import ZERO
from quant_types.lanes.sorted_sums import make_places, make_running_sums, make_sort
from quant_types.lanes.split_bar import make_bar
from quant_types.lanes.splits import (
    best_of_halves,
    best_of_thirds,
    make_reach,
    reach_rows,
)

_HIGHER, _LOWER = np.float32(DELTA), np.float32(-DELTA)
_nearest = make_nearest_of_three(8, LANES)


class Work(NamedTuple):
    """What the search works in: `[length, LANES]`, `[groups, LANES]` and `[LANES]` arrays, flat."""

    x: np.ndarray  # float32 [length, LANES]
    w: np.ndarray  # float32 [length, LANES]: weight of each error
    rank: np.ndarray  # int32 [length, LANES]: place among the sorted
    terms: np.ndarray  # float32 [length, 3, LANES]: the weighted error of each value
    pairs: np.ndarray  # float32 [length, LANES, 2]: as for `sorted_sums`, like the next three
    offsets: np.ndarray  # int32 [length, LANES]
    ordered: np.ndarray  # float32 [halves, length, LANES, 2]
    sums: np.ndarray  # float32 [2 * halves, length + 1, LANES]: running sums of the sorted
    reach: np.ndarray  # float32 [rows, LANES]: as for `splits`, like the next two
    bar: np.ndarray  # float32 [3, LANES]
    score: np.ndarray  # float32 [LANES]
    largest: np.ndarray  # float32 [LANES]: greatest magnitude
    fitted: np.ndarray  # float32 [2, LANES]: sums of w * q * x and of w * q * q
    code: np.ndarray  # int32 [groups, LANES]
    clear: np.ndarray  # int32 [groups, LANES]: not zero where the short list is enough
    cell: np.ndarray  # int32 [groups, LANES]: the result, points as `Grid.packed` has them
    shift: np.ndarray  # float32 [groups, LANES]
    scale: np.ndarray  # float32 [LANES]: the result
    shifts: np.ndarray  # int32 [LANES]: a bit for each half that is lower, the first the highest
    split: np.ndarray  # int32 [LANES]
    empty: np.ndarray  # int32 [LANES]: not zero for what counts as zero
    moved: np.ndarray  # int32 [LANES]: not zero where a group was off the grid


def make_search(length: int, halves: int, epsilon: float):
    """`work(memory)` for the arrays, and `search(work, points)`: fills `scale`, `cell`, `shifts`
    and `empty` from `x` and `w`; False if errors overflow."""
    groups = length // 8
    per_half = groups // halves
    epsilon_float = np.float32(epsilon)
    best = best_of_thirds if halves == 1 else best_of_halves
    add_places, sort = make_places(length), make_sort(length, halves)
    add_levels, fit = make_levels(groups), make_fit(groups)
    add_up, add_reach = make_running_sums(length, halves), make_reach(length, halves)
    bar = make_bar(length, halves, epsilon)
    every = np.int32((1 << halves) - 1)
    rows = reach_rows(length, halves)

    @inner
    def work(memory):
        x, memory = take_floats(memory, length * LANES)
        w, memory = take_floats(memory, length * LANES)
        rank, memory = take_ints(memory, length * LANES)
        terms, memory = take_floats(memory, length * 3 * LANES)
        pairs, memory = take_floats(memory, length * LANES * 2)
        offsets, memory = take_ints(memory, length * LANES)
        ordered, memory = take_floats(memory, halves * length * LANES * 2)
        sums, memory = take_floats(memory, 2 * halves * (length + 1) * LANES)
        reach, memory = take_floats(memory, rows * LANES)
        least, memory = take_floats(memory, 3 * LANES)
        score, memory = take_floats(memory, LANES)
        largest, memory = take_floats(memory, LANES)
        fitted, memory = take_floats(memory, 2 * LANES)
        code, memory = take_ints(memory, groups * LANES)
        clear, memory = take_ints(memory, groups * LANES)
        cell, memory = take_ints(memory, groups * LANES)
        shift, memory = take_floats(memory, groups * LANES)
        scale, memory = take_floats(memory, LANES)
        shifts, memory = take_ints(memory, LANES)
        split, memory = take_ints(memory, LANES)
        empty, memory = take_ints(memory, LANES)
        moved, memory = take_ints(memory, LANES)
        found = Work(
            x, w, rank, terms, pairs, offsets, ordered, sums, reach, least, score,
            largest, fitted, code, clear, cell, shift, scale, shifts, split, empty, moved,
        )  # fmt: skip
        return found, memory

    @inner
    def cut(ws):
        """The best split of each lane, and its scale."""
        x, w, rank, ordered = (
            start_of(ws.x),
            start_of(ws.w),
            start_of(ws.rank),
            start_of(ws.ordered),
        )
        sums, reach, least = start_of(ws.sums), start_of(ws.reach), start_of(ws.bar)
        add_places(x, rank)
        sort(x, w, rank, start_of(ws.pairs), start_of(ws.offsets), ordered)
        add_up(ordered, sums)
        all_count = bar(x, w, start_of(ws.largest), least)
        add_reach(sums, least, reach)
        for j in range(LANES):
            ws.scale[j] = ws.largest[j]
        best(
            sums, reach, least, all_count, start_of(ws.scale), start_of(ws.score),
            start_of(ws.split),
        )  # fmt: skip

    @inner
    def add_codes(ws):
        """Levels by the split, as codes, and the shift of each group."""
        for j in range(LANES):
            split = ws.split[j]
            negative = ws.scale[j] < ZERO
            shifts = np.int32(split & np.int32(3))
            shifts = np.int32(every - shifts) if negative else shifts
            none = (split < 0) | (ws.largest[j] < epsilon_float)
            ws.empty[j] = np.int32(1) if none else np.int32(0)
            ws.shifts[j] = shifts if ws.empty[j] == 0 else np.int32(0)
            ws.moved[j] = np.int32(1) if negative else np.int32(0)
            ws.scale[j] = abs(ws.scale[j])
        for g in range(groups):
            bit = halves - 1 - g // per_half
            for j in range(LANES):
                lower = np.int32(np.int32(ws.shifts[j] >> bit) & np.int32(1)) != 0
                ws.shift[g * LANES + j] = _LOWER if lower else _HIGHER
        add_levels(
            start_of(ws.x), start_of(ws.w), start_of(ws.rank), start_of(ws.split),
            start_of(ws.scale), start_of(ws.shift), start_of(ws.moved), start_of(ws.code),
            start_of(ws.clear), start_of(ws.terms),
        )  # fmt: skip
        for j in range(LANES):
            ws.moved[j] = 0

    @inner
    def move(ws, points):
        """The points of all groups; False if errors overflow."""
        for g in range(groups):
            for j in range(LANES):
                at = g * LANES + j
                if ws.empty[j] != 0:
                    ws.cell[at] = points.packed[0]
                    continue
                code = np.int64(ws.code[at])
                cell = peek(points.cells, code)
                if cell < 0:
                    clear, listed = ws.clear[at] != 0, -1 - np.int64(cell)
                    whole = -1 - np.int64(peek(points.place, code))
                    first = listed >> SIZE_BITS if clear else whole
                    size = np.int32(listed & SIZE) if clear else peek(points.sizes, code)
                    place = _nearest(
                        behind(ws.terms, 24 * g * LANES + j),
                        behind(points.listed, first * LIST), size,
                    )  # fmt: skip
                    if place < 0:
                        return False
                    cell = peek(points.listed, first * LIST + np.int64(place))
                    ws.moved[j] = 1
                ws.cell[at] = cell
        return True

    @inner
    def refit(ws):
        """The scale that fits the points best, where they are not those of the split."""
        fit(
            start_of(ws.x), start_of(ws.w), start_of(ws.cell), start_of(ws.shift),
            start_of(ws.fitted),
        )  # fmt: skip
        fine = True
        for j in range(LANES):
            sum_qx, sum_q2 = ws.fitted[j], ws.fitted[LANES + j]
            better = (ws.moved[j] != 0) & (sum_qx > ZERO) & (sum_q2 > ZERO)
            scale = sum_qx / sum_q2
            scale = either(better, scale, ws.scale[j])
            ws.scale[j] = ZERO if ws.empty[j] != 0 else scale
            fine &= ws.scale[j] >= ZERO
        return fine

    @inner
    def search(ws, points):
        cut(ws)
        add_codes(ws)
        return move(ws, points) and refit(ws)

    return work, search
