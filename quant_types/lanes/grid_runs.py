"""Which candidates lead in groups of 4 weights (IQ3): runs of tries side by side, one a lane.

Lists of 4 weights are short, so that their candidates would not fill a vector. All runs are lined
up, those of short lists first, and `RUNS` of them at a time are compared at their ends
(`run_leads.make_lead`). What is not settled by that is decided where two leaders meet, or cut, and
its parts are lined up behind the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from quant_types import grids
from quant_types.grids import SIZE
from quant_types.iq_search import Search
from quant_types.lanes.compile import (
    behind,
    either,
    inner,
    peek,
    poke,
    start_of,
    take_floats,
    take_ints,
)
from quant_types.lanes.grid_work import LANES, TRIES
from quant_types.lanes.nearest import trailing_zeros
from quant_types.lanes.run_leads import CUT, END, RUNS, SINGLE, make_lead, make_rows
from quant_types.lanes.scalars import ONE
from quant_types.lanes.vectors import make_add_codes, make_divide

_HALF = np.float32(0.5)

APART = False  # at nearly all tries some run of a sub-block begins


class Queue(NamedTuple):
    """Ranges of tries of groups that are off the grid, under which a code is the same, as
    `run_leads.make_lead` knows them; `RUNS` more, since the last are read together."""

    runs: np.ndarray  # int32 [queued, 2]
    far: np.ndarray  # int32 [queued]; before that the runs, until lists of a size are side by side
    close: np.ndarray  # int32 [queued]
    several: np.ndarray  # int32 [most]: places in this queue
    met: np.ndarray  # int32 [most]: as `several`
    sizes: np.ndarray  # int32 [sizes]: where runs of lists of a size go
    x: np.ndarray  # float32 [groups, LANES, dim]: as `Work.x`
    root: np.ndarray  # float32 [groups, LANES, dim]: as `Work.root`
    halves: np.ndarray  # float32 [TRIES, LANES]: half of each scale


def _sizes(name: str) -> int:
    """One more than candidates in a grid's longest list."""
    cells = grids.grid(name).cells
    return int(((-1 - cells[cells < 0]) & SIZE).max()) + 1


def make_queue(name: str, how: Search):
    """`queue(memory)`: a queue, and the address behind it."""
    size, sizes = how.length * LANES, _sizes(name)
    most = size // grids.grid(name).dim * (2 * how.tries + 1) + RUNS  # apart, of all groups
    queued = 2 * most  # with those that are cut

    @inner
    def queue(memory):
        runs, memory = take_ints(memory, 2 * queued)
        far, memory = take_ints(memory, queued)
        close, memory = take_ints(memory, queued)
        several, memory = take_ints(memory, most)
        met, memory = take_ints(memory, most)
        lists, memory = take_ints(memory, sizes)
        x, memory = take_floats(memory, size)
        root, memory = take_floats(memory, size)
        halves, memory = take_floats(memory, TRIES * LANES)
        return Queue(runs, far, close, several, met, lists, x, root, halves), memory

    return queue


