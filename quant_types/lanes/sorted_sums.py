"""Weights of 16 sub-blocks in sorted order, a sub-block a lane, and their running sums."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.lanes.grid_work import LANES
from quant_types.lanes.rows import I32, I64, INTS, Loop, Rows, floats, ints

_I8 = ir.IntType(8)
PAIR = 8  # bytes of two float32


def make_places(length: int):
    """`add_places(x, rank)`: addresses of float32 and int32 `[length, LANES]`; each weight's place
    among the sorted, the first of equals before the others."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, ranks = Rows(builder, arguments[0]), Rows(builder, arguments[1], INTS)
        for i in range(length):
            ranks.store(i, ints(i))
        outer = Loop(builder, 0)
        one = outer.number
        value, place = x.load(one), ranks.load(one)
        following = builder.add(one, I64(1))
        inner = Loop(builder, following, place)
        other = inner.number
        less = builder.sext(builder.fcmp_ordered("<", x.load(other), value), INTS)
        ranks.store(other, builder.add(ranks.load(other), less))
        (place,) = inner.end(length, builder.sub(inner.carried[0], less))
        ranks.store(one, place)
        outer.end(length - 1)
        return context.get_dummy_value()

    @intrinsic
    def add_places(typing, x, rank):
        return types.void(types.voidptr, types.voidptr), code

    return add_places


def make_sort(length: int, halves: int):
    """`sort(x, w, rank, pairs, offsets, ordered)`: pairs of w * x and w in sorted order.

    Args of `sort`:
        x, w: addresses of float32 `[length, LANES]`.
        rank: address of int32 `[length, LANES]`, as of `add_places`.
        pairs: address of float32 `[length, LANES, 2]`, to work in.
        offsets: address of int32 `[length, LANES]`, to work in.
        ordered: address of float32 `[halves, length, LANES, 2]`: each half of a sub-block by
            itself, with zeros where the other half's weights are.
    """
    row = LANES * PAIR
    part = length // halves

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, rank, pairs, offsets, ordered = arguments
        xs, ws, ranks = Rows(builder, x), Rows(builder, w), Rows(builder, rank, INTS)
        both, at = Rows(builder, pairs, stride=2 * LANES), Rows(builder, offsets, INTS)
        sides = [
            ir.Constant(INTS, [i // 2 + i % 2 * LANES for i in range(k, k + LANES)])
            for k in (0, LANES)
        ]
        loop = Loop(builder, 0)
        i = loop.number
        weight = ws.load(i)
        product = builder.fmul(weight, xs.load(i))
        for k, side in enumerate(sides):
            both.store(i, builder.shuffle_vector(product, weight, side), k * LANES)
        at.store(i, builder.mul(ranks.load(i), ints(row)))
        loop.end(length)
        if halves > 1:
            zeros = Rows(builder, ordered)
            loop = Loop(builder, 0)
            zeros.store(loop.number, floats(0.0))
            loop.end(halves * length * 2)
        for half in range(halves):
            start = builder.gep(ordered, [I64(half * length * row)])
            loop = Loop(builder, half * part)
            first = builder.mul(loop.number, I64(LANES))
            for j in range(LANES):
                k = builder.add(first, I64(j))
                offset = builder.load(builder.gep(at.numbers, [k]))
                offset = builder.bitcast(offset, I32)
                pair = builder.gep(pairs, [builder.mul(k, I64(PAIR))])
                pair = builder.load(builder.bitcast(pair, I64.as_pointer()), align=4)
                to = builder.gep(start, [builder.add(builder.zext(offset, I64), I64(j * PAIR))])
                builder.store(pair, builder.bitcast(to, I64.as_pointer()), align=4)
            loop.end((half + 1) * part)
        return context.get_dummy_value()

    address = types.voidptr

    @intrinsic
    def sort(typing, x, w, rank, pairs, offsets, ordered):
        return types.void(*[address] * 6), code

    return sort


def make_running_sums(length: int, halves: int):
    """`add_up(ordered, sums)`: running sums of what `sort` has put in order.

    Args of `add_up`:
        ordered: as of `sort`.
        sums: address of float32 `[2 * halves, length + 1, LANES]`, from 0: of each half those of
            w * x, then of each those of w.
    """
    sides = [ir.Constant(INTS, [2 * i + k for i in range(LANES)]) for k in range(2)]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pairs = Rows(builder, arguments[0], stride=2 * LANES)
        sums = Rows(builder, arguments[1])
        for a in range(2 * halves):
            sums.store(a * (length + 1), floats(0.0))
        loop = Loop(builder, 0, *[floats(0.0)] * (2 * halves))
        i = loop.number
        totals = list(loop.carried)
        for half in range(halves):
            k = builder.add(i, I64(half * length))
            one, other = pairs.load(k), pairs.load(k, LANES)
            for side, number in zip(sides, (half, halves + half), strict=True):
                added = builder.shuffle_vector(one, other, side)
                totals[number] = builder.fadd(totals[number], added)
                sums.store(builder.add(i, I64(number * (length + 1) + 1)), totals[number])
        loop.end(length, *totals)
        return context.get_dummy_value()

    @intrinsic
    def add_up(typing, ordered, sums):
        return types.void(types.voidptr, types.voidptr), code

    return add_up
