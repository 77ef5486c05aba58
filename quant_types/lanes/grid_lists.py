"""Which candidates lead in groups of 8 weights (IQ2): those of a list side by side, run by run.

The runs of a group of all sub-blocks are lined up, and compared at their ends (`leads.make_lead`)
without a branch that waits for what it computes. What is not settled by that is decided where two
leaders meet, or cut, and its parts are lined up behind the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from quant_types import grids
from quant_types.grids import LIST, SIZE, SIZE_BITS
from quant_types.iq_search import Search
from quant_types.lanes.candidates import make_sums
from quant_types.lanes.compile import (
    behind,
    inner,
    peek,
    poke,
    start_of,
    take_floats,
    take_ints,
)
from quant_types.lanes.crossings import AT, LAST, make_line_up
from quant_types.lanes.grid_work import LANES, TRIES
from quant_types.lanes.leads import MOST, OPEN, SEVERAL, SUMS, below, make_lead
from quant_types.lanes.nearest import trailing_zeros
from quant_types.lanes.scalars import ONE
from quant_types.lanes.vectors import make_columns

_KEPT = 1 << 12  # sums that are kept at once, and those of one list
_HALF = np.float32(0.5)

APART = True  # few of a sub-block's tries begin a run


class Queue(NamedTuple):
    """Ranges of tries of a group that is off the grid, under which its code is the same; and those
    of them under which more than one candidate leads."""

    runs: np.ndarray  # int32 [2 * LANES * tries + LANES]: words of `crossings`
    several: np.ndarray  # int32 [LANES * tries + 1]: places in this queue
    leads: np.ndarray  # int32 [LANES * tries + 1]: what `lead` returned; from bit 14 on, where in
    # `sums`
    sums: np.ndarray  # float32 [_KEPT + 2 * MOST]
    met: np.ndarray  # float32 [2]: what `share` writes
    halves: np.ndarray  # float32 [LANES, TRIES]: half of each scale
    factors: np.ndarray  # float32 [2, dim, LANES]: a group's `Work.root`, and that times `Work.x`
    terms: np.ndarray  # float32 [LANES, size]: what `candidates` makes of them


def make_queue(name: str, how: Search):
    """`queue(memory)`: a queue, and the address behind it."""
    most, dim = LANES * (2 * how.tries + 1), grids.grid(name).dim
    size, _, _ = make_sums(dim)

    @inner
    def queue(memory):
        runs, memory = take_ints(memory, 2 * most + LANES)
        several, memory = take_ints(memory, most + 1)
        leads, memory = take_ints(memory, most + 1)
        sums, memory = take_floats(memory, _KEPT + 2 * MOST)
        met, memory = take_floats(memory, 2)
        halves, memory = take_floats(memory, TRIES * LANES)
        factors, memory = take_floats(memory, 2 * dim * LANES)
        terms, memory = take_floats(memory, LANES * size)
        return Queue(runs, several, leads, sums, met, halves, factors, terms), memory

    return queue


def make_settle(name: str, how: Search, coded: Any, look_up: Any):
    """`settle_all(work, points, exact)`: the cells where runs begin, and the starts; False if
    errors overflow.

    Args:
        coded, look_up: those of `grid_search`.
    """
    dim, cells = grids.grid(name).dim, grids.grid(name).cells
    numerators = np.array(how.numerators(grids.grid(name).base), np.float32)
    groups, tries = how.length // dim, len(numerators)
    beyond = np.int32(-(1 << tries))
    shift = (groups * LANES).bit_length() - 1
    rounded = cells.shape[1] - 1
    size, prepare, sums_of = make_sums(dim)
    lead, share = make_lead(sums_of, int(((-1 - cells[cells < 0]) & SIZE).max()))
    line_up_all = make_line_up(how.numerators(grids.grid(name).base), groups, dim, shift)
    by_lane = make_columns(LANES, TRIES)

    @inner
    def cell_of(points, chunk, place):
        """The cell of a candidate, its place in the low 6 bits."""
        return peek(points.listed, chunk * LIST + (place & (MOST - 1)))

    @inner
    def word_of(at, last, code):
        """A run in one number."""
        return np.int32(at | (last << AT) | (code << LAST))

    @inner
    def split(word):
        """Where a run begins, and its last try."""
        return word & ((1 << AT) - 1), (word >> AT) & ((1 << LAST - AT) - 1)

    @inner
    def line_up_one(ws, points, k, j, n):
        """Runs of a group of which not all is certain, rounded as ggml does. The queue's length."""
        g = k * LANES + j
        rest = peek(ws.starts, g)
        while rest != 0:
            t = np.int64(trailing_zeros(rest))
            rest = np.int32(rest & np.int32(rest - 1))
            last = np.int64(trailing_zeros(np.int32(rest | beyond))) - 1
            code = np.int64(coded(ws, k, j, numerators[t] / ws.divisor[j]))
            cell, at = peek(points.cells, code), (t << shift) + g
            poke(ws.cells, at, cell)
            poke(ws.queue.runs, n, word_of(at, last, code))
            n += 1 if cell < 0 else 0
        return n

    @inner
    def line_up(ws, points, k, exact):
        """Fill the queue with a group's runs; those on the grid get their cells. Its length."""
        found = line_up_all(
            behind(ws.x, k * dim * LANES), start_of(ws.divisor), start_of(ws.empty),
            np.int32(exact), k * LANES, start_of(points.cells), start_of(ws.cells),
            behind(ws.starts, k * LANES), start_of(ws.queue.runs),
        )  # fmt: skip
        n, unsure = found & 0xFFFF, np.int32(found >> 16)
        while unsure != 0:
            n = line_up_one(ws, points, k, np.int64(trailing_zeros(unsure)), n)
            unsure = np.int32(unsure & np.int32(unsure - 1))
        return n

    @inner
    def lead_all(ws, points, k, begin, n):
        """Cells of the queue's runs from `begin` on; where it stopped, and how many of them are
        not settled by that."""
        queue, m, used = ws.queue, 0, 0
        while (begin < n) & (used < _KEPT):
            at, last = split(np.int64(peek(queue.runs, begin)))
            j, first, g = at & (LANES - 1), at >> shift, at & (groups * LANES - 1)
            listed = -1 - np.int64(peek(ws.cells, at))
            chunk, count = listed >> SIZE_BITS, listed & SIZE
            leads = lead(
                behind(queue.terms, j * size), start_of(points.near), start_of(points.listed),
                peek(queue.halves, j * TRIES + first), peek(queue.halves, j * TRIES + last),
                peek(ws.tolerance, g), np.int32(chunk), np.int32(count),
                behind(queue.sums, used),
            )  # fmt: skip
            poke(ws.cells, at, cell_of(points, chunk, np.int64(leads)))
            poke(queue.several, m, np.int32(begin))
            poke(queue.leads, m, np.int32(leads | np.int32(used << 14)))
            m += 1 if leads >= np.int32(SEVERAL) else 0
            # apart, so that none waits for those before it
            used += (count + LIST - 1) // LIST * SUMS
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
            word = np.int64(peek(queue.runs, e))
            code = word >> LAST
            at, last = split(word)
            j, first, g = at & (LANES - 1), at >> shift, at & (groups * LANES - 1)
            middle = (first + last + 1) >> 1
            cell = peek(points.cells, code)
            listed = -1 - np.int64(cell)
            if leads & OPEN == 0:
                alone = share(
                    behind(queue.sums, leads >> 14), np.int32(listed & SIZE),
                    peek(ws.tolerance, g), np.int32(leads), start_of(queue.met),
                )  # fmt: skip
                window = np.int32((2 << last) - (1 << first))
                meet, unsure = peek(queue.met, 0), peek(queue.met, 1)
                halves = behind(queue.halves, j * TRIES)
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
                scale = ONE / (numerators[first] / ws.divisor[j])
                cell = look_up(ws, points, k, j, code & rounded, scale, False)
                if cell < 0:
                    return -1
                poke(ws.cells, at, cell)
                continue
            second = (middle << shift) + g
            poke(queue.runs, n, word_of(at, middle - 1, code))
            poke(queue.runs, n + 1, word_of(second, last, code))
            poke(ws.cells, at, cell)
            poke(ws.cells, second, cell)
            poke(ws.starts, g, np.int32(peek(ws.starts, g) | np.int32(1 << middle)))
            n += 2
        return n

    @inner
    def settle_all(ws, points, exact):
        queue = ws.queue
        by_lane(ws.trials, queue.halves)
        for i in range(LANES * TRIES):
            queue.halves[i] = _HALF * queue.halves[i]
        for k in range(groups):
            for i in range(dim * LANES):
                factor = ws.root[k * dim * LANES + i]
                queue.factors[i] = factor
                queue.factors[dim * LANES + i] = factor * ws.x[k * dim * LANES + i]
            prepare(queue.factors, queue.terms)
            begin, n = 0, line_up(ws, points, k, exact)
            while begin < n:
                begin, m = lead_all(ws, points, k, begin, n)
                n = settle(ws, points, k, m, n)
                if n < 0:
                    return False
        return True

    return settle_all
