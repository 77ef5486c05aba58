"""The search of IQ2 and IQ3 (`quant_types.iq_search`), 16 sub-blocks at a time, one a lane.

Roundings and sums run over the lanes, and a group's point is looked up lane by lane. Under most
scales that are tried a group rounds to the same levels as under the one before: the candidates of
such a run, those of the short list, are compared at its ends (`leads.make_lead`), and who leads
at both leads between them. A run that is not settled by that is cut in two, and where even one
scale is not certain to give ggml's point, its whole list is compared as ggml does. Runs are gone
through in passes, the first of which has no branch that waits for what it computes.
"""

from __future__ import annotations

import numpy as np

from quant_types import grids
from quant_types.grids import LIST, SIZE_BITS
from quant_types.iq_search import Search
from quant_types.lanes.compile import behind, either, inner, peek, poke, start_of
from quant_types.lanes.grid_work import KEPT, LANES, TRIES
from quant_types.lanes.leads import MOST, OPEN, SEVERAL, SUMS, below, make_lead
from quant_types.lanes.nearest import make_nearest, trailing_zeros
from quant_types.lanes.scalars import ONE, ROUND, ZERO, clamped
from quant_types.lanes.vectors import make_add_codes, make_add_two, make_columns, make_divide

_HALF = np.float32(0.5)
_LARGEST = np.float32(np.finfo(np.float32).max)
_OFF = np.int32(1 << 14)  # set in a cell whose point was not rounded to
_POINT = np.int32(_OFF - 1)
_SIZE = (1 << SIZE_BITS) - 1
# Rounding errs by 26 units of 2 ** -24 of the squares in an error, and by 24 in `lead`'s sums.
_TOLERANCE = np.float32(64 * 2.0**-24)
# A weight is between two levels where rounding decides which it is nearer to.
_BORDER = np.float32(0.5 - 2.0**-15)
_WIDE = np.float32(1e6)  # levels: beyond, rounding may go wrong
_TINY = np.float32(1e-36)  # of errors below it, of weights up to `_GREAT`, more may be lost
_GREAT = np.float32(1e4)
_NOTHING = np.float32(np.nan)  # is certain


