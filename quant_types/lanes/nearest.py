"""The candidates of a group side by side, as vectors of LLVM's: the nearest under a scale.

Written in LLVM's own terms: what compares a whole vector with itself, a loop leaves to scalar code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from quant_types.grids import LEVELS_BIT, LIST
from quant_types.lanes.compile import splat

_I1, _I32, _I64 = (ir.IntType(bits) for bits in (1, 32, 64))
_F32 = ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, LIST), ir.VectorType(_I32, LIST)
_MASK = ir.IntType(LIST)
_LARGEST = 0x7F7FFFFF  # bits of the greatest float32
_FAR = 0x7FFFFFFF


def _floats(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * LIST)


def _integers(values: list[int]) -> Any:
    return ir.Constant(_INTS, values)


def _same(value: int) -> Any:
    return _integers([value] * LIST)


_PLACES = _integers([*range(LIST)])


def _splat(builder: Any, value: Any) -> Any:
    return splat(builder, value, LIST)


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A call of one of LLVM's intrinsics."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, arguments)


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32 or vectors of them, rounded once where the processor can: not for what
    ggml rounds."""
    kind = f"v{a.type.count}" if isinstance(a.type, ir.VectorType) else ""
    return call(builder, f"llvm.fmuladd.{kind}f32", a.type, a, b, c)


def _lowest(builder: Any, v: Any) -> Any:
    """The least of a vector of int32 that are not negative, or of the bits of such float32."""
    return call(builder, f"llvm.vector.reduce.umin.v{LIST}i32", _I32, v)


def _first(builder: Any, mask: Any) -> Any:
    """The place of a mask's first bit, int32."""
    return builder.zext(call(builder, f"llvm.cttz.i{LIST}", _MASK, mask, _I1(1)), _I32)


def _spread(builder: Any, address: Any, dim: int, stride: int) -> list[Any]:
    """Values `stride` apart from an address, each in all places of a vector."""
    floats = builder.bitcast(address, _F32.as_pointer())
    return [
        _splat(builder, builder.load(builder.gep(floats, [_I64(i * stride)]))) for i in range(dim)
    ]


class _Chunks:
    """A loop over the chunks of a list, with what it carries on from one to the next."""

    def __init__(self, builder: Any, size: Any, *carried: Any) -> None:
        self.builder = builder
        self.count = builder.udiv(builder.add(size, _I32(LIST - 1)), _I32(LIST))
        self.before = builder.block
        self.loop = builder.append_basic_block("chunks")
        builder.branch(self.loop)
        builder.position_at_end(self.loop)
        self.chunk = builder.phi(_I32)
        self.chunk.add_incoming(_I32(0), self.before)
        self.carried = [builder.phi(value.type) for value in carried]
        for phi, value in zip(self.carried, carried, strict=True):
            phi.add_incoming(value, self.before)
        self.wide = builder.zext(self.chunk, _I64)

    def end(self, *carried: Any) -> None:
        """Goes on behind the loop."""
        builder = self.builder
        following = builder.add(self.chunk, _I32(1))
        self.chunk.add_incoming(following, builder.block)
        for phi, value in zip(self.carried, carried, strict=True):
            phi.add_incoming(value, builder.block)
        after = builder.append_basic_block("chosen")
        builder.cbranch(builder.icmp_unsigned("<", following, self.count), self.loop, after)
        builder.position_at_end(after)


def _place(builder: Any, chosen: Any, chunks: Any, single: Any) -> Any:
    """The first place in a list among the chosen places of a vector and the chunks there, int32."""
    mask = builder.bitcast(chosen, _MASK)
    with builder.if_else(single) as (one, several):
        with one:
            first = _first(builder, mask)
            from_one = builder.block
        with several:
            places = builder.add(builder.mul(chunks, _same(LIST)), _PLACES)
            places = builder.select(chosen, places, _same(_FAR))
            lowest = _lowest(builder, places)
            from_several = builder.block
    place = builder.phi(_I32)
    place.add_incoming(first, from_one)
    place.add_incoming(lowest, from_several)
    return place


