"""The search of IQ2 and IQ3 (`quant_types.iq_search`), 16 sub-blocks at a time, one a lane.

Roundings and sums run over the lanes. Under most scales that are tried a group rounds to the same
levels as under the one before: the candidates of such a run, those of the short list, are compared
at its ends, and who leads at both leads between them. A run that is not settled by that is cut, and
where even one scale is not certain to give ggml's point, its whole list is compared as ggml does.
Who leads is found in one of two ways, `grid_lists` for groups of 8 and `grid_runs` for those of 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant_types import grids
from quant_types.grids import LIST, OFF, SIZE, SIZE_BITS
from quant_types.iq_search import Search
from quant_types.lanes import grid_lists, grid_runs
from quant_types.lanes.choice import make_add_two, make_choose
from quant_types.lanes.compile import behind, inner, peek, start_of
from quant_types.lanes.grid_work import LANES, TRIES
from quant_types.lanes.nearest import make_nearest
from quant_types.lanes.scalars import ONE, ROUND, ZERO, clamped

_HALF = np.float32(0.5)
_LARGEST = np.float32(np.finfo(np.float32).max)
_OFF = np.int32(OFF)
# Rounding errs by 26 units of 2 ** -24 of the squares in an error, by 24 in `lead`'s sums, and what
# the scales of `add_trials` are from ggml's is 8 more.
_TOLERANCE = np.float32(64 * 2.0**-24)
# A weight is between two levels where rounding decides which it is nearer to.
_BORDER = np.float32(0.5 - 2.0**-15)
_WIDE = np.float32(1e6)  # levels: beyond, rounding may go wrong
# Of errors below it, of weights up to `_GREAT`, more may be lost; scales below may be inexact.
_TINY = np.float32(1e-36)
_GREAT = np.float32(1e4)
_NOTHING = np.float32(np.nan)  # is certain


def _way(dim: int) -> Any:
    """Who leads is found in one of two ways."""
    return grid_runs if dim == 4 else grid_lists


def make_queue(name: str, how: Search):
    """`queue(memory)`: the queue of `Work`, and the address behind it."""
    return _way(grids.grid(name).dim).make_queue(name, how)


def make_search(name: str, how: Search):
    """`search(work, points)`: fills `scale`, `best_cell` and `empty` from `x` and `w`, and by least
    squares from `scale` as found before; False if errors overflow."""
    base, dim = grids.grid(name).base, grids.grid(name).dim
    length, groups = how.length, how.length // dim
    numerators = np.array(how.numerators(base), np.float32)
    tries, inverses = len(numerators), (1 / numerators.astype(np.float64)).astype(np.float32)
    top, top_float = np.int32(base - 1), np.float32(2 * base - 1)
    top_level = np.float32(base - 1)
    base_float, base_int = np.float32(base), np.int32(base)
    epsilon = np.float32(how.epsilon)
    least_squares = how.least_squares
    redo_all, redo_off = how.again == "all", how.again == "off"
    nearest = make_nearest(dim, grids.level_bits(base), LANES)
    cells = grids.grid(name).cells
    whole = np.int32(cells.shape[1])  # added to a code, if it is between two levels
    apart, every = _way(dim).APART, (1 << tries) - 1
    add_two = make_add_two(groups, dim, grids.level_bits(base), apart)
    choose_cells = make_choose(groups)

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
            ws.best[j] = ZERO
            if least_squares:
                ws.divisor[j] = ws.scale[j] * base_float
                ws.empty[j] = np.int32(1) if ws.divisor[j] <= ZERO else ws.empty[j]
            else:
                ws.scale[j] = largest / top_float
        for g in range(groups * LANES):
            ws.best_cell[g] = _OFF if redo_off else np.int32(0)
        for i in range(length * LANES):
            ws.root[i] = np.sqrt(ws.w[i])
            ws.wx[i] = ws.w[i] * ws.x[i]

    @inner
    def code_of(ws, k, j, inverse):
        """The levels of a group, rounded, as a code; and how far the rounding went."""
        code, farthest = np.int32(0), ZERO
        for i in range(dim - 1, -1, -1):
            v = _HALF * (inverse * ws.x[(k * dim + i) * LANES + j] - ONE)
            code = np.int32(np.int32(code * base_int) + clamped(v, np.int32(0), top))
            v = v if v < top_level else top_level
            moved = abs(v - ((v + ROUND) - ROUND))
            farthest = moved if moved > farthest else farthest
        return code, farthest

    @inner
    def coded(ws, k, j, inverse):
        """The code, and `whole` with it if one of the weights is between two levels."""
        code, moved = code_of(ws, k, j, inverse)
        return np.int32(code + (whole if moved > _BORDER else np.int32(0)))

    @inner
    def add_trials(ws):
        """The scales of all tries, as near as makes no difference to `bound`."""
        for t in range(tries):
            for j in range(LANES):
                ws.trials[t * LANES + j] = ws.divisor[j] * inverses[t]
        for t in range(tries * LANES, TRIES * LANES):  # denormal numbers would take their time
            ws.trials[t] = ONE

    @inner
    def far_out(ws):
        """Whether a weight is so far out of range, or scales are so small that their inverse may be
        infinite, that rounding may go wrong."""
        wild = False
        for j in range(LANES):
            ws.scratch[j] = ZERO
        for i in range(length):
            for j in range(LANES):
                x, farthest = abs(ws.x[i * LANES + j]), ws.scratch[j]
                ws.scratch[j] = x if x > farthest else farthest
        for j in range(LANES):
            narrowest = ws.trials[(tries - 1) * LANES + j]
            fine = (ws.scratch[j] < narrowest * _WIDE) & (narrowest > _TINY)
            wild |= (not fine) & (ws.empty[j] == 0)
        return wild

    @inner
    def bound(ws):
        """Tolerances, of half the errors: more than twice what rounding does to a difference."""
        for k in range(groups):
            for j in range(LANES):
                widest, narrowest = ws.trials[j], ws.trials[(tries - 1) * LANES + j]
                squares, weights, magnitudes, farthest = ZERO, ZERO, ZERO, ZERO
                for i in range(dim):
                    at = (k * dim + i) * LANES + j
                    w, x = ws.root[at], abs(ws.x[at])
                    v = widest * top_float + x
                    squares += w * v * v
                    weights += w * (top_float * top_float)
                    magnitudes += w * top_float * x
                    farthest = x if x > farthest else farthest
                tolerance = (squares * _TOLERANCE + _TINY) / narrowest
                fine = (tolerance < _LARGEST) & (weights < _LARGEST) & (magnitudes < _LARGEST)
                fine = fine & (farthest < narrowest * _WIDE) & (farthest < _GREAT)
                fine = fine & (widest * top_float < _GREAT)
                fine = fine & (weights * narrowest < _LARGEST) & (weights * widest < _LARGEST)
                ws.tolerance[k * LANES + j] = _HALF * tolerance if fine else _NOTHING

    @inner
    def look_up(ws, points, k, j, code, scale, short):
        """The cell of a group under a scale, by its short list or the whole one; negative if errors
        overflow."""
        cell = peek(points.cells, code)
        if cell >= 0:
            return cell
        listed = -1 - np.int64(cell)
        first = listed >> SIZE_BITS if short else -1 - np.int64(peek(points.place, code))
        size = np.int32(listed & SIZE) if short else peek(points.sizes, code)
        at = k * dim * LANES + j
        place = nearest(
            behind(ws.x, at), behind(ws.root, at), scale,
            behind(points.listed, first * LIST), size,
        )  # fmt: skip
        if place < 0:
            return np.int32(-1)
        return peek(points.listed, first * LIST + np.int64(place))

    settle_all = _way(dim).make_settle(name, how, coded, look_up)

    @inner
    def sums_of_two(ws):
        return add_two(
            start_of(ws.cells), start_of(ws.starts), start_of(ws.rest), start_of(ws.last),
            start_of(ws.wx), start_of(ws.w), start_of(ws.sums),
        )  # fmt: skip

    @inner
    def choose(ws):
        """The best of the scales that are tried."""
        for j in range(LANES):
            rest = np.int32(0 if apart else every)
            if apart:
                for k in range(groups):
                    rest = np.int32(rest | ws.starts[k * LANES + j])
            ws.rest[j] = rest
        left = np.int32(1)
        while left != 0:
            left = sums_of_two(ws)
            for k in range(2):
                choose_cells(
                    behind(ws.sums, 2 * k * LANES), behind(ws.last, k * groups * LANES),
                    start_of(ws.scale), start_of(ws.best), start_of(ws.best_cell),
                )  # fmt: skip

    @inner
    def again(ws, points):
        """Groups rounded once more under the best scale, and the scale that fits them best."""
        for j in range(LANES):
            off = np.int32(1) if redo_all else np.int32(0)
            for k in range(groups):
                off = np.int32(off | np.int32(ws.best_cell[k * LANES + j] & _OFF))
            redo = (ws.empty[j] == 0) & (ws.scale[j] > ZERO)
            ws.refit[j] = off if redo else np.int32(0)
            ws.scratch[j] = ONE / ws.scale[j]
        for k in range(groups):
            for j in range(LANES):
                code, moved = code_of(ws, k, j, ws.scratch[j])
                farthest = ZERO
                for i in range(dim):
                    x = abs(ws.x[(k * dim + i) * LANES + j])
                    farthest = x if x > farthest else farthest
                clear = (moved <= _BORDER) & (farthest < ws.scale[j] * _WIDE)
                ws.last[k * LANES + j] = code
                ws.border[k * LANES + j] = np.int32(0) if clear else np.int32(1)
        for k in range(groups):
            for j in range(LANES):
                g = k * LANES + j
                if ws.empty[j] != 0:
                    ws.best_cell[g] = points.packed[0]
                elif ws.refit[j] != 0 and (redo_all or redo_off or ws.best_cell[g] & _OFF != 0):
                    clear = ws.border[g] == 0
                    cell = look_up(ws, points, k, j, np.int64(ws.last[g]), ws.scale[j], clear)
                    if cell < 0:
                        return False
                    ws.best_cell[g] = cell
        for g in range(groups * LANES):
            ws.last[groups * LANES + g] = ws.best_cell[g]
        sums_of_two(ws)  # no try is left: of the cells in `last`
        fine = True
        for j in range(LANES):
            sum_qx, sum_q2 = ws.sums[j], ws.sums[LANES + j]
            better = (ws.refit[j] != 0) & (sum_q2 > ZERO)
            ws.scale[j] = sum_qx / sum_q2 if better else ws.scale[j]
            ws.scale[j] = ZERO if ws.empty[j] != 0 else ws.scale[j]
            fine &= abs(ws.scale[j]) >= ZERO
        return fine

    @inner
    def search(ws, points):
        start(ws)
        add_trials(ws)
        bound(ws)
        if not settle_all(ws, points, far_out(ws)):
            return False
        choose(ws)
        return again(ws, points)

    return search