def make_search(name: str, how: Search):
    """`search(work, points)`: fills `scale`, `best_cell` and `empty` from `x` and `w`, and by least
    squares from `scale` as found before; False if errors overflow."""
    base, dim = grids.grid(name).base, grids.grid(name).dim
    length, groups = how.length, how.length // dim
    numerators = np.array(how.numerators(base), np.float32)
    tries = len(numerators)
    top, top_float = np.int32(base - 1), np.float32(2 * base - 1)
    top_level = np.float32(base - 1)
    base_float, base_int = np.float32(base), np.int32(base)
    epsilon, every = np.float32(how.epsilon), np.int32((1 << tries) - 1)
    beyond = np.int32(-(1 << tries))
    shift = (groups * LANES).bit_length() - 1
    least_squares = how.least_squares
    redo_all, redo_off = how.again == "all", how.again == "off"
    nearest = make_nearest(dim, LANES)
    cells = grids.grid(name).cells
    longest = int(((-1 - cells[cells < 0]) & _SIZE).max())
    lead, share = make_lead(dim, LANES, 2 * dim, longest)
    by_lane, divide = make_columns(LANES, TRIES), make_divide(LANES)
    add_two = make_add_two(groups, dim, LANES, grids.level_bits(base))
    codes = make_add_codes(base, groups, dim, LANES)

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
    def add_codes(ws, exact):
        """Scales and codes of all tries, and where runs of equal codes begin; of weights far out of
        range, codes are ggml's only if they are `exact`."""
        for t in range(tries * LANES, TRIES * LANES):  # denormal numbers would take their time
            ws.trials[t] = ONE
        for g in range(groups * LANES):
            ws.starts[g] = 0
            ws.border[g] = 0
            ws.last[g] = -1
        for t in range(tries):
            divide(
                numerators[t], start_of(ws.divisor), start_of(ws.scratch),
                behind(ws.trials, t * LANES),
            )  # fmt: skip
            bit = np.int32(1 << t)
            if exact:
                for g in range(groups * LANES):
                    code, moved = code_of(ws, g // LANES, g % LANES, ws.scratch[g % LANES])
                    ws.border[g] |= bit if moved > _BORDER else np.int32(0)
                    ws.starts[g] |= bit if code != ws.last[g] else np.int32(0)
                    ws.cells[t * groups * LANES + g] = code
                    ws.last[g] = code
            else:
                codes(
                    start_of(ws.x), start_of(ws.scratch), bit, behind(ws.cells, t * groups * LANES),
                    start_of(ws.starts), start_of(ws.border), start_of(ws.last),
                )  # fmt: skip
        by_lane(ws.trials, ws.halves)
        for i in range(LANES * TRIES):
            ws.halves[i] = _HALF * ws.halves[i]
        for g in range(groups * LANES):  # a try at a border is a run of its own
            border = ws.border[g]
            alone = np.int32(border | np.int32(np.int32(border << 1) & every))
            ws.starts[g] = np.int32(ws.starts[g] | alone)

    @inner
    def far_out(ws):
        """Whether a weight is so far out of range that rounding may go wrong."""
        wild = False
        for j in range(LANES):
            ws.scratch[j] = ZERO
        for i in range(length):
            for j in range(LANES):
                x, farthest = abs(ws.x[i * LANES + j]), ws.scratch[j]
                ws.scratch[j] = x if x > farthest else farthest
        for j in range(LANES):
            fine = ws.scratch[j] < ws.trials[(tries - 1) * LANES + j] * _WIDE
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
    def cell_of(points, chunk, place):
        """The cell of a candidate, its place in the low 6 bits."""
        point = np.int64(peek(points.points, chunk * LIST + (place & (MOST - 1))))
        return np.int32(peek(points.packed, point) | _OFF)

    @inner
    def look_up(ws, points, k, j, code, scale, short):
        """The cell of a group under a scale, by its short list or the whole one; negative if errors
        overflow."""
        cell = peek(points.cells, code)
        if cell >= 0:
            return cell
        listed = -1 - np.int64(cell)
        first = listed >> SIZE_BITS if short else -1 - np.int64(peek(points.place, code))
        size = np.int32(listed & _SIZE) if short else peek(points.sizes, code)
        at = k * dim * LANES + j
        place = nearest(
            behind(ws.x, at), behind(ws.root, at), scale,
            behind(points.near, first * (dim * LIST)), size,
        )  # fmt: skip
        if place < 0:
            return np.int32(-1)
        point = np.int64(peek(points.points, first * LIST + np.int64(place)))
        return np.int32(peek(points.packed, point) | _OFF)

    @inner
    def line_up(ws, points, k):
        """Fill the queue with a group's runs; those on the grid get their cells. Its length."""
        queue, n, j = ws.queue, 0, 0
        # The next lane's starts are at hand before it is known whether they are wanted.
        rest, following = peek(ws.starts, k * LANES), peek(ws.starts, k * LANES + 1)
        while j < LANES:
            t = np.int64(trailing_zeros(rest))
            rest = np.int32(rest & np.int32(rest - 1))
            done = rest == 0
            at = t * (groups * LANES) + k * LANES + j
            code = peek(ws.cells, at)
            cell = peek(points.cells, np.int64(code))
            poke(ws.cells, at, cell)
            poke(queue.at, n, np.int32(at))
            last = np.int32(trailing_zeros(np.int32(rest | beyond)) - np.int32(1))
            poke(queue.last, n, last)
            poke(queue.code, n, code)
            n += 1 if (cell < 0) & (peek(ws.empty, j) == 0) else 0
            j += 1 if done else 0
            rest = either(done, following, rest)
            following = peek(ws.starts, k * LANES + j + 1)
        return n

    @inner
    def lead_all(ws, points, k, begin, n):
        """Cells of the queue's runs from `begin` on; where it stopped, and how many of them are
        not settled by that."""
        queue, m, used = ws.queue, 0, 0
        while (begin < n) & (used < KEPT):
            at, last = np.int64(peek(queue.at, begin)), np.int64(peek(queue.last, begin))
            j, first, g = at & (LANES - 1), at >> shift, at & (groups * LANES - 1)
            listed = -1 - np.int64(peek(ws.cells, at))
            chunk, size = listed >> SIZE_BITS, listed & _SIZE
            leads = lead(
                start_of(points.near), behind(ws.x, k * dim * LANES + j),
                behind(ws.root, k * dim * LANES + j), peek(ws.halves, j * TRIES + first),
                peek(ws.halves, j * TRIES + last), peek(ws.tolerance, g), np.int32(chunk),
                np.int32(size), behind(queue.sums, used),
            )  # fmt: skip
            poke(ws.cells, at, cell_of(points, chunk, np.int64(leads)))
            # one at a border has one try
            border = np.int32(np.int32(peek(ws.border, g) >> np.int32(first)) & np.int32(1))
            leads = np.int32(leads | np.int32(border * np.int32(OPEN)))
            poke(queue.several, m, np.int32(begin))
            poke(queue.leads, m, np.int32(leads | np.int32(used << 14)))
            m += 1 if leads >= np.int32(SEVERAL) else 0
            # apart, so that none waits for those before it
            used += (size + LIST - 1) // LIST * SUMS
            begin += 1
        return begin, m

    @inner
    def settle(ws, points, k, m, n):
        """Cells of `m` runs that are led by several candidates: where two share a range the
        second's, else the range is cut, where these meet or in half, and its parts are appended to
        the queue. The queue's length; negative if errors overflow."""
        queue = ws.queue
        for i in range(m):
            e, leads = np.int64(peek(queue.several, i)), np.int64(peek(queue.leads, i))
            at, last = np.int64(peek(queue.at, e)), np.int64(peek(queue.last, e))
            code = peek(queue.code, e)
            j, first, g = at & (LANES - 1), at >> shift, at & (groups * LANES - 1)
            middle = (first + last + 1) >> 1
            cell = peek(points.cells, np.int64(code))
            listed = -1 - np.int64(cell)
            if leads & OPEN == 0:
                alone = share(
                    behind(queue.sums, leads >> 14), np.int32(listed & _SIZE),
                    peek(ws.tolerance, g), np.int32(leads), start_of(queue.met),
                )  # fmt: skip
                window = np.int32((2 << last) - (1 << first))
                meet, unsure = peek(queue.met, 0), peek(queue.met, 1)
                halves = behind(ws.halves, j * TRIES)
                later = np.int32(below(halves, meet - unsure) & window)
                between = np.int32(below(halves, meet + unsure) & window)
                t = np.int64(trailing_zeros(np.int32(later | np.int32(1 << last))))
                middle = max(t, first + 1)
                if alone & (later == between) & (later != 0):
                    cell = cell_of(points, listed >> SIZE_BITS, leads >> 6)
                    poke(ws.cells, (t << shift) + g, cell)
                    poke(ws.starts, g, np.int32(peek(ws.starts, g) | np.int32(1 << t)))
                    continue
            elif first == last:
                scale = peek(ws.trials, first * LANES + j)
                cell = look_up(ws, points, k, j, np.int64(code), scale, False)
                if cell < 0:
                    return -1
                poke(ws.cells, at, cell)
                continue
            second = (middle << shift) + g
            for half in range(2):
                poke(queue.at, n + half, np.int32(second if half else at))
                poke(queue.last, n + half, np.int32(last if half else middle - 1))
                poke(queue.code, n + half, code)
            poke(ws.cells, at, cell)
            poke(ws.cells, second, cell)
            poke(ws.starts, g, np.int32(peek(ws.starts, g) | np.int32(1 << middle)))
            n += 2
        return n

    @inner
    def choose(ws):
        """The best of the scales that are tried."""
        for t in range(0, tries, 2):
            add_two(
                behind(ws.cells, t * groups * LANES), start_of(ws.starts), np.int32(t),
                start_of(ws.last), start_of(ws.wx), start_of(ws.w), start_of(ws.sums),
            )  # fmt: skip
            for k in range(2):
                for j in range(LANES):
                    sum_qx, sum_q2 = ws.sums[2 * k * LANES + j], ws.sums[(2 * k + 1) * LANES + j]
                    best, old = ws.best[j], ws.scale[j]
                    scale = sum_qx / sum_q2
                    better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
                    better = better & (t + k < tries)
                    ws.scale[j] = either(better, scale, old)
                    ws.best[j] = either(better, scale * sum_qx, best)
                    ws.refit[j] = np.int32(1) if better else np.int32(0)
                for g in range(groups):
                    for j in range(LANES):
                        cell = ws.last[(k * groups + g) * LANES + j]
                        best_cell = ws.best_cell[g * LANES + j]
                        ws.best_cell[g * LANES + j] = either(ws.refit[j] != 0, cell, best_cell)

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
            ws.starts[g] = 0
        add_two(
            start_of(ws.cells), start_of(ws.starts), np.int32(0), start_of(ws.last),
            start_of(ws.wx), start_of(ws.w), start_of(ws.sums),
        )  # fmt: skip
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
        add_codes(ws, False)
        if far_out(ws):
            add_codes(ws, True)
        bound(ws)
        for k in range(groups):
            begin, n = 0, line_up(ws, points, k)
            while begin < n:
                begin, m = lead_all(ws, points, k, begin, n)
                n = settle(ws, points, k, m, n)
                if n < 0:
                    return False
        choose(ws)
        return again(ws, points)

    return search


@inner
def point_of(cell):
    """The point of a cell."""
    return np.int32(cell & _POINT)
