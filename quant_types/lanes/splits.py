"""The best split of IQ1's sorted weights, 16 sub-blocks side by side as one vector of LLVM's.

ggml tries every way of cutting the sorted into three, under each shift, and keeps the one of
greatest `sum(w q x)**2 / sum(w q q)`. Both sums are, but for rounding, one number of the first cut
and one of the second; so a split is held against a bar (`split_bar`) in three operations, and those
that may reach it, a few in a hundred, are tried as ggml does.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.iq1 import DELTA
from quant_types.lanes.compile import splat, vector_width
from quant_types.lanes.grid_work import LANES
from quant_types.lanes.nearest import fused
from quant_types.lanes.rows import (
    F32,
    I32,
    I64,
    Loop,
    Rows,
    floats,
    ints,
    product,
)  # fmt: skip
from quant_types.lanes.split_bar import SHIFTS, ways_of

# The three values where they are higher, and where they are lower
_VALUES = tuple((shift - 1, shift, shift + 1) for shift in SHIFTS)


class _OfThirds:
    """IQ1_S: sums over the three parts. Arrays: running sums of w * x and of w."""

    halves = 1

    def __init__(self, builder: Any, totals: list[Any]) -> None:
        self.builder = builder
        self.totals = totals

    def first(self, rows: list[Any]) -> list[Any]:
        b = self.builder
        x, w = rows
        squares = [product(b, w, v[0], v[0]) for v in _VALUES]
        return [x, w, *[product(b, x, v[0]) for v in _VALUES], *squares]

    def sums(self, first: list[Any], rows: list[Any]) -> list[tuple[Any, Any]]:
        b = self.builder
        x, w, *rest = first
        middle_x = product(b, b.fsub(rows[0], x), DELTA)
        middle_w = product(b, b.fsub(rows[1], w), DELTA, DELTA)
        last_x, last_w = (b.fsub(total, v) for total, v in zip(self.totals, rows, strict=True))
        found = []
        for k, (_, _, high) in enumerate(_VALUES):
            add = b.fsub if k else b.fadd
            sum_qx = b.fadd(add(rest[k], middle_x), product(b, last_x, high))
            sum_q2 = b.fadd(b.fadd(rest[2 + k], middle_w), product(b, last_w, high, high))
            found.append((sum_qx, sum_q2))
        return found


class _OfHalves:
    """IQ1_M: each half has a shift. Arrays: of each half the running sums of w * x, and of w."""

    halves = 2

    def __init__(self, builder: Any, totals: list[Any]) -> None:
        self.builder = builder
        x, w = totals[:2], totals[2:]
        self.totals_x = [[product(builder, t, v[2]) for v in _VALUES] for t in x]
        self.totals_w = [[product(builder, t, v[2], v[2]) for v in _VALUES] for t in w]

    def first(self, rows: list[Any]) -> list[Any]:
        b = self.builder
        found = rows[:2]
        for half in range(2):
            for k, v in enumerate(_VALUES):
                step = product(b, rows[2 + half], v[0] * v[0] - v[1] * v[1])
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
                        product(b, rows[2 + half], v[1] * v[1] - v[2] * v[2]),
                    )
                    for k, v in enumerate(_VALUES)
                ]
            )
        pairs = ((0, 0), (0, 1), (1, 0), (1, 1))
        return [(b.fadd(x[0][i], x[1][j]), b.fadd(w[0][i], w[1][j])) for i, j in pairs]


def reach_rows(length: int, halves: int) -> int:
    """Rows of `[LANES]` that `make_reach` fills."""
    return (1 + (1 << halves)) * (length + 1)


def make_reach(length: int, halves: int):
    """`add_reach(sums, bar, reach)`: what each second cut adds to both sides of the comparison with
    the bar.

    Args of `add_reach`:
        sums: address of float32 `[2 * halves, length + 1, LANES]`, as of `make_running_sums`.
        bar: address of float32 `[3, LANES]`, as of `split_bar.make_bar`.
        reach: address of float32 `[1 + ways, length + 1, LANES]` that is written to: the sums of
            w * x of both halves; for each way the score times `sum(w * v * v)`, of the cut alone.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, bar, reach = (Rows(builder, a) for a in arguments)
        score = bar.load(0)

        def at(array: int, i: Any) -> Any:
            return builder.add(i, I64(array * (length + 1)))

        loop = Loop(builder, 0)
        i = loop.number
        x, w = ([sums.load(at(k * halves + h, i)) for h in range(halves)] for k in range(2))
        reach.store(i, x[0] if halves == 1 else builder.fadd(*x))
        scaled = [builder.fmul(score, one) for one in w]
        for k, shifts in enumerate(ways_of(halves)):
            total = product(builder, scaled[0], 1 + 2 * shifts[0])
            for one, shift in zip(scaled[1:], shifts[1:], strict=True):
                total = builder.fadd(total, product(builder, one, 1 + 2 * shift))
            reach.store(at(1 + k, i), total)
        loop.end(length + 1)
        return context.get_dummy_value()

    @intrinsic
    def add_reach(typing, sums, bar, reach):
        return types.void(types.voidptr, types.voidptr, types.voidptr), code

    return add_reach


