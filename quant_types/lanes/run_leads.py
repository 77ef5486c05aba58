"""Runs of groups side by side, as vectors of LLVM's: who leads under all scales of each.

The error of a candidate of values q is `scale * (scale * a - 2 * b)` and what all have in common,
with a and b the sums of `w * q * q` and `w * q * x`. Over the scale it is a line: who leads at both
ends of a range leads all over it, and where two do that, each has its side of the scale at which
they meet, if there no third is below them. Tolerances are more than rounding can do to a
difference, over the scale; whoever leads by more leads in `nearest` too.

A run's candidates are words (`quant_types.grids`), four of which are read at a time: rows of a
matrix that is turned, so that the runs are side by side.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.grids import LIST, SIZE, SIZE_BITS
from quant_types.lanes.compile import splat
from quant_types.lanes.nearest import call
from quant_types.lanes.rows import gathered

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
RUNS = 16  # side by side
TURNED = 4  # values of a row that are turned at a time
END = 16  # bits of a run's place, above which is the try behind its last one
UNSETTLED = -(1 << 31)  # the sign of a word
CUT, SINGLE = 64, 128  # it is not certain who leads, of a run of several tries and of one
_NEVER = -3e38


class Side:
    """Vectors of a value for each run."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.floats, self.ints = ir.VectorType(_F32, RUNS), ir.VectorType(_I32, RUNS)

    def number(self, value: int) -> Any:
        return ir.Constant(self.ints, [value] * RUNS)

    def real(self, value: float) -> Any:
        return ir.Constant(self.floats, [value] * RUNS)

    def load(self, address: Any, kind: Any) -> Any:
        return self.builder.load(self.builder.bitcast(address, kind.as_pointer()), align=4)

    def store(self, value: Any, address: Any) -> None:
        where = self.builder.bitcast(address, value.type.as_pointer())
        self.builder.store(value, where, align=4)

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once or twice: the tolerance covers both."""
        return call(self.builder, f"llvm.fmuladd.v{RUNS}f32", self.floats, a, b, c)

    def either(self, sign: str, a: Any, b: Any) -> Any:
        """The lower (<) or the higher (>) of two."""
        return self.builder.select(self.builder.fcmp_ordered(sign, a, b), a, b)

    def turned(self, address: Any, rows: list[Any], columns: int, kind: Any) -> list[Any]:
        """Columns of a matrix of a row for each run, at these places behind an address."""
        builder = self.builder
        base = builder.bitcast(address, kind.element.as_pointer())
        part = ir.VectorType(kind.element, TURNED)
        found = []
        for first in range(0, columns, TURNED):
            loaded = []
            for row in rows:
                at = builder.gep(base, [builder.add(row, _I64(first))])
                loaded.append(builder.load(builder.bitcast(at, part.as_pointer()), align=4))
            found += self._turn(loaded)
        return found

    def _turn(self, rows: list[Any]) -> list[Any]:
        """Vectors of four, one for each run, as four vectors of a value for each run."""
        parts = [self._joined(rows[i::TURNED]) for i in range(TURNED)]
        low, high = [0, RUNS, 1, RUNS + 1], [2, RUNS + 2, 3, RUNS + 3]
        pairs = [
            self._shuffled(parts[i], parts[i + 1], places) for i in (0, 2) for places in (low, high)
        ]
        left, right = [0, 1, RUNS, RUNS + 1], [2, 3, RUNS + 2, RUNS + 3]
        return [
            self._shuffled(pairs[i], pairs[i + 2], places)
            for i in (0, 1)
            for places in (left, right)
        ]

    def _joined(self, parts: list[Any]) -> Any:
        while len(parts) > 1:
            size = 2 * parts[0].type.count
            places = ir.Constant(ir.VectorType(_I32, size), [*range(size)])
            parts = [
                self.builder.shuffle_vector(a, b, places)
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
        return parts[0]

    def _shuffled(self, a: Any, b: Any, four: list[int]) -> Any:
        """The same choice in each four of two vectors."""
        places = [place + i for i in range(0, RUNS, TURNED) for place in four]
        return self.builder.shuffle_vector(a, b, ir.Constant(self.ints, places))


def make_lead(dim: int, bits: int, places: int, numerators: list[float]):
    """`lead(runs, halves, tolerance, x, w, words, far, close)`: the candidates that
    `nearest` finds under the scales of `RUNS` ranges; `share(which, runs, far, close, halves,
    tolerance, x, w, words, met)`: of such that two share, where the second's part begins.

    Args of `make_lead`:
        bits: of a level in a word.
        places: groups of all sub-blocks, a power of two; the low bits of one are the sub-block.
        numerators: of the tries, equally far apart: a scale is the divisor of its sub-block over
            one.

    Args of `lead` and `share`, addresses:
        runs: int32 [runs, 2], the range's first try times `places`, plus its group's place, and
            from bit `END` on the try behind its last one; then the chunk where its short list
            begins, and its size as in `Grid.cells`.
        divisor: float32 [LIST].
        halves: float32 [tries, LIST], half the scales of each sub-block, descending.
        tolerance: float32 [places], of half an error; NaN makes nothing certain (a negative one
            would be lost beside sums).
        x, w: float32 [places, dim], values, and the weight of each error.
        words: the grid's.
        far, close: int32 that `lead` writes to, who leads at the first and the last end, as words;
            the sign of the first is set if these are not the same or one is not certain, that of
            the second if one is not certain.
        which: int32, the runs' places in these arrays, which here are from their beginnings.
        met: int32 [RUNS] that is written to: the try with which the second's part begins; plus
            `CUT` if that is not certain, but where to cut the run; or `SINGLE`, of one try.
    """
    shift = places.bit_length() - 1

    def scalars(builder: Any, address: Any, indices: list[Any]) -> list[Any]:
        base = builder.bitcast(address, _I32.as_pointer())
        return [builder.zext(builder.load(builder.gep(base, [i]), align=4), _I64) for i in indices]

    def group_rows(builder: Any, runs: list[Any]) -> list[Any]:
        return [builder.mul(builder.and_(run, _I64(places - 1)), _I64(dim)) for run in runs]

    def sums(side: Side, word: Any, xs: list[Any], ws: list[Any]) -> tuple[Any, Any]:
        builder = side.builder
        a, b = None, None
        for i in range(dim):
            q = builder.lshr(word, side.number(14 + bits * i))
            q = builder.and_(q, side.number(2 * ((1 << bits) - 1)))
            q = builder.sitofp(builder.or_(q, side.number(1)), side.floats)
            wq = builder.fmul(ws[i], q)
            a = builder.fmul(wq, q) if a is None else side.fused(wq, q, a)
            b = builder.fmul(wq, xs[i]) if b is None else side.fused(wq, xs[i], b)
        return a, b

    def each(
        side: Side, words: Any, lists: list[Any], sizes: Any, start: list[Any], body: Any
    ) -> list[Any]:
        """What `body` makes of a start with all candidates, of which some runs have fewer."""
        builder = side.builder
        rows = []
        for one in lists:
            rows.append(builder.mul(builder.lshr(one, _I64(SIZE_BITS)), _I64(LIST)))
        longest = call(builder, f"llvm.vector.reduce.umax.v{RUNS}i32", _I32, sizes)
        before = builder.block
        loop, after = (builder.append_basic_block(name) for name in ("candidates", "compared"))
        builder.branch(loop)
        builder.position_at_end(loop)
        done = builder.phi(_I32)
        carried = [builder.phi(value.type) for value in start]
        values = list(carried)
        here = [builder.add(row, builder.zext(done, _I64)) for row in rows]
        left = builder.sub(sizes, self_all(side, done))
        for i, word in enumerate(side.turned(words, here, TURNED, side.ints)):
            live = builder.icmp_signed(">", left, side.number(i))
            values = body(word, live, values)
        following = builder.add(done, _I32(TURNED))
        builder.cbranch(builder.icmp_unsigned("<", following, longest), loop, after)
        done.add_incoming(_I32(0), before)
        done.add_incoming(following, loop)
        for phi, first, value in zip(carried, start, values, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, loop)
        builder.position_at_end(after)
        return values

    def self_all(side: Side, value: Any) -> Any:
        return splat(side.builder, value, side.ints.count)

    def ends(side: Side, run: Any) -> tuple[Any, Any, Any]:
        """First and last try, and sub-block."""
        builder = side.builder
        first = builder.lshr(builder.and_(run, side.number((1 << END) - 1)), side.number(shift))
        lane = builder.and_(run, side.number(LIST - 1))
        last = builder.sub(builder.lshr(run, side.number(END)), side.number(1))
        return first, last, lane

    def half(side: Side, halves: Any, t: Any, lane: Any) -> Any:
        at = side.builder.or_(side.builder.mul(t, side.number(LIST)), lane)
        return gathered(side.builder, halves, at, side.floats)

    def lead_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        runs, halves, tolerance, x, w, words, far, close = arguments
        side = Side(builder)
        rows = group_rows(builder, scalars(builder, runs, [_I64(2 * i) for i in range(RUNS)]))
        xs, ws = (side.turned(a, rows, dim, side.floats) for a in (x, w))
        pairs = side.load(runs, ir.VectorType(_I32, 2 * RUNS))
        run, sizes = (
            builder.shuffle_vector(pairs, pairs, ir.Constant(side.ints, [*range(i, 2 * RUNS, 2)]))
            for i in range(2)
        )
        sizes = builder.and_(sizes, side.number(SIZE))
        first, last, lane = ends(side, run)
        both_ends = [half(side, halves, t, lane) for t in (first, last)]

        def body(word: Any, live: Any, values: list[Any]) -> list[Any]:
            a, b = sums(side, word, xs, ws)
            b = builder.select(live, b, side.real(_NEVER))
            found = []
            for i, end in enumerate(both_ends):
                least, second, best = values[3 * i : 3 * i + 3]
                error = side.fused(end, a, builder.fneg(b))
                closer = builder.fcmp_ordered("<", error, least)
                second = side.either("<", side.either(">", error, least), second)
                least = side.either("<", error, least)
                found += [least, second, builder.select(closer, word, best)]
            return found

        infinite = side.real(float("inf"))
        start = [infinite, infinite, side.number(0)] * 2
        lists = scalars(builder, runs, [_I64(2 * i + 1) for i in range(RUNS)])
        values = each(side, words, lists, sizes, start, body)
        place = builder.and_(run, side.number(places - 1))
        tolerances = gathered(builder, tolerance, place, side.floats)
        sure = [
            builder.fcmp_ordered(">", values[i + 1], builder.fadd(values[i], tolerances))
            for i in (0, 3)
        ]
        unsure = builder.not_(builder.and_(*sure))
        several = builder.or_(unsure, builder.icmp_unsigned("!=", values[2], values[5]))
        sign, none = side.number(UNSETTLED), side.number(0)
        for word, flag, address in ((values[2], several, far), (values[5], unsure, close)):
            side.store(builder.or_(word, builder.select(flag, sign, none)), address)
        return context.get_dummy_value()

    def share_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        which, runs, far, close, halves, divisor, tolerance, x, w, words, met = arguments
        side = Side(builder)
        firsts = [
            builder.shl(i, _I64(1)) for i in scalars(builder, which, [_I64(i) for i in range(RUNS)])
        ]
        rows = group_rows(builder, scalars(builder, runs, firsts))
        xs, ws = (side.turned(a, rows, dim, side.floats) for a in (x, w))
        chosen = side.load(which, side.ints)
        one, two = (gathered(builder, a, chosen, side.ints) for a in (far, close))
        chosen = builder.shl(chosen, side.number(1))
        run = gathered(builder, runs, chosen, side.ints)
        sizes = gathered(builder, runs, builder.or_(chosen, side.number(1)), side.ints)
        sizes = builder.and_(sizes, side.number(SIZE))
        first, last, lane = ends(side, run)
        place = builder.and_(run, side.number(places - 1))
        tolerances = gathered(builder, tolerance, place, side.floats)
        (a, b), (other_a, other_b) = (sums(side, word, xs, ws) for word in (one, two))
        apart = builder.fdiv(side.real(1.0), builder.fsub(a, other_a))
        meet = builder.fmul(builder.fsub(b, other_b), apart)
        bar = builder.fadd(side.fused(meet, a, builder.fneg(b)), tolerances)

        def under(a: Any, b: Any) -> Any:
            return builder.fcmp_ordered("<=", side.fused(meet, a, builder.fneg(b)), bar)

        def body(word: Any, live: Any, values: list[Any]) -> list[Any]:
            low = builder.and_(under(*sums(side, word, xs, ws)), live)
            return [builder.add(values[0], builder.zext(low, side.ints))]

        lists = scalars(builder, runs, [builder.or_(i, _I64(1)) for i in firsts])
        (count,) = each(side, words, lists, sizes, [side.number(0)], body)
        magnitude = call(builder, f"llvm.fabs.v{RUNS}f32", side.floats, apart)
        unsure = builder.fmul(tolerances, magnitude)
        later, sooner = builder.fsub(meet, unsure), builder.fadd(meet, unsure)
        # half of the divisor over the numerator is below where the numerator is above
        ahead = builder.fdiv(
            gathered(builder, divisor, lane, side.floats), builder.fadd(later, later)
        )
        ahead = builder.fsub(ahead, side.real(numerators[0]))
        ahead = builder.fmul(ahead, side.real(1 / (numerators[1] - numerators[0])))
        ahead = side.either("<", ahead, side.real(len(numerators)))
        ahead = side.either(">", ahead, side.real(0.0))
        t = builder.add(builder.fptosi(ahead, side.ints), side.number(1))
        inside = builder.icmp_signed("<", first, t)
        t = builder.select(inside, t, builder.add(first, side.number(1)))
        below = builder.icmp_signed("<=", t, last)
        t = builder.select(below, t, last)
        before = builder.sub(t, side.number(1))
        sure = builder.icmp_signed(">=", two, side.number(0))
        certain = sure
        for part in (
            inside,
            below,
            builder.fcmp_ordered("<", half(side, halves, t, lane), later),
            builder.fcmp_ordered(">=", half(side, halves, before, lane), sooner),
            builder.icmp_unsigned("==", count, side.number(2)),
            under(other_a, other_b),
        ):
            certain = builder.and_(certain, part)
        single = builder.icmp_signed("==", first, last)
        middle = builder.add(builder.add(first, last), side.number(1))
        t = builder.select(sure, t, builder.lshr(middle, side.number(1)))
        found = builder.or_(t, builder.select(certain, side.number(0), side.number(CUT)))
        found = builder.select(single, side.number(SINGLE), found)
        side.store(found, met)
        return context.get_dummy_value()

    address = types.voidptr

    @intrinsic
    def lead(typing, runs, halves, tolerance, x, w, words, far, close):
        return types.void(*[address] * 8), lead_code

    @intrinsic
    def share(typing, which, runs, far, close, halves, divisor, tolerance, x, w, words, met):
        return types.void(*[address] * 11), share_code

    return lead, share


def make_rows(dim: int, groups: int):
    """`rows(columns, rows)`: float32 [groups * dim, LIST] to [groups, LIST, dim], addresses."""
    kind = ir.VectorType(_F32, TURNED)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        columns, rows = (builder.bitcast(a, _F32.as_pointer()) for a in arguments)
        side = Side(builder)
        for group in range(groups):
            for first in range(0, dim, TURNED):
                for lane in range(0, LIST, TURNED):
                    at = [(group * dim + first + i) * LIST + lane for i in range(TURNED)]
                    four = [
                        builder.load(
                            builder.bitcast(builder.gep(columns, [_I64(i)]), kind.as_pointer()),
                            align=4,
                        )
                        for i in at
                    ]
                    for i, row in enumerate(turn_four(builder, four)):
                        to = (group * LIST + lane + i) * dim + first
                        side.store(row, builder.gep(rows, [_I64(to)]))
        return context.get_dummy_value()

    @intrinsic
    def turn(typing, columns, rows):
        return types.void(types.voidptr, types.voidptr), code

    return turn


def turn_four(builder: Any, rows: list[Any]) -> list[Any]:
    """Four vectors of four, turned."""

    def shuffled(a: Any, b: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, 4), places))

    pairs = [
        shuffled(rows[i], rows[i + 1], places)
        for i in (0, 2)
        for places in ([0, 4, 1, 5], [2, 6, 3, 7])
    ]
    return [
        shuffled(pairs[i], pairs[i + 2], places)
        for i in (0, 1)
        for places in ([0, 1, 4, 5], [2, 3, 6, 7])
    ]