def make_settle(name: str, how: Search, coded: Any, look_up: Any):
    """`settle_all(work, points, exact)`: the cells where runs begin, and the starts; False if
    errors overflow.

    Args:
        coded, look_up: those of `grid_search`.
    """
    base, dim = grids.grid(name).base, grids.grid(name).dim
    groups, cells = how.length // dim, grids.grid(name).cells
    rounded, on_grid = cells.shape[1] - 1, np.int32(np.argmax(cells[0] >= 0))
    divide, codes = make_divide(LANES), make_add_codes(groups, dim, LANES)
    numerators = np.array(how.numerators(base), np.float32)
    tries = len(numerators)
    beyond = np.int32(-(1 << tries))
    shift = (groups * LANES).bit_length() - 1
    sizes = _sizes(name)
    lead, share = make_lead(dim, grids.level_bits(base), groups * LANES, how.numerators(base))
    rows = make_rows(dim, groups)
    size_bits, word_bits = np.int32(SIZE), np.int32(0x7FFFFFFF)
    nowhere = np.int64(tries << shift)  # cells that are not those of a try

    @inner
    def add_codes(ws, exact):
        """Codes of all tries, and where runs of equal codes begin; of weights far out of range,
        codes are ggml's only if they are `exact`."""
        for g in range(groups * LANES):
            ws.starts[g] = 0
            ws.last[g] = -1
        for t in range(tries):
            divide(numerators[t], start_of(ws.divisor), start_of(ws.scratch))
            bit = np.int32(1 << t)
            if exact:
                for g in range(groups * LANES):
                    code = coded(ws, g // LANES, g % LANES, ws.scratch[g % LANES])
                    ws.starts[g] |= bit if code != ws.last[g] else np.int32(0)
                    ws.cells[t * groups * LANES + g] = code
                    ws.last[g] = code
            else:
                codes(
                    start_of(ws.x), start_of(ws.scratch), bit, behind(ws.cells, t * groups * LANES),
                    start_of(ws.starts), start_of(ws.last),
                )  # fmt: skip
        for k in range(groups):  # what is empty is on the grid
            for j in range(LANES):
                none, g = ws.empty[j] != 0, k * LANES + j
                ws.starts[g] = either(none, np.int32(1), ws.starts[g])
                ws.cells[g] = either(none, on_grid, ws.cells[g])

    @inner
    def pad(queue, n):
        """What is read together with the queue's last runs."""
        for i in range(n, n + RUNS):
            poke(queue.runs, 2 * i, np.int32(1 << END))
            poke(queue.runs, 2 * i + 1, np.int32(1))

    @inner
    def line_up(ws, points):
        """Fill the queue with runs, those of short lists first; groups on the grid get their cells.
        Its length."""
        queue, n, g, t = ws.queue, 0, 0, 0
        for size in range(sizes):
            poke(queue.sizes, size, np.int32(0))
        # The next group's starts are at hand before it is known whether they are wanted.
        rest, following = peek(ws.starts, 0), peek(ws.starts, 1)
        while g < groups * LANES:
            at = (t << shift) + g
            cell = peek(points.cells, np.int64(peek(ws.cells, at)))
            poke(ws.cells, at, cell)
            rest = np.int32(rest & np.int32(rest - 1))
            end = np.int64(trailing_zeros(np.int32(rest | beyond)))
            poke(queue.far, 2 * n, np.int32(at | (end << END)))
            listed = np.int32(np.int32(-1) - cell)
            poke(queue.far, 2 * n + 1, listed)
            off = np.int64(np.uint32(cell) >> np.uint32(31))
            size = np.int64(listed & size_bits)
            poke(queue.sizes, size, np.int32(peek(queue.sizes, size) + np.int32(off)))
            n += off
            done = rest == 0
            g += 1 if done else 0
            rest = either(done, following, rest)
            t = either(done, np.int64(0), end)
            following = peek(ws.starts, g + 1)
        total = np.int32(0)
        for size in range(sizes):
            count = peek(queue.sizes, size)
            poke(queue.sizes, size, total)
            total = np.int32(total + count)
        for i in range(n):
            listed = peek(queue.far, 2 * i + 1)
            size = np.int64(listed & size_bits)
            to = np.int64(peek(queue.sizes, size))
            poke(queue.sizes, size, np.int32(to + 1))
            poke(queue.runs, 2 * to, peek(queue.far, 2 * i))
            poke(queue.runs, 2 * to + 1, listed)
        return n

    @inner
    def lead_all(ws, points, begin, n):
        """Cells of the queue's runs from `begin` on; how many are not settled by that."""
        queue, m = ws.queue, 0
        pad(queue, n)
        for first in range(begin, n, RUNS):
            lead(
                behind(queue.runs, 2 * first), start_of(queue.halves), start_of(ws.tolerance),
                start_of(queue.x), start_of(queue.root), start_of(points.listed),
                behind(queue.far, first), behind(queue.close, first),
            )  # fmt: skip
        for i in range(begin, n):  # not between these: they would wait for one another
            word = peek(queue.far, i)
            at = np.int64(peek(queue.runs, 2 * i)) & ((1 << END) - 1)
            poke(ws.cells, either(word < 0, nowhere, at), word)
            poke(queue.several, m, np.int32(i))
            m += 1 if word < 0 else 0
        for i in range(m, m + RUNS):  # what is read together with the last
            poke(queue.several, i, np.int32(0))
        return m

    @inner
    def settle(ws, points, m, n):
        """Cells of `m` runs that are led by several candidates: where two share a range the
        second's, else the range is cut, where these meet or in half, and its parts are appended to
        the queue. The queue's length; negative if errors overflow."""
        queue = ws.queue
        for begin in range(0, m, RUNS):
            share(
                behind(queue.several, begin), start_of(queue.runs), start_of(queue.far),
                start_of(queue.close), start_of(queue.halves), start_of(ws.divisor),
                start_of(ws.tolerance), start_of(queue.x), start_of(queue.root),
                start_of(points.listed), behind(queue.met, begin),
            )  # fmt: skip
        for i in range(m):
            e, met = np.int64(peek(queue.several, i)), np.int64(peek(queue.met, i))
            run, listed = np.int64(peek(queue.runs, 2 * e)), peek(queue.runs, 2 * e + 1)
            at, end = run & ((1 << END) - 1), run >> END
            g, t = at & (groups * LANES - 1), met & (CUT - 1)
            if met == SINGLE:
                k, j, t = g // LANES, g & (LANES - 1), at >> shift
                inverse = numerators[t] / ws.divisor[j]
                code = np.int64(coded(ws, k, j, inverse)) & rounded
                cell = look_up(ws, points, k, j, code, ONE / inverse, False)
                if cell < 0:
                    return -1
                poke(ws.cells, at, cell)
                continue
            # The parts of a run that is cut are appended, and settled later.
            second = (t << shift) + g
            poke(ws.cells, at, np.int32(peek(queue.far, e) & word_bits))
            poke(ws.cells, second, np.int32(peek(queue.close, e) & word_bits))
            poke(ws.starts, g, np.int32(peek(ws.starts, g) | np.int32(1 << t)))
            poke(queue.runs, 2 * n, np.int32(at | (t << END)))
            poke(queue.runs, 2 * n + 1, listed)
            poke(queue.runs, 2 * n + 2, np.int32(second | (end << END)))
            poke(queue.runs, 2 * n + 3, listed)
            n += 2 if met & CUT else 0
        return n

    @inner
    def settle_all(ws, points, exact):
        queue = ws.queue
        add_codes(ws, exact)
        for i in range(LANES * TRIES):
            queue.halves[i] = _HALF * ws.trials[i]
        rows(start_of(ws.x), start_of(queue.x))
        rows(start_of(ws.root), start_of(queue.root))
        begin, n = 0, line_up(ws, points)
        while begin < n:
            m = lead_all(ws, points, begin, n)
            begin, n = n, settle(ws, points, m, n)
            if n < 0:
                return False
        return True

    return settle_all
