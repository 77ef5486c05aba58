"""The search of IQ2 and IQ3 (`quant_types.iq_search`), 16 sub-blocks at a time, one a lane.

Roundings and sums run over the lanes, and a group's point is looked up lane by lane. Under most
scales that are tried a group rounds to the same levels as under the one before: the candidates of
such a run, those of the short list, are compared under all its scales at once
(`nearest.make_survey`). Where that is not certain to give ggml's point, its whole list is compared
as ggml does. A group of all lanes is gone through in three passes, none of which has a branch that
waits for what it computes.
"""

from __future__ import annotations

import numpy as np

from quant_types import grids
from quant_types.grids import LIST
from quant_types.iq_search import Search
from quant_types.lanes import positive_search
from quant_types.lanes.compile import inner, start_of
from quant_types.lanes.grid_work import LANES
from quant_types.lanes.nearest import WINDOW, make_nearest, make_survey, trailing_zeros
from quant_types.lanes.scalars import ONE, ROUND, ZERO, clamped

_HALF = np.float32(0.5)
_LARGEST = np.float32(np.finfo(np.float32).max)
_OFF = np.int32(1 << 14)  # set in a cell whose point was not rounded to
_POINT = np.int32(_OFF - 1)
# Rounding errs by 26 units of 2 ** -24 of the squares in an error, and by 24 in `survey`'s sums.
_TOLERANCE = np.float32(64 * 2.0**-24)
# A weight is between two levels where rounding decides which it is nearer to.
_BORDER = np.float32(0.5 - 2.0**-15)
_WIDE = np.float32(1e6)  # levels: beyond, rounding may go wrong
_TINY = np.float32(1e-36)  # of errors below it, of weights up to `_GREAT`, more may be lost
_GREAT = np.float32(1e4)


