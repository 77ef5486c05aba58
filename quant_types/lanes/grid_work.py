"""What the searches of IQ1, IQ2 and IQ3 work in: a grid, and the arrays of 16 sub-blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types import grids
from quant_types.iq_search import Search
from quant_types.lanes.compile import inner, take_bytes, take_floats, take_halfs, take_ints
from quant_types.lanes.leads import MOST

LANES = 16  # sub-blocks side by side
BLOCKS = 8  # of 256 weights, in a tile
TRIES = 32  # scales that are tried, at most
KEPT = 1 << 12  # sums that are kept at once, and those of one list


class Queue(NamedTuple):
    """Ranges of tries of a group that is off the grid, under which its code is the same; and those
    of them under which more than one candidate leads."""

    at: np.ndarray  # int32 [2 * LANES * tries]: where in `cells` its first try is
    last: np.ndarray  # int32 [2 * LANES * tries]: try
    code: np.ndarray  # int32 [2 * LANES * tries]
    several: np.ndarray  # int32 [LANES * tries + 1]: places in this queue
    leads: (
        np.ndarray
    )  # int32 [LANES * tries + 1]: what `lead` returned; from bit 14 on, where in `sums`
    sums: np.ndarray  # float32 [KEPT + 2 * MOST]
    met: np.ndarray  # float32 [2]: what `share` writes


class Work(NamedTuple):
    """What the search works in: `[length, LANES]`, `[groups, LANES]` and `[LANES]` arrays, flat.

    A cell is a point as `Grid.packed` has it, plus `_OFF`.
    """

    x: np.ndarray  # float32 [length, LANES]: magnitudes
    w: np.ndarray  # float32 [length, LANES]: weight of each error
    wx: np.ndarray  # float32 [length, LANES]: their product
    root: np.ndarray  # float32 [length, LANES]: its square root
    cells: (
        np.ndarray
    )  # int32 [tries and one more, groups, LANES]: codes, then the cells where runs begin
    starts: (
        np.ndarray
    )  # int32 [groups, LANES] and two more: a bit for each try at which a run begins
    last: np.ndarray  # int32 [2, groups, LANES]: codes, then cells of two tries
    best_cell: np.ndarray  # int32 [groups, LANES]
    tolerance: np.ndarray  # float32 [groups, LANES]: as for `lead`
    empty: np.ndarray  # int32 [LANES]: not zero for what counts as zero
    divisor: np.ndarray  # float32 [LANES]
    trials: np.ndarray  # float32 [32, LANES]: scales
    halves: np.ndarray  # float32 [LANES, 32]: half of each
    scale: np.ndarray  # float32 [LANES]: the result
    best: np.ndarray  # float32 [LANES]
    signs: np.ndarray  # int32 [length / 8, sub-blocks of a tile]: a byte of each eight
    sums: np.ndarray  # float32 [4, LANES]: of two tries, the sums of w * x * q and of w * q * q
    refit: np.ndarray  # int32 [LANES]
    scratch: np.ndarray  # float32 [LANES]
    border: np.ndarray  # int32 [groups, LANES]: a bit for each try with a weight between two levels
    queue: Queue


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
    candidates, near, cells_listed = grid.points.size, grid.near.size, grid.listed.size

    @inner
    def points(address):
        place, address = take_ints(address, codes)
        sizes, address = take_ints(address, codes)
        cells, address = take_ints(address, codes)
        packed, address = take_ints(address, on_grid)
        odd_values, address = take_bytes(address, odd)
        numbers, address = take_halfs(address, candidates)
        values, address = take_bytes(address, near)
        listed, address = take_ints(address, cells_listed)
        return Points(place, sizes, cells, packed, odd_values, numbers, values, listed)

    return points


def make_work(name: str, how: Search):
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
        halves, memory = take_floats(memory, TRIES * LANES)
        scale, memory = take_floats(memory, LANES)
        best, memory = take_floats(memory, LANES)
        signs, memory = take_ints(memory, 256 * BLOCKS // 8)
        two, memory = take_floats(memory, 4 * LANES)
        refit, memory = take_ints(memory, LANES)
        scratch, memory = take_floats(memory, LANES)
        border, memory = take_ints(memory, groups)
        at, memory = take_ints(memory, 2 * LANES * tries)
        end, memory = take_ints(memory, 2 * LANES * tries)
        code, memory = take_ints(memory, 2 * LANES * tries)
        several, memory = take_ints(memory, LANES * tries + 1)
        leads, memory = take_ints(memory, LANES * tries + 1)
        sums, memory = take_floats(memory, KEPT + 2 * MOST)
        met, memory = take_floats(memory, 2)
        queue = Queue(at, end, code, several, leads, sums, met)
        found = Work(
            x, w, wx, root, cells, starts, last, best_cell, tolerance, empty, divisor, trials,
            halves, scale, best, signs, two, refit, scratch, border, queue,
        )  # fmt: skip
        return found, memory

    return work
