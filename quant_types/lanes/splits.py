"""The best split of IQ1's sorted weights, 16 sub-blocks side by side as one vector of LLVM's.

Where no lane finds a better one, which is most of the time, there is nothing to divide; so the
vectors are LLVM's own, with a branch on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.iq1 import DELTA
from quant_types.lanes.grid_work import LANES

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_LARGEST = 3.4028234663852886e38
# The three values where they are higher, and where they are lower
_VALUES = ((-1 + DELTA, DELTA, 1 + DELTA), (-1 - DELTA, -DELTA, 1 - DELTA))
Row = Callable[[int, Any], Any]  # array and row of it -> its vector


def _floats(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * LANES)


def _product(builder: Any, v: Any, *factors: float) -> Any:
    for factor in factors:
        v = builder.fmul(v, _floats(factor))
    return v


def make_places(length: int):
    """`add_places(x, rank)`: addresses of float32 and int32 `[length, LANES]`; each weight's place
    among the sorted, the first of equals before the others."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, rank = (builder.bitcast(a, _F32.as_pointer()) for a in arguments)
        ranks = builder.bitcast(rank, _I32.as_pointer())

        def at(array: Any, kind: Any, i: Any) -> Any:
            where = builder.gep(array, [builder.mul(i, _I64(LANES))])
            return builder.bitcast(where, kind.as_pointer())

        for i in range(length):
            builder.store(ir.Constant(_INTS, [i] * LANES), at(ranks, _INTS, _I64(i)), align=4)
        before = builder.block
        outer, inner, after = (builder.append_basic_block(n) for n in ("one", "other", "placed"))
        builder.branch(outer)
        builder.position_at_end(outer)
        one = builder.phi(_I64)
        value = builder.load(at(x, _FLOATS, one), align=4)
        start = builder.load(at(ranks, _INTS, one), align=4)
        begin = builder.add(one, _I64(1))
        builder.branch(inner)
        builder.position_at_end(inner)
        other, place = builder.phi(_I64), builder.phi(_INTS)
        less = builder.fcmp_ordered("<", builder.load(at(x, _FLOATS, other), align=4), value)
        less = builder.sext(less, _INTS)
        where = at(ranks, _INTS, other)
        builder.store(builder.add(builder.load(where, align=4), less), where, align=4)
        new_place = builder.sub(place, less)
        following = builder.add(other, _I64(1))
        done = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", following, _I64(length)), inner, done)
        other.add_incoming(begin, outer)
        other.add_incoming(following, inner)
        place.add_incoming(start, outer)
        place.add_incoming(new_place, inner)
        builder.position_at_end(done)
        builder.store(new_place, at(ranks, _INTS, one), align=4)
        builder.cbranch(builder.icmp_signed("<", begin, _I64(length - 1)), outer, after)
        one.add_incoming(_I64(0), before)
        one.add_incoming(begin, done)
        builder.position_at_end(after)
        return context.get_dummy_value()

    @intrinsic
    def add_places(typing, x, rank):
        return types.void(types.voidptr, types.voidptr), code

    return add_places


class _OfThirds:
    """IQ1_S: sums over the three parts. Arrays: running sums of w * x and of w."""

    arrays, options = 2, 2

    def __init__(self, builder: Any, length: int, row: Row) -> None:
        self.builder = builder
        self.totals = [row(i, _I64(length)) for i in range(2)]

    def first(self, rows: list[Any]) -> list[Any]:
        b = self.builder
        x, w = rows
        squares = [_product(b, w, v[0], v[0]) for v in _VALUES]
        return [x, w, *[_product(b, x, v[0]) for v in _VALUES], *squares]

    def sums(self, first: list[Any], rows: list[Any]) -> list[tuple[Any, Any]]:
        b = self.builder
        x, w, *rest = first
        middle_x = _product(b, b.fsub(rows[0], x), DELTA)
        middle_w = _product(b, b.fsub(rows[1], w), DELTA, DELTA)
        last_x, last_w = (b.fsub(total, v) for total, v in zip(self.totals, rows, strict=True))
        found = []
        for k, (_, _, high) in enumerate(_VALUES):
            add = b.fsub if k else b.fadd
            sum_qx = b.fadd(add(rest[k], middle_x), _product(b, last_x, high))
            sum_q2 = b.fadd(b.fadd(rest[2 + k], middle_w), _product(b, last_w, high, high))
            found.append((sum_qx, sum_q2))
        return found


class _OfHalves:
    """IQ1_M: each half has a shift. Arrays: of each half the running sums of w * x, and of w."""

    arrays, options = 4, 4

    def __init__(self, builder: Any, length: int, row: Row) -> None:
        self.builder = builder
        x, w = ([row(i, _I64(length)) for i in pair] for pair in ((0, 1), (2, 3)))
        self.totals_x = [[_product(builder, t, v[2]) for v in _VALUES] for t in x]
        self.totals_w = [[_product(builder, t, v[2], v[2]) for v in _VALUES] for t in w]

    def first(self, rows: list[Any]) -> list[Any]:
        b = self.builder
        found = rows[:2]
        for half in range(2):
            for k, v in enumerate(_VALUES):
                step = _product(b, rows[2 + half], v[0] * v[0] - v[1] * v[1])
                found.append(b.fadd(self.totals_w[half][k], step))
        return found

    def sums(self, first: list[Any], rows: list[Any]) -> list[tuple[Any, Any]]:
        b = self.builder
        x, w = [], []
        for half in range(2):
            both = b.fadd(first[half], rows[half])
            x.append([b.fsub(total, both) for total in self.totals_x[half]])
            w.append(
                [
                    b.fadd(
                        first[2 + 2 * half + k],
                        _product(b, rows[2 + half], v[1] * v[1] - v[2] * v[2]),
                    )
                    for k, v in enumerate(_VALUES)
                ]
            )
        pairs = ((0, 0), (0, 1), (1, 0), (1, 1))
        return [(b.fadd(x[0][i], x[1][j]), b.fadd(w[0][i], w[1][j])) for i, j in pairs]


