"""What the searches of IQ1, IQ2 and IQ3 work in: a grid, and the arrays of 16 sub-blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from quant_types import grids
from quant_types.iq_search import Search
from quant_types.lanes.compile import inner, take_bytes, take_floats, take_halfs, take_ints

LANES = 16  # sub-blocks side by side
BLOCKS = 8  # of 256 weights, in a tile
TRIES = 32  # scales that are tried, at most


class Work(NamedTuple):
    """What the search works in: `[length, LANES]`, `[groups, LANES]` and `[LANES]` arrays, flat.

    A cell is a point as `Grid.packed` has it, plus `_OFF`.
    """

    x: np.ndarray  # float32 [length, LANES]: magnitudes
    w: np.ndarray  # float32 [length, LANES]: weight of each error
    wx: np.ndarray  # float32 [length, LANES]: their product
    root: np.ndarray  # float32 [length, LANES]: its square root
    cells: np.ndarray  # int32 [tries and one more, groups, LANES]: codes, plus a power of two those
    # with a weight between two levels; then the cells where runs begin
    starts: (
        np.ndarray
    )  # int32 [groups, LANES] and two more: a bit for each try at which a run begins
    last: np.ndarray  # int32 [2, groups, LANES]: codes, then cells of two tries
    best_cell: np.ndarray  # int32 [groups, LANES]
    tolerance: np.ndarray  # float32 [groups, LANES]: as for `lead`
    empty: np.ndarray  # int32 [LANES]: not zero for what counts as zero
    divisor: np.ndarray  # float32 [LANES]
    trials: np.ndarray  # float32 [32, LANES]: scales
    scale: np.ndarray  # float32 [LANES]: the result
    best: np.ndarray  # float32 [LANES]
    signs: np.ndarray  # int32 [length / 8, sub-blocks of a tile]: a byte of each eight
    sums: np.ndarray  # float32 [4, LANES]: of two tries, the sums of w * x * q and of w * q * q
    rest: np.ndarray  # int32 [LANES]: bits of the tries that are left
    refit: np.ndarray  # int32 [LANES]
    scratch: np.ndarray  # float32 [LANES]
    border: np.ndarray  # int32 [groups, LANES]: not 0 where a weight is between two levels
    queue: Any  # of `grid_lists` or `grid_runs`


class Points(NamedTuple):
    """A grid in memory, as `quant_types.grids.Grid`, flat."""

    place: np.ndarray
    sizes: np.ndarray
    cells: np.ndarray
    packed: np.ndarray
    odd: np.ndarray
    points: np.ndarray
    near: np.ndarray
    listed: np.ndarray


def make_points(name: str):
    """`points(address)`: the arrays of a grid."""
    grid = grids.grid(name)
    codes, on_grid, odd = grid.place.size, grid.packed.size, grid.odd.size
    both = grid.cells.size
    candidates, near, cells_listed = grid.points.size, grid.near.size, grid.listed.size

    @inner
    def points(address):
        place, address = take_ints(address, codes)
        sizes, address = take_ints(address, codes)
        cells, address = take_ints(address, both)
        packed, address = take_ints(address, on_grid)
        odd_values, address = take_bytes(address, odd)
        numbers, address = take_halfs(address, candidates)
        values, address = take_bytes(address, near)
        listed, address = take_ints(address, cells_listed)
        return Points(place, sizes, cells, packed, odd_values, numbers, values, listed)

    return points


def make_work(name: str, how: Search, queue_of: Any):
    """`work(memory)`: the arrays, and what is behind them."""
    grid, length, tries = grids.grid(name), how.length, 2 * how.tries + 1
    size, groups = length * LANES, length // grid.dim * LANES

    @inner
    def work(memory):
        x, memory = take_floats(memory, size)
        w, memory = take_floats(memory, size)
        wx, memory = take_floats(memory, size)
        root, memory = take_floats(memory, size)
        cells, memory = take_ints(memory, (tries + 1) * groups)
        starts, memory = take_ints(memory, groups + 2)
        last, memory = take_ints(memory, 2 * groups)
        best_cell, memory = take_ints(memory, groups)
        tolerance, memory = take_floats(memory, groups)
        empty, memory = take_ints(memory, LANES)
        divisor, memory = take_floats(memory, LANES)
        trials, memory = take_floats(memory, TRIES * LANES)
        scale, memory = take_floats(memory, LANES)
        best, memory = take_floats(memory, LANES)
        signs, memory = take_ints(memory, 256 * BLOCKS // 8)
        two, memory = take_floats(memory, 4 * LANES)
        rest, memory = take_ints(memory, LANES)
        refit, memory = take_ints(memory, LANES)
        scratch, memory = take_floats(memory, LANES)
        border, memory = take_ints(memory, groups)
        queue, memory = queue_of(memory)
        found = Work(
            x, w, wx, root, cells, starts, last, best_cell, tolerance, empty, divisor, trials,
            scale, best, signs, two, rest, refit, scratch, border, queue,
        )  # fmt: skip
        return found, memory

    return work
