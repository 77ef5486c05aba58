"""Which of the scales that were tried fits best (IQ2, IQ3): ggml's sums, try after try."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.lanes.compile import splat
from quant_types.lanes.grid_work import LANES
from quant_types.lanes.rows import (
    FLOATS,
    I32,
    I64,
    INTS,
    MASK,
    Loop,
    Rows,
    floats,
    gathered,
    ints,
    lowest_bit,
)

_address = types.voidptr


def make_add_two(groups: int, dim: int, bits: int, apart: bool):
    """`add_two(cells, starts, rest, last, wx, w, sums)`: weighted sums of the values under two
    tries.

    Args of `make_add_two`:
        bits: of a level in a cell.
        apart: each sub-block goes on to its own next tries, at which a run of one of its groups
            begins, instead of all to the next two.

    Args of `add_two`, addresses:
        cells: int32 [tries, groups, LANES], where runs begin.
        starts: int32 [groups, LANES]: a bit for each try at which one does.
        rest: int32 [LANES]: of the tries that are left; two are taken away.
        last: int32 [2, groups, LANES]: in the second, the cells of the try before; those of both
            tries are written to it.
        wx, w: float32 [groups * dim, LANES]: weights times their values, and weights.
        sums: float32 [4, LANES] that is written to: of each try the sum of `wx * q` and of
            `w * q * q`.

    `add_two` returns whether tries are left, int32.
    """
    mask = 2 * ((1 << bits) - 1)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cells, starts, left, last, wx, w, sums = arguments
        starts, left, last = (Rows(builder, v, INTS) for v in (starts, left, last))
        wx, w, sums = (Rows(builder, v) for v in (wx, w, sums))
        rest = left.load(0)
        tried = []  # bits, and where their cells begin
        for _ in range(2):
            bit, t = lowest_bit(builder, rest)
            t = builder.select(builder.icmp_signed(">", t, ints(0)), t, ints(0))
            rest = builder.and_(rest, builder.sub(rest, ints(1)))
            if apart:
                at = builder.mul(t, ints(groups * LANES))
                lanes = ir.Constant(INTS, [*range(LANES)])
                tried.append((bit, builder.add(at, lanes)))
            else:
                t = builder.sext(builder.extract_element(t, I32(0)), I64)
                tried.append((bit, builder.mul(t, I64(groups))))
        left.store(0, rest)
        loop = Loop(builder, 0, *[floats(0.0)] * 4)
        group, added = loop.number, list(loop.carried)
        begins = starts.load(group)
        second = builder.add(group, I64(groups))
        cell, chosen = last.load(second), []
        for (bit, at), place in zip(tried, (group, second), strict=True):
            if apart:
                first = builder.trunc(builder.mul(group, I64(LANES)), I32)
                there = gathered(builder, cells, builder.add(at, splat(builder, first, LANES)))
            else:
                there = Rows(builder, cells, INTS).load(builder.add(at, group))
            here = builder.icmp_unsigned("!=", builder.and_(begins, bit), ints(0))
            cell = builder.select(here, there, cell)
            last.store(place, cell)
            chosen.append(cell)
        for i in range(dim):
            row = builder.add(builder.mul(group, I64(dim)), I64(i))
            weight, product = w.load(row), wx.load(row)
            for k, cell in enumerate(chosen):
                q = builder.and_(builder.lshr(cell, ints(14 + bits * i)), ints(mask))
                q = builder.sitofp(builder.or_(q, ints(1)), FLOATS)
                added[2 * k] = builder.fadd(added[2 * k], builder.fmul(product, q))
                square = builder.fmul(builder.fmul(weight, q), q)
                added[2 * k + 1] = builder.fadd(added[2 * k + 1], square)
        for k, value in enumerate(loop.end(groups, *added)):
            sums.store(k, value)
        more = builder.bitcast(builder.icmp_signed("!=", rest, ints(0)), MASK)
        return builder.zext(more, I32)

    @intrinsic
    def add_two(typing, cells, starts, rest, last, wx, w, sums):
        return types.int32(*[_address] * 7), code

    return add_two


def make_choose(groups: int):
    """`choose(sums, cells, scale, best, best_cells)`: what a try is better at.

    Args of `choose`, addresses:
        sums: float32 [2, LANES], a try's sums as `add_two` leaves them.
        cells: int32 [groups, LANES], its cells.
        scale, best: float32 [LANES], of the best try so far its scale, and that times its first
            sum; best_cells: int32 [groups, LANES].
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, cells, scale, best, best_cells = arguments
        sums, scale, best = (Rows(builder, v) for v in (sums, scale, best))
        cells, best_cells = (Rows(builder, v, INTS) for v in (cells, best_cells))
        qx, q2 = sums.load(0), sums.load(1)
        bar = builder.fmul(best.load(0), q2)
        better = builder.fcmp_ordered(">", builder.fmul(qx, qx), bar)
        better = builder.and_(better, builder.fcmp_ordered(">", q2, floats(0.0)))
        found = builder.fdiv(qx, q2)

        def put(value: Any, rows: Rows, number: int) -> None:
            rows.store(number, builder.select(better, value, rows.load(number)))

        put(found, scale, 0)
        put(builder.fmul(found, qx), best, 0)
        for group in range(groups):
            put(cells.load(group), best_cells, group)
        return context.get_dummy_value()

    @intrinsic
    def choose(typing, sums, cells, scale, best, best_cells):
        return types.void(*[_address] * 5), code

    return choose