def _make_best(length: int, kind: Any):
    """`best(sums, scale, split)`: the best way, of ggml's in its order.

    Args of `best`:
        sums: address of float32 `[arrays, length + 1, LANES]`, from 0.
        scale: address of float32 `[LANES]`: the scale before the search, and its result.
        split: address of int32 `[LANES]`: `(first * 64 + second) * 4 + shifts`, -1 without one.
    """
    span = (length + 1) * LANES

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, scale, split = arguments
        floats = builder.bitcast(sums, _F32.as_pointer())

        def vector(at: Any) -> Any:
            where = builder.bitcast(builder.gep(floats, [at]), _FLOATS.as_pointer())
            return builder.load(where, align=4)

        def row(array: int, number: Any) -> Any:
            at = builder.add(builder.mul(number, _I64(LANES)), _I64(array * span))
            return vector(at)

        def rows(number: Any) -> list[Any]:
            return [row(i, number) for i in range(kind.arrays)]

        def better(sum_qx: Any, sum_q2: Any, score: Any) -> Any:
            square, bar = builder.fmul(sum_qx, sum_qx), builder.fmul(score, sum_q2)
            higher = builder.fcmp_ordered(">", square, bar)
            return builder.and_(builder.fcmp_ordered(">", sum_q2, _floats(0.0)), higher)

        def number_of(first: Any, second: Any) -> Any:
            pair = builder.add(builder.mul(first, _I64(64)), second)
            return builder.trunc(builder.mul(pair, _I64(4)), _I32)

        def all_of(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(_INTS, ir.Undefined), value, _I32(0))
            return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES))

        scale = builder.bitcast(scale, _FLOATS.as_pointer())
        split = builder.bitcast(split, _INTS.as_pointer())
        state = [
            builder.load(scale, align=4), _floats(-_LARGEST), ir.Constant(_INTS, [-1] * LANES)
        ]  # fmt: skip
        ways = kind(builder, length, row)
        before = builder.block
        outer, inner, found, next_inner, next_outer, after = (
            builder.append_basic_block(name)
            for name in ("first", "second", "better", "on", "on_first", "best")
        )
        builder.branch(outer)

        builder.position_at_end(outer)
        first = builder.phi(_I64)
        state_outer = [builder.phi(v.type) for v in state]
        at_first = ways.first(rows(first))
        builder.branch(inner)

        builder.position_at_end(inner)
        second = builder.phi(_I64)
        state_inner = [builder.phi(v.type) for v in state]
        offered = ways.sums(at_first, rows(second))
        flags = [better(qx, q2, state_inner[1]) for qx, q2 in offered]
        some = flags[0]
        for flag in flags[1:]:
            some = builder.or_(some, flag)
        some = builder.icmp_unsigned(
            "!=", builder.bitcast(some, ir.IntType(LANES)), ir.IntType(LANES)(0)
        )
        builder.cbranch(some, found, next_inner)

        builder.position_at_end(found)
        base = number_of(first, second)
        new = state_inner
        for k, (sum_qx, sum_q2) in enumerate(offered):
            flag = better(sum_qx, sum_q2, new[1])
            new_scale = builder.fdiv(sum_qx, sum_q2)
            new = [
                builder.select(flag, new_scale, new[0]),
                builder.select(flag, builder.fmul(new_scale, sum_qx), new[1]),
                builder.select(flag, all_of(builder.add(base, _I32(k))), new[2]),
            ]
        builder.branch(next_inner)

        builder.position_at_end(next_inner)
        merged = [builder.phi(v.type) for v in state]
        for phi, old, one in zip(merged, state_inner, new, strict=True):
            phi.add_incoming(old, inner)
            phi.add_incoming(one, found)
        following = builder.add(second, _I64(1))
        builder.cbranch(builder.icmp_signed("<=", following, _I64(length)), inner, next_outer)
        second.add_incoming(first, outer)
        second.add_incoming(following, next_inner)
        for phi, old, one in zip(state_inner, state_outer, merged, strict=True):
            phi.add_incoming(old, outer)
            phi.add_incoming(one, next_inner)

        builder.position_at_end(next_outer)
        next_first = builder.add(first, _I64(1))
        builder.cbranch(builder.icmp_signed("<=", next_first, _I64(length)), outer, after)
        first.add_incoming(_I64(0), before)
        first.add_incoming(next_first, next_outer)
        for phi, old, one in zip(state_outer, state, merged, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(one, next_outer)

        builder.position_at_end(after)
        builder.store(merged[0], scale, align=4)
        builder.store(merged[2], split, align=4)
        return context.get_dummy_value()

    @intrinsic
    def best(typing, sums, scale, split):
        return types.void(types.voidptr, types.voidptr, types.voidptr), code

    return best


best_of_thirds, best_of_halves = _make_best(32, _OfThirds), _make_best(16, _OfHalves)
