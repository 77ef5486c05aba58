"""Which levels groups of 8 weights round to (IQ2), try by try: where each crosses to the next one.

The inverse scales that are tried go up by steps, less than double from the first to the last, so
that a weight goes up by one level at most: `2 * level + 1` from below 2 or from below 4. At which
try it does is computed, not tried: a run of equal codes ends where a weight of the group crosses.
What is not certain to cross between two tries is rounded as ggml does, by `code_of`.
"""

from __future__ import annotations

import math
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.lanes.compile import splat
from quant_types.lanes.grid_work import LANES
from quant_types.lanes.nearest import call, fused
from quant_types.lanes.rows import (
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
    magnitude,
    scattered,
)

AT, LAST = 10, 15  # bits of a run's word: below them its place in `cells`, then its last try; above
# its code
# Of tries: what is computed errs by 2e-5 of one. Beyond it a weight is 1e-6 of `2 * level + 1` from
# the border at least, and rounding in `nearest` does not turn which level is nearer to it.
_UNSURE = 2.0**-14
_ROUND, _ROUND_BITS = 1.5 * 2.0**23, 0x4B400000


def make_line_up(numerators: list[float], groups: int, dim: int, shift: int):
    """`line_up(x, divisor, empty, all_unsure, first, table, cells, starts, runs)`: a group's runs.

    Args of `make_line_up`:
        numerators: of the inverse scales, at equal steps.
        shift: bits of a try's cells, `groups * LANES`.

    Args of `line_up`:
        x: address of float32 [dim, LANES].
        divisor: address of float32 [LANES].
        empty: address of int32 [LANES]: not 0 where no run is wanted.
        all_unsure: int32, not 0 where no try is certain.
        first: int64, the group's first place among the cells of a try.
        table: address of the cells of codes (`quant_types.grids.Grid.cells`).
        cells: address of int32 [tries and one more, groups, LANES]: where runs begin, what `table`
            says of their codes is written to it.
        starts: address of int32 [LANES] that is written to: a bit for each try at which a run
            begins, and where it is not certain whether one does.
        runs: address of int32 that is written to: a word for each run that is off the grid.

    `line_up` returns how many runs there are, and from bit 16 on a bit for each sub-block in which
    something is not certain: of these only the starts are written.
    """
    tries = len(numerators)
    low, high = numerators[0], numerators[-1]
    step = (high - low) / (tries - 1)
    assert high < 1.6 * low, "a weight may cross two borders"
    assert max(abs(low + step * t - n) for t, n in enumerate(numerators)) < step * 2.0**-18
    apart = math.sqrt(low * high) / math.sqrt(8.0)  # of divisor / x, between both borders

    def sure(builder: Any, x: Rows, divisor: Any) -> tuple[list[Any], Any, Any, Any]:
        """The try from which on each weight is a level higher; the code before all tries; bits of
        tries at which one crosses, or may."""
        crossings, code, bits, unsure = [], ints(0), ints(0), ints(0)
        for i in range(dim):
            v = x.load(i)
            v = builder.select(builder.fcmp_ordered(">", v, floats(0.0)), v, floats(0.0))
            ratio = builder.fdiv(divisor, v)
            upper = builder.fcmp_ordered("<", ratio, floats(apart))
            code = builder.add(code, builder.select(upper, ints(3**i), ints(0)))
            factor = builder.select(upper, floats(4.0 / step), floats(2.0 / step))
            t = fused(builder, ratio, factor, floats(-low / step))
            inside = builder.fcmp_ordered("<", t, floats(tries))
            t = builder.select(inside, t, floats(tries))
            inside = builder.fcmp_ordered(">", t, floats(-1.0))
            t = builder.select(inside, t, floats(-1.0))
            rounded = builder.fadd(t, floats(_ROUND))
            beyond = builder.fsub(t, builder.fsub(rounded, floats(_ROUND)))
            at = builder.sub(builder.bitcast(rounded, INTS), ints(_ROUND_BITS - 1))
            between = builder.fcmp_ordered("<", magnitude(builder, beyond), floats(_UNSURE))
            bit = builder.shl(ints(1), at)
            unsure = builder.or_(unsure, builder.select(between, bit, ints(0)))
            later = builder.fcmp_ordered(">", beyond, floats(0.0))
            at = builder.add(at, builder.select(later, ints(1), ints(0)))
            bits = builder.or_(bits, builder.shl(ints(1), at))
            crossings.append(builder.sub(at, ints(1)))
        bits, unsure = (builder.lshr(v, ints(1)) for v in (bits, unsure))
        unsure = builder.and_(unsure, ints((1 << tries) - 1))
        bits = builder.or_(bits, builder.or_(unsure, builder.shl(unsure, ints(1))))
        bits = builder.and_(builder.or_(bits, ints(1)), ints((1 << tries) - 1))
        return crossings, code, bits, unsure

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, divisor, empty, all_unsure, first, table, cells, starts, runs = arguments
        x, divisor = Rows(builder, x), Rows(builder, divisor).load(0)
        crossings, before, bits, unsure = sure(builder, x, divisor)
        wanted = builder.icmp_signed("==", Rows(builder, empty, INTS).load(0), ints(0))
        none = builder.icmp_signed("==", unsure, ints(0))
        certain = builder.icmp_signed("==", all_unsure, I32(0))
        none = builder.select(certain, none, ir.Constant(none.type, [0] * LANES))
        bits = builder.select(certain, bits, ints((1 << tries) - 1))
        bits = builder.select(wanted, bits, ints(1))
        Rows(builder, starts, INTS).store(0, bits)
        settled = builder.or_(none, builder.not_(wanted))
        runs = builder.bitcast(runs, I32.as_pointer())
        lanes = ir.Constant(INTS, [*range(LANES)])
        nowhere = ir.Constant(INTS, [(tries << shift) + lane for lane in range(LANES)])
        places = builder.add(lanes, splat(builder, builder.trunc(first, I32), LANES))
        open_bits = builder.select(settled, bits, ints(0))
        loop = Loop(builder, 0, open_bits, lowest_bit(builder, open_bits)[1], I64(0))
        rest, t, n = loop.carried
        there = builder.icmp_signed("!=", rest, ints(0))
        found = before
        for i, crossing in enumerate(crossings):
            crossed = builder.icmp_signed(">=", t, crossing)
            found = builder.add(found, builder.select(crossed, ints(3**i), ints(0)))
        cell = gathered(builder, table, found)
        at = builder.add(builder.shl(t, ints(shift)), places)
        at = builder.select(there, at, nowhere)
        rest = builder.and_(rest, builder.sub(rest, ints(1)))
        _, following = lowest_bit(builder, builder.or_(rest, ints(1 << tries)))
        scattered(builder, cells, at, cell)
        last = builder.shl(builder.sub(following, ints(1)), ints(AT))
        word = builder.or_(builder.or_(at, last), builder.shl(found, ints(LAST)))
        off = builder.and_(builder.icmp_signed("<", cell, ints(0)), builder.and_(there, wanted))
        packed = call(
            builder, f"llvm.experimental.vector.compress.v{LANES}i32", INTS, word, off,
            ir.Constant(INTS, ir.Undefined),
        )  # fmt: skip
        where = builder.bitcast(builder.gep(runs, [n]), INTS.as_pointer())
        builder.store(packed, where, align=4)
        count = call(builder, f"llvm.ctpop.i{LANES}", MASK, builder.bitcast(off, MASK))
        n = builder.add(n, builder.zext(count, I64))
        more = builder.icmp_signed("!=", rest, ints(0))
        more = builder.icmp_signed("!=", builder.bitcast(more, MASK), MASK(0))
        (_, _, n) = loop.end_while(more, rest, following, n)
        open_lanes = builder.zext(builder.bitcast(builder.not_(settled), MASK), I64)
        return builder.or_(n, builder.shl(open_lanes, I64(16)))

    address = types.voidptr

    @intrinsic
    def line_up(typing, x, divisor, empty, all_unsure, first, table, cells, starts, runs):
        kinds = (address, address, address, types.int32, types.int64, *[address] * 4)
        return types.int64(*kinds), code

    return line_up