def _make_best(length: int, kind: Any):
    """`best(sums, reach, bar, every, scale, score, split)`: the best way, of ggml's in its order.

    Args of `best`:
        sums: address of float32 `[2 * halves, length + 1, LANES]`, from 0.
        reach, bar: addresses of float32, as of `make_reach`.
        every: int32, as `split_bar.make_bar` returns it.
        scale: address of float32 `[LANES]`: the scale before the search, and its result.
        score: address of float32 `[LANES]`, to work in.
        split: address of int32 `[LANES]`: `(first * 64 + second) * 4 + shifts`, -1 without one.
    """
    halves = kind.halves
    ways = ways_of(halves)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = vector_width()
        floats_kind, ints_kind = ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
        mask = ir.IntType(lanes)
        part = Loop(builder, 0)
        behind = builder.mul(part.number, I64(4 * lanes))
        sums, reach, bar, scale, score, split = (
            Rows(builder, builder.gep(address, [behind]), kind)
            for address, kind in zip(
                (*arguments[:3], *arguments[4:]),
                (*[floats_kind] * 5, ints_kind),
                strict=True,
            )
        )
        every = builder.icmp_signed("!=", arguments[3], I32(0))

        def at(array: int, i: Any) -> Any:
            return builder.add(i, I64(array * (length + 1)))

        def rows(i: Any) -> list[Any]:
            return [sums.load(at(k, i)) for k in range(2 * halves)]

        def reached(row: Any) -> Any:
            """Whether a lane's sign is not set."""
            below = builder.icmp_signed("<", row, ints(0, lanes))
            some = builder.icmp_unsigned("!=", builder.bitcast(below, mask), mask(-1))
            return builder.or_(some, every)

        def better(sum_qx: Any, sum_q2: Any, score: Any) -> Any:
            square, least = builder.fmul(sum_qx, sum_qx), builder.fmul(score, sum_q2)
            higher = builder.fcmp_ordered(">", square, least)
            return builder.and_(builder.fcmp_ordered(">", sum_q2, floats(0.0, lanes)), higher)

        def update(first: Any, second: Any) -> None:
            """Try a split as ggml does, under all shifts."""
            offered = tried.sums(tried.first(rows(first)), rows(second))
            flags = [better(qx, q2, score.load(0)) for qx, q2 in offered]
            base = builder.add(builder.mul(first, I64(64)), second)
            base = builder.trunc(builder.mul(base, I64(4)), I32)
            for k, ((sum_qx, sum_q2), flag) in enumerate(zip(offered, flags, strict=True)):
                some = builder.icmp_unsigned("!=", builder.bitcast(flag, mask), mask(0))
                with builder.if_then(some):
                    if k:  # one before it may have changed the score
                        flag = better(sum_qx, sum_q2, score.load(0))
                    its_scale = builder.fdiv(sum_qx, sum_q2)
                    its_score = builder.fmul(its_scale, sum_qx)
                    its_split = splat(builder, builder.add(base, I32(k)), lanes)
                    its = zip((scale, score, split), (its_scale, its_score, its_split), strict=True)
                    for one, value in its:
                        one.store(0, builder.select(flag, value, one.load(0)))

        score.store(0, bar.load(2))
        split.store(0, ints(-1, lanes))
        totals = rows(I64(length))
        tried = kind(builder, totals)
        least = builder.fneg(bar.load(0))
        whole_x, whole_w = [], []  # of each way, what no cut changes on both sides
        for shifts in ways:
            x, w = [floats(0.0, lanes)] * 2
            for half, shift in enumerate(shifts):
                x = builder.fadd(x, product(builder, totals[half], 1 + shift))
                w = builder.fadd(w, product(builder, totals[halves + half], (1 + shift) ** 2))
            whole_x.append(x)
            whole_w.append(fused(builder, least, w, bar.load(1)))

        outer = Loop(builder, 0)
        first = outer.number
        x, w = reach.load(first), rows(first)[halves:]
        ours = []
        for k, shifts in enumerate(ways):
            low = product(builder, w[0], 1 - 2 * shifts[0])
            for one, shift in zip(w[1:], shifts[1:], strict=True):
                low = builder.fadd(low, product(builder, one, 1 - 2 * shift))
            ours.append((builder.fsub(whole_x[k], x), fused(builder, least, low, whole_w[k])))

        inner = Loop(builder, first)
        second = inner.number
        x, below = reach.load(second), None
        for k, (our_x, our_w) in enumerate(ours):
            apart = builder.fsub(our_x, x)
            w = builder.fadd(our_w, reach.load(at(1 + k, second)))
            sign = builder.bitcast(fused(builder, apart, apart, w), ints_kind)
            below = sign if below is None else builder.and_(below, sign)
        with builder.if_then(reached(below), likely=False):
            update(first, second)
        inner.end(length + 1)
        outer.end(length + 1)
        part.end(LANES // lanes)
        return context.get_dummy_value()

    address = types.voidptr

    @intrinsic
    def best(typing, sums, reach, bar, every, scale, score, split):
        return types.void(*[address] * 3, types.int32, *[address] * 3), code

    return best


best_of_thirds, best_of_halves = _make_best(32, _OfThirds), _make_best(16, _OfHalves)