def make_search(name: str, how: Search):
    """`search(work, points)`: fills `scale`, `best_cell` and `empty` from `x` and `w`; False if
    errors overflow."""
    base, dim = grids.grid(name).base, grids.grid(name).dim
    length, groups = how.length, how.length // dim
    numerators = np.array(how.numerators(base), np.float32)
    tries = len(numerators)
    top, top_float = np.int32(base - 1), np.float32(2 * base - 1)
    base_float, base_int = np.float32(base), np.int32(base)
    bits = grids.level_bits(base)
    level_mask = np.int32(2 * ((1 << bits) - 1))
    epsilon = np.float32(how.epsilon)
    least_squares = how.least_squares
    redo_all, redo_off = how.again == "all", how.again == "off"
    nearest, survey = make_nearest(dim, LANES), make_survey(dim, LANES)
    stride = tries + WINDOW
    if least_squares:
        first_scale = positive_search.make_search(length, base + 1, LANES)

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
            ws.best[j] = ZERO
        if least_squares:
            first_scale(ws.x, ws.w, ws.scratch, ws.scale, ws.scratch[length * LANES :])
            for j in range(LANES):
                ws.divisor[j] = ws.scale[j] * base_float
                ws.empty[j] = np.int32(1) if ws.divisor[j] <= ZERO else ws.empty[j]
        for g in range(groups * LANES):
            ws.best_cell[g] = _OFF if redo_off else np.int32(0)
            ws.starts[g] = 0
            ws.border[g] = 0
            ws.last[g] = -1
        for i in range(length * LANES):
            ws.root[i] = np.sqrt(ws.w[i])

    @inner
    def code_of(ws, k, j, inverse):
        """The levels of a group, rounded, as a code; and how far the rounding went."""
        code, farthest = np.int32(0), ZERO
        for i in range(dim - 1, -1, -1):
            v = _HALF * (inverse * ws.x[(k * dim + i) * LANES + j] - ONE)
            code = np.int32(np.int32(code * base_int) + clamped(v, np.int32(0), top))
            moved = abs(v - ((v + ROUND) - ROUND))
            farthest = moved if moved > farthest else farthest
        return code, farthest

    @inner
    def add_codes(ws):
        """Scales and codes of all tries, and where runs of equal codes begin."""
        for j in range(LANES):
            for t in range(
                tries, stride
            ):  # not compared, but denormal numbers would take their time
                ws.trials[j * stride + t] = ONE
        for t in range(tries):
            for j in range(LANES):
                inverse = numerators[t] / ws.divisor[j]
                ws.scratch[j] = inverse
                ws.trials[j * stride + t] = ONE / inverse
            bit = np.int32(1 << t)
            for k in range(groups):
                for j in range(LANES):
                    g = k * LANES + j
                    code, moved = code_of(ws, k, j, ws.scratch[j])
                    border = bit if moved > _BORDER else np.int32(0)
                    ws.border[g] = np.int32(ws.border[g] | border)
                    ws.cells[t * groups * LANES + g] = code
                    begins = bit if code != ws.last[g] else np.int32(0)
                    ws.starts[g] = np.int32(ws.starts[g] | begins)
                    ws.last[g] = code

    @inner
    def bound(ws):
        """Tolerances: more than twice what rounding does to a difference between errors."""
        for k in range(groups):
            for j in range(LANES):
                widest, narrowest = ws.trials[j * stride], ws.trials[j * stride + tries - 1]
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
                ws.tolerance[k * LANES + j] = tolerance if fine else -ONE

    @inner
    def cell_of(points, first, place):
        return np.int32(points.packed[points.points[first * LIST + place]] | _OFF)

    @inner
    def look_up(ws, points, k, j, code, scale, short):
        """The cell of a group under a scale, by its short list or the whole one; negative if errors
        overflow."""
        found = points.place[code]
        if found >= 0:
            return points.packed[found]
        first = np.int64(points.short[code]) if short else np.int64(-1 - found)
        size = points.short_sizes[code] if short else points.sizes[code]
        at = k * dim * LANES + j
        place = nearest(
            start_of(ws.x[at:]), start_of(ws.root[at:]), scale,
            start_of(points.near[first * (dim * LIST) :]), size,
        )  # fmt: skip
        return cell_of(points, first, place) if place >= 0 else np.int32(-1)

    @inner
    def line_up(ws, points, k):
        """Fill the queue with a group's runs; those on the grid get their cells. Its length."""
        queue, n = ws.queue, 0
        for j in range(LANES):
            if ws.empty[j] != 0:
                continue
            g = k * LANES + j
            rest = ws.starts[g]
            while rest != 0:
                t = np.int32(trailing_zeros(rest))
                rest = np.int32(rest & np.int32(rest - 1))
                end = np.int32(min(trailing_zeros(rest), np.int32(tries)))
                at = t * (groups * LANES) + g
                code = ws.cells[at]
                found = points.place[code]
                off = found < 0
                ws.cells[at] = points.packed[np.int32(0) if off else found]
                queue.lane[n] = j
                queue.first[n] = t
                queue.tries[n] = min(np.int32(end - t), np.int32(WINDOW))
                queue.code[n] = code
                n += 1 if off else 0
                if off:
                    for first in range(t + WINDOW, end, WINDOW):
                        queue.lane[n] = j
                        queue.first[n] = first
                        queue.tries[n] = min(np.int32(end - first), np.int32(WINDOW))
                        queue.code[n] = code
                        n += 1
        return n

    @inner
    def survey_all(ws, points, k, n):
        """Places and masks of the queue's first `n`."""
        queue = ws.queue
        near, sums = start_of(points.near), start_of(ws.sums)
        for e in range(0, n, 2):
            f = min(e + 1, n - 1)
            i, j = np.int64(queue.lane[e]), np.int64(queue.lane[f])
            t, u = np.int64(queue.first[e]), np.int64(queue.first[f])
            at, bt = k * dim * LANES + i, k * dim * LANES + j
            a, b = queue.code[e], queue.code[f]
            survey(
                near, sums,
                start_of(ws.x[at:]), start_of(ws.root[at:]), start_of(ws.trials[i * stride + t :]),
                ws.tolerance[k * LANES + i], points.short[a], points.short_sizes[a],
                start_of(queue.places[e * WINDOW :]), start_of(queue.masks[e:]),
                start_of(ws.x[bt:]), start_of(ws.root[bt:]), start_of(ws.trials[j * stride + u :]),
                ws.tolerance[k * LANES + j], points.short[b], points.short_sizes[b],
                start_of(queue.places[f * WINDOW :]), start_of(queue.masks[f:]),
            )  # fmt: skip

    @inner
    def settle(ws, points, k, n):
        """Cells of the queue's first `n`, where they are not those before; False if errors
        overflow."""
        queue = ws.queue
        for e in range(n):
            j, t, code = np.int64(queue.lane[e]), np.int64(queue.first[e]), queue.code[e]
            g = k * LANES + j
            window = np.int32((1 << queue.tries[e]) - 1)
            masks = queue.masks[e]
            unsure = np.int32(np.int32(masks | np.int32(ws.border[g] >> t)) & window)
            changed = np.int32(np.int32(masks >> WINDOW) | np.int32(1))
            changed = np.int32(changed | unsure | np.int32(unsure << 1))
            changed = np.int32(changed & window)
            ws.starts[g] = np.int32(ws.starts[g] | np.int32(changed << t))
            first = np.int64(points.short[code])
            cell = cell_of(points, first, queue.places[e * WINDOW])
            ws.cells[t * (groups * LANES) + g] = cell
            changed = np.int32(changed & np.int32(unsure | np.int32(-2)))  # the first is done
            while changed != 0:
                u = np.int64(trailing_zeros(changed))
                changed = np.int32(changed & np.int32(changed - 1))
                if np.int32(unsure >> u) & 1 != 0:
                    cell = look_up(ws, points, k, j, code, ws.trials[j * stride + t + u], False)
                    if cell < 0:
                        return False
                else:
                    cell = cell_of(points, first, queue.places[e * WINDOW + u])
                ws.cells[(t + u) * (groups * LANES) + g] = cell
        return True

    @inner
    def add(ws, cells):
        """Weighted sums of the values of cells, `[groups, LANES]`."""
        for j in range(LANES):
            ws.sum_qx[j] = ZERO
            ws.sum_q2[j] = ZERO
        for k in range(groups):
            for j in range(LANES):
                sum_qx, sum_q2 = ws.sum_qx[j], ws.sum_q2[j]
                levels = np.int32(cells[k * LANES + j] >> 14)  # doubled
                for i in range(dim):
                    at = (k * dim + i) * LANES + j
                    odd = np.int32(np.int32(levels >> (bits * i)) & level_mask) | np.int32(1)
                    q, w = np.float32(np.int32(odd)), ws.w[at]
                    sum_qx += w * ws.x[at] * q
                    sum_q2 += w * q * q
                ws.sum_qx[j] = sum_qx
                ws.sum_q2[j] = sum_q2

    @inner
    def choose(ws):
        """The best of the scales that are tried."""
        for t in range(tries):
            for g in range(groups * LANES):
                begins = np.int32(np.int32(ws.starts[g] >> t) & np.int32(1)) != 0
                cell, last = ws.cells[t * groups * LANES + g], ws.last[g]
                ws.last[g] = cell if begins else last
            add(ws, ws.last)
            for j in range(LANES):
                sum_qx, sum_q2, best = ws.sum_qx[j], ws.sum_q2[j], ws.best[j]
                scale = sum_qx / sum_q2
                better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
                ws.scale[j] = scale if better else ws.scale[j]
                ws.best[j] = scale * sum_qx if better else best
                ws.refit[j] = np.int32(1) if better else np.int32(0)
            for k in range(groups):
                for j in range(LANES):
                    g = k * LANES + j
                    cell, best = ws.last[g], ws.best_cell[g]
                    ws.best_cell[g] = cell if ws.refit[j] != 0 else best

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
                    cell = look_up(ws, points, k, j, ws.last[g], ws.scale[j], clear)
                    if cell < 0:
                        return False
                    ws.best_cell[g] = cell
        add(ws, ws.best_cell)
        fine = True
        for j in range(LANES):
            better = (ws.refit[j] != 0) & (ws.sum_q2[j] > ZERO)
            ws.scale[j] = ws.sum_qx[j] / ws.sum_q2[j] if better else ws.scale[j]
            ws.scale[j] = ZERO if ws.empty[j] != 0 else ws.scale[j]
            fine &= abs(ws.scale[j]) >= ZERO
        return fine

    @inner
    def search(ws, points):
        start(ws)
        add_codes(ws)
        bound(ws)
        for k in range(groups):
            n = line_up(ws, points, k)
            survey_all(ws, points, k, n)
            if not settle(ws, points, k, n):
                return False
        choose(ws)
        return again(ws, points)

    return search


@inner
def point_of(cell):
    """The point of a cell."""
    return np.int32(cell & _POINT)
