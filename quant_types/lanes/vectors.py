"""What the searches of IQ1, IQ2 and IQ3 do with sub-blocks side by side, as vectors of LLVM's."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.lanes.compile import behind, inner, splat

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_EIGHT = ir.VectorType(_F32, 8)


def _places(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_I32, len(places)), places)


def make_columns(length: int, lanes: int):
    """`columns(part, column)`: flat float32 `[lanes, length]` to `[length, lanes]`; eight by eight,
    since a loop would load or store one at a time."""
    stages = (
        ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15], 1),
        ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15], 2),
        ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15], 4),
    )

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        part, column = (builder.bitcast(a, _F32.as_pointer()) for a in arguments)

        def at(array: Any, place: int) -> Any:
            return builder.bitcast(builder.gep(array, [_I64(place)]), _EIGHT.as_pointer())

        rows = [builder.load(at(part, k * length), align=4) for k in range(8)]
        for low, high, step in stages:
            for k in range(8):
                if k & step == 0:
                    pair = rows[k], rows[k + step]
                    for place, chosen in ((k, low), (k + step, high)):
                        rows[place] = builder.shuffle_vector(*pair, _places(chosen))
        for k, row in enumerate((0, 2, 1, 3, 4, 6, 5, 7)):
            builder.store(rows[row], at(column, k * lanes), align=4)
        return context.get_dummy_value()

    @intrinsic
    def turn(typing, part, column):
        return types.void(types.voidptr, types.voidptr), code

    @inner
    def columns(part, column):
        for lane in range(0, lanes, 8):
            for i in range(0, length, 8):
                turn(behind(part, lane * length + i), behind(column, i * lanes + lane))

    return columns


def make_divide(lanes: int):
    """`divide(number, divisor, quotient)`: number / divisor, addresses of float32 `[lanes]`. Of a
    loop LLVM makes divisions one by one."""
    floats = ir.VectorType(_F32, lanes)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, *rest = arguments
        divisor, quotient = (builder.bitcast(a, floats.as_pointer()) for a in rest)
        wide = splat(builder, number, lanes)
        builder.store(builder.fdiv(wide, builder.load(divisor, align=4)), quotient, align=4)
        return context.get_dummy_value()

    address = types.voidptr

    @intrinsic
    def divide(typing, number, divisor, quotient):
        return types.void(types.float32, address, address), code

    return divide


def make_add_codes(groups: int, dim: int, lanes: int):
    """`add_codes(x, inverse, bit, cells, starts, last)`: a try's codes, of eight levels.

    A product of a weight and the inverse scale is rounded to `2 * level + 1`, where a sum with
    1.5 * 2**24 is even.

    Args of `add_codes`:
        x: address of float32 [groups * dim, lanes], not far out of range.
        inverse: address of float32 [lanes].
        bit: int32, the try's.
        cells: address of int32 [groups, lanes] that is written to: codes, plus the next power of
            two where a weight is between two levels.
        starts, last: addresses of int32 [groups, lanes]: the bit is set where a code is not the
            last one; the last codes.
    """
    floats, ints = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
    whole = 1 << (3 * dim)
    border_width = 2.0**-14  # of 2 * level + 1

    def same(kind: Any, value: float) -> Any:
        return ir.Constant(kind, [value] * lanes)

    def magnitude(builder: Any, v: Any) -> Any:
        bits = builder.and_(builder.bitcast(v, ints), same(ints, 0x7FFFFFFF))
        return builder.bitcast(bits, floats)

    def coded(builder: Any, products: list[Any]) -> tuple[Any, Any]:
        code, farthest = same(ints, 0), None
        for v in reversed(products):
            v = builder.fsub(v, same(floats, 1.0))
            for sign, end in ((">", 0.0), ("<", 14.0)):
                inside = builder.fcmp_ordered(sign, v, same(floats, end))
                v = builder.select(inside, v, same(floats, end))
            rounded = builder.fadd(v, same(floats, 1.5 * 2.0**24))
            level = builder.and_(builder.bitcast(rounded, ints), same(ints, 7))
            code = builder.or_(builder.shl(code, same(ints, 3)), level)
            back = builder.fsub(rounded, same(floats, 1.5 * 2.0**24))
            moved = magnitude(builder, builder.fsub(v, back))
            farther = None if farthest is None else builder.fcmp_ordered(">", moved, farthest)
            farthest = moved if farther is None else builder.select(farther, moved, farthest)
        return code, builder.fcmp_ordered(">=", farthest, same(floats, 1.0 - border_width))

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, inverse, bit, *rest = arguments
        x, inverse, cells, starts, last = (
            builder.bitcast(a, _F32.as_pointer()) for a in (x, inverse, *rest)
        )

        def at(array: Any, place: Any, kind: Any) -> Any:
            where = builder.gep(array, [builder.mul(place, _I64(lanes))])
            return builder.bitcast(where, kind.as_pointer())

        def mark(array: Any, flags: Any) -> None:
            where = at(array, group, ints)
            marked = builder.or_(builder.load(where, align=4), bits)
            old = builder.load(where, align=4)
            builder.store(builder.select(flags, marked, old), where, align=4)

        bits = splat(builder, bit, lanes)
        factor = builder.load(at(inverse, _I64(0), floats), align=4)
        before = builder.block
        loop, after = builder.append_basic_block("group"), builder.append_basic_block("coded")
        builder.branch(loop)
        builder.position_at_end(loop)
        group = builder.phi(_I64)
        products = []
        for i in range(dim):
            row = builder.add(builder.mul(group, _I64(dim)), _I64(i))
            products.append(builder.fmul(factor, builder.load(at(x, row, floats), align=4)))
        found, between = coded(builder, products)
        between = builder.select(between, same(ints, whole), same(ints, 0))
        found = builder.or_(found, between)
        old = builder.load(at(last, group, ints), align=4)
        mark(starts, builder.icmp_unsigned("!=", found, old))
        builder.store(found, at(last, group, ints), align=4)
        builder.store(found, at(cells, group, ints), align=4)
        following = builder.add(group, _I64(1))
        builder.cbranch(builder.icmp_unsigned("<", following, _I64(groups)), loop, after)
        group.add_incoming(_I64(0), before)
        group.add_incoming(following, loop)
        builder.position_at_end(after)
        return context.get_dummy_value()

    address = types.voidptr

    @intrinsic
    def add_codes(typing, x, inverse, bit, cells, starts, last):
        return types.void(address, address, types.int32, address, address, address), code

    return add_codes
