"""What the searches of IQ1, IQ2 and IQ3 work in: a grid, and the arrays of 16 sub-blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types import grids
from quant_types.iq_search import Search
from quant_types.lanes.compile import inner, take_bytes, take_floats, take_halfs, take_ints
from quant_types.lanes.nearest import WINDOW

LANES = 16  # sub-blocks side by side


class Queue(NamedTuple):
    """Runs of a group that are off the grid, in windows of at most `WINDOW` tries."""

    lane: np.ndarray  # int32 [LANES * tries]
    first: np.ndarray  # int32 [LANES * tries]: try
    tries: np.ndarray  # int32 [LANES * tries]: how many
    code: np.ndarray  # int32 [LANES * tries]
    masks: np.ndarray  # int32 [LANES * tries]: what `survey` returns
    places: np.ndarray  # int32 [LANES * tries, WINDOW]


class Work(NamedTuple):
    """What the search works in: `[length, LANES]`, `[groups, LANES]` and `[LANES]` arrays, flat.

    A cell is a point as `Grid.packed` has it, plus `_OFF`.
    """

    x: np.ndarray  # float32 [length, LANES]: magnitudes
    w: np.ndarray  # float32 [length, LANES]: weight of each error
    root: np.ndarray  # float32 [length, LANES]: its square root
    cells: np.ndarray  # int32 [tries, groups, LANES]: codes, then the cells where runs begin
    starts: np.ndarray  # int32 [groups, LANES]: a bit for each try at which a run begins
    last: np.ndarray  # int32 [groups, LANES]: the code, then the cell of the try before
    best_cell: np.ndarray  # int32 [groups, LANES]
    tolerance: np.ndarray  # float32 [groups, LANES]: as for `survey`
    empty: np.ndarray  # int32 [LANES]: not zero for what counts as zero
    divisor: np.ndarray  # float32 [LANES]
    trials: np.ndarray  # float32 [LANES, tries + WINDOW]: scales
    scale: np.ndarray  # float32 [LANES]: the result
    best: np.ndarray  # float32 [LANES]
    sum_qx: np.ndarray  # float32 [LANES]
    sum_q2: np.ndarray  # float32 [LANES]
    refit: np.ndarray  # int32 [LANES]
    scratch: np.ndarray  # float32 [length + 6, LANES]
    sums: np.ndarray  # float32: as for `survey`
    border: np.ndarray  # int32 [groups, LANES]: a bit for each try with a weight between two levels
    queue: Queue


class Points(NamedTuple):
    """A grid in memory, as `quant_types.grids.Grid`, flat."""

    place: np.ndarray
    sizes: np.ndarray
    short: np.ndarray
    short_sizes: np.ndarray
    packed: np.ndarray
    odd: np.ndarray
    points: np.ndarray
    near: np.ndarray


def make_points(name: str):
    """`points(address)`: the arrays of a grid."""
    grid = grids.grid(name)
    codes, on_grid, odd = grid.place.size, grid.packed.size, grid.odd.size
    listed, near = grid.points.size, grid.near.size

    @inner
    def points(address):
        place, address = take_ints(address, codes)
        sizes, address = take_ints(address, codes)
        short, address = take_ints(address, codes)
        short_sizes, address = take_ints(address, codes)
        packed, address = take_ints(address, on_grid)
        odd_values, address = take_bytes(address, odd)
        candidates, address = take_halfs(address, listed)
        values, address = take_bytes(address, near)
        return Points(place, sizes, short, short_sizes, packed, odd_values, candidates, values)

    return points


def make_work(name: str, how: Search):
    """`work(memory)`: the arrays, and what is behind them."""
    grid, length, tries = grids.grid(name), how.length, 2 * how.tries + 1
    size, groups = length * LANES, length // grid.dim * LANES

    @inner
    def work(memory):
        x, memory = take_floats(memory, size)
        w, memory = take_floats(memory, size)
        root, memory = take_floats(memory, size)
        cells, memory = take_ints(memory, tries * groups)
        starts, memory = take_ints(memory, groups)
        last, memory = take_ints(memory, groups)
        best_cell, memory = take_ints(memory, groups)
        tolerance, memory = take_floats(memory, groups)
        empty, memory = take_ints(memory, LANES)
        divisor, memory = take_floats(memory, LANES)
        trials, memory = take_floats(memory, (tries + WINDOW) * LANES)
        scale, memory = take_floats(memory, LANES)
        best, memory = take_floats(memory, LANES)
        sum_qx, memory = take_floats(memory, LANES)
        sum_q2, memory = take_floats(memory, LANES)
        refit, memory = take_ints(memory, LANES)
        scratch, memory = take_floats(memory, (length + 6) * LANES)
        sums, memory = take_floats(memory, 4 * WINDOW)
        border, memory = take_ints(memory, groups)
        lane, memory = take_ints(memory, LANES * tries)
        first, memory = take_ints(memory, LANES * tries)
        count, memory = take_ints(memory, LANES * tries)
        code, memory = take_ints(memory, LANES * tries)
        masks, memory = take_ints(memory, LANES * tries)
        places, memory = take_ints(memory, LANES * tries * WINDOW)
        queue = Queue(lane, first, count, code, masks, places)
        found = Work(
            x, w, root, cells, starts, last, best_cell, tolerance, empty, divisor, trials, scale,
            best, sum_qx, sum_q2, refit, scratch, sums, border, queue,
        )  # fmt: skip
        return found, memory

    return work