def _cells(builder: Any, listed: Any, chunk: Any) -> Any:
    """A chunk of candidates."""
    at = builder.gep(builder.bitcast(listed, _INTS.as_pointer()), [chunk])
    return builder.load(at, align=64)


def make_nearest(dim: int, bits: int, stride: int):
    """`nearest(x, w, scale, listed, size)`: the place in a list of the candidate of least
    weighted error, the first of equals; -1 if the errors of all overflow.

    Args of `make_nearest`:
        bits: of a level.

    Args of `nearest`:
        x, w: addresses of a group's first weight and its weight; the next are `stride` behind.
        scale: float32. Values are 2 * level + 1.
        listed: address of the list's first chunk of `quant_types.grids.Grid.listed`.
        size: its candidates, int32.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, scale, listed, size = arguments
        xs, ws = (_spread(builder, a, dim, stride) for a in (x, w))
        scale = _splat(builder, scale)

        def term(chunk: Any, i: int) -> Any:
            found = builder.lshr(_cells(builder, listed, chunk), _same(LEVELS_BIT - 1 + bits * i))
            found = builder.and_(found, _same(2 * ((1 << bits) - 1)))
            q = builder.sitofp(builder.or_(found, _same(1)), _FLOATS)
            apart = builder.fsub(builder.fmul(scale, q), xs[i])
            return builder.fmul(builder.fmul(ws[i], apart), apart)

        return _lead(builder, size, dim, term)

    @intrinsic
    def nearest(typing, x, w, scale, listed, size):
        return types.int32(
            types.voidptr, types.voidptr, types.float32, types.voidptr, types.int32
        ), code

    return nearest


def make_nearest_of_three(dim: int, stride: int):
    """`nearest_of_three(terms, listed, size)`: as `nearest`, of candidates with three levels.

    Args of `nearest_of_three`:
        terms: address of the weighted error of the first level of a group's first weight; those of
            its other levels, then those of the next weight, are `stride` behind one another.
        listed, size: as for `nearest`.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        terms, listed, size = arguments
        terms = builder.bitcast(terms, _F32.as_pointer())

        def term(chunk: Any, i: int) -> Any:
            errors = _spread(builder, builder.gep(terms, [_I64(3 * i * stride)]), 3, stride)
            cells = _cells(builder, listed, chunk)
            low, middle, high = errors

            def is_set(bit: int) -> Any:
                turned = builder.shl(cells, _same(31 - LEVELS_BIT - 2 * i - bit))
                return builder.icmp_signed("<", turned, _same(0))

            found = builder.select(is_set(0), middle, low)
            return builder.select(is_set(1), high, found)

        return _lead(builder, size, dim, term)

    @intrinsic
    def nearest_of_three(typing, terms, listed, size):
        return types.int32(types.voidptr, types.voidptr, types.int32), code

    return nearest_of_three


def _lead(builder: Any, size: Any, dim: int, term: Callable[[Any, int], Any]) -> Any:
    """The place of the least sum of terms, -1 if none is finite."""
    zeros = _same(0)
    chunks = _Chunks(builder, size, _floats(float(np.finfo(np.float32).max)), zeros)
    least, number = chunks.carried
    error = term(chunks.wide, 0)
    for i in range(1, dim):
        error = builder.fadd(error, term(chunks.wide, i))
    closer = builder.fcmp_ordered("<", error, least)
    least = builder.select(closer, error, least)
    number = builder.select(closer, _splat(builder, chunks.chunk), number)
    chunks.end(least, number)
    bits = builder.bitcast(least, _INTS)
    best = _lowest(builder, bits)
    equal = builder.icmp_signed("==", bits, _splat(builder, best))
    single = builder.icmp_unsigned("<=", size, _I32(LIST))
    place = _place(builder, equal, number, single)
    none = builder.icmp_signed("==", best, _I32(_LARGEST))
    return builder.select(none, _I32(-1), place)


@intrinsic
def trailing_zeros(typing, bits):
    """How many of an int32's low bits are not set; 32 for 0."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, "llvm.cttz.i32", _I32, arguments[0], _I1(0))

    return types.int32(types.int32), code
