"""What IQ4_NL and IQ4_XS look up of 32 weights at once, as vectors of LLVM's.

Borders between values are whole or half. So floor(v), for one with a half floor(v + 0.5), tells on
which side of it v is, and both fit in a byte: bytes are compared, and what each border adds to the
value or the index is added, four times as many at once as float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quant_types.iq4 import BORDERS, VALUES
from quant_types.lanes.compile import splat

_WIDTH = 32
_I8, _I32 = ir.IntType(8), ir.IntType(32)
_BYTES, _INTS, _FLOATS = (ir.VectorType(one, _WIDTH) for one in (_I8, _I32, ir.FloatType()))
_INDICES = tuple(range(16))


def _same(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * _WIDTH)


def _floor(builder: Any, v: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.floor.v{_WIDTH}f32"
    )
    return builder.fptosi(builder.call(function, [v]), _BYTES)


def _wide(builder: Any, value: Any) -> Any:
    return splat(builder, value, _WIDTH)


def _load(builder: Any, address: Any) -> Any:
    return builder.load(builder.bitcast(address, _FLOATS.as_pointer()), align=4)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=1)


def _sides(builder: Any, v: Any, borders: Sequence[float]) -> list[Any]:
    """Where v is not below each of some borders; a NaN is below none."""
    for sign, end in (("<", 127.0), (">", -128.0)):
        inside = builder.fcmp_ordered(sign, v, _same(_FLOATS, end))
        v = builder.select(inside, v, _same(_FLOATS, end))
    whole = _floor(builder, v)
    half = _floor(builder, builder.fadd(v, _same(_FLOATS, 0.5)))
    return [
        builder.icmp_signed(">=", whole, _same(_BYTES, int(border)))
        if border == int(border)
        else builder.icmp_signed(">=", half, _same(_BYTES, int(border + 0.5)))
        for border in borders
    ]


def _steps(builder: Any, sides: list[Any], values: Sequence[int]) -> Any:
    """Bytes: of one value more than borders that which is behind the last one passed."""
    found = _same(_BYTES, values[0])
    for side, low, high in zip(sides, values, values[1:], strict=False):
        step = builder.select(side, _same(_BYTES, high - low), _same(_BYTES, 0))
        found = builder.add(found, step)
    return found


_address = types.voidptr


@intrinsic
def divide(typing, number, divisor, quotient):
    """A number divided by what each lane has: of a loop LLVM makes divisions one by one."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.fdiv(_wide(builder, arguments[0]), _load(builder, arguments[1]))
        _store(builder, found, arguments[2])
        return context.get_dummy_value()

    return types.void(types.float32, _address, _address), code


@intrinsic
def first_inverse(typing, extreme, inverse):
    """A lane's first inverse scale: its extreme is the first value then, negated."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scale = builder.fdiv(_load(builder, arguments[0]), _same(_FLOATS, -VALUES[0]))
        _store(builder, builder.fdiv(_same(_FLOATS, 1.0), scale), arguments[1])
        return context.get_dummy_value()

    return types.void(_address, _address), code


@intrinsic
def put_indices(typing, x, inverse, q):
    """Indices (`quant_types.iq4.nearest`) of 32 weights times an inverse scale, as bytes."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = builder.fmul(_load(builder, arguments[0]), _wide(builder, arguments[1]))
        found = _steps(builder, _sides(builder, v, BORDERS), _INDICES)
        _store(builder, found, arguments[2])
        return context.get_dummy_value()

    return types.void(_address, types.float32, _address), code


@intrinsic
def add_values(typing, x, w, inverse, sum_qx, sum_q2):
    """Add, of a weight a lane, `w * q * x` and `w * q * q` of its value under its inverse scale."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, inverse = (_load(builder, address) for address in arguments[:3])
        sides = _sides(builder, builder.fmul(inverse, x), BORDERS)
        q = builder.sitofp(_steps(builder, sides, VALUES), _FLOATS)
        wq = builder.fmul(w, q)
        for address, factor in zip(arguments[3:], (x, q), strict=True):
            total = builder.fadd(_load(builder, address), builder.fmul(wq, factor))
            _store(builder, total, address)
        return context.get_dummy_value()

    return types.void(*[_address] * 5), code


@intrinsic
def look_up(typing, x, w, first, last, border, product_below, product, square_below, square):
    """Of a weight a lane that is tried under inverse scales from `first` to `last`: the border
    that it may pass, and of the values below and above it `w * q * x` and `w * q * q`: those of the
    value below as the bits in which they differ."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, first, last = (_load(builder, address) for address in arguments[:4])
        one, other = builder.fmul(first, x), builder.fmul(last, x)
        highest = builder.select(builder.fcmp_ordered(">", one, other), one, other)
        # the last border that is not above, or the first
        sides = _sides(builder, highest, BORDERS[1:])
        below = builder.sitofp(_steps(builder, sides, VALUES), _FLOATS)
        above = builder.sitofp(_steps(builder, sides, VALUES[1:]), _FLOATS)
        border = builder.fmul(builder.fadd(below, above), _same(_FLOATS, 0.5))
        found = [border]
        below_above = [(q, builder.fmul(w, q)) for q in (below, above)]
        for pair in ([x, x], [below, above]):
            one, other = (
                builder.bitcast(builder.fmul(wq, factor), _INTS)
                for (_, wq), factor in zip(below_above, pair, strict=True)
            )
            found += [builder.xor(one, other), other]
        for value, address in zip(found, arguments[4:], strict=True):
            _store(builder, value, address)
        return context.get_dummy_value()

    return types.void(*[_address] * 9), code
