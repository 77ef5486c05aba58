"""The candidates of a group under all scales of a range, side by side as vectors of LLVM's.

The error of a candidate of values q is `scale * (scale * a - 2 * b)` and what all have in common,
with a and b the sums of `w * q * q` and `w * q * x`. Over the scale it is a line: who leads at both
ends of a range leads all over it, and where two do that, each has its side of the scale at which
they meet, if there no third is below them. Tolerances are more than rounding can do to a
difference, over the scale; whoever leads by more leads in `nearest` too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.grids import LIST
from quant_types.lanes.compile import splat
from quant_types.lanes.nearest import call, fused
from quant_types.lanes.rows import I32, I64, INTS, MASK, Loop, Rows

_I1, _F32 = ir.IntType(1), ir.FloatType()
MOST = 64  # candidates that are compared by bits of an integer
SUMS = 2 * LIST  # float32 that are kept of a chunk of candidates
SEVERAL, OPEN = 1 << 12, 1 << 13  # two lead under scales of a range; it is not certain who leads


def make_lead(sums_of: Any, longest: int):
    """`lead(terms, near, listed, far, close, tolerance, chunk, size, sums)`: the candidate that
    `nearest` finds under all scales of a range; `share(sums, size, tolerance, leads, met)`: the
    two.

    Args of `make_lead`:
        sums_of: that of `candidates.make_sums`.
        longest: candidates of the longest list.

    Args of `lead` and `share`:
        terms, near, listed: addresses, as for `sums_of`.
        far, close: float32, half the range's ends, the first not below the second.
        tolerance: float32, of half an error; NaN makes nothing certain (a negative one would be
            lost beside sums).
        chunk, size: int32, the list's first chunk and its candidates.
        sums: address of float32 `[2 * MOST]` at most, `SUMS` for each `LIST` of candidates, that
            `lead` writes to and `share` reads.
        leads: what `lead` returned.
        met: address of float32 [2] that is written to: half the scale where the two meet, and how
            far from it on either side nothing is certain.

    `lead` returns the place of who leads at the first end in the low 6 bits of an int32, and of
    who leads at the second in the next 6; and `SEVERAL` if these are not the same, `OPEN` if one is
    not certain. `share` returns whether no third is below the two, where they meet.
    """

    def half_error(builder: Any, end: Any, a: Any, b: Any) -> Any:
        """Half of what an error has that not all have in common."""
        return fused(builder, end, a, builder.fneg(b))

    def lower(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", a, b), a, b)

    def bars_of(builder: Any, errors: list[Any], tolerance: Any) -> list[Any]:
        """The least of a vector and that of another, and the tolerance with each."""
        half, (a, b) = LIST // 2, errors

        def shuffled(v: Any, w: Any, places: list[int]) -> Any:
            return builder.shuffle_vector(v, w, ir.Constant(INTS, places))

        first = [*range(half), *range(LIST, LIST + half)]
        both = lower(
            builder, shuffled(a, b, first), shuffled(a, b, [place + half for place in first])
        )
        step = half // 2
        while step:
            there = [place ^ step for place in range(LIST)]
            both = lower(builder, both, shuffled(both, both, there))
            step //= 2
        both = builder.fadd(both, splat(builder, tolerance, LIST))
        return [shuffled(both, both, [place] * LIST) for place in (0, half)]

    def chunk_at(builder: Any, sums: Any, number: Any) -> Rows:
        """The a and b of a chunk of the list."""
        floats = builder.bitcast(sums, _F32.as_pointer())
        return Rows(builder, builder.gep(floats, [builder.mul(number, I64(SUMS))]))

    def chunks_of(builder: Any, size: Any) -> Any:
        return builder.zext(builder.udiv(builder.add(size, I32(LIST - 1)), I32(LIST)), I64)

    def compared(builder: Any, size: Any) -> Any:
        """How many of a list are compared."""
        if longest <= MOST:
            return size
        return builder.select(builder.icmp_unsigned("<=", size, I32(MOST)), size, I32(MOST))

    def further(
        builder: Any, chunks: Any, body: Callable[[Any, list[Any]], list[Any]], *start: Any
    ) -> list[Any]:
        """What `body` makes of a start, chunk after chunk of the list behind the first."""
        before = builder.block
        with builder.if_then(builder.icmp_unsigned(">", chunks, I64(1))):
            loop = Loop(builder, 1, *start)
            results = loop.end(chunks, *body(loop.number, loop.carried))
            behind = builder.block
        found = []
        for first, value in zip(start, results, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(first, before)
            phi.add_incoming(value, behind)
            found.append(phi)
        return found

    def masks_of(
        builder: Any, sums: Any, size: Any, first: list[Any], *bounds: tuple[Any, Any]
    ) -> list[Any]:
        """Who is not above a bar under a scale, bits of an int64 each. `first`: the first chunk's
        a and b; bounds: vectors."""
        beyond = builder.sub(I64(MOST), builder.zext(size, I64))
        listed = builder.lshr(I64(-1), beyond)  # the last of a list is repeated behind it

        def low(a: Any, b: Any) -> list[Any]:
            found = [
                builder.fcmp_ordered("<=", half_error(builder, end, a, b), bar)
                for end, bar in bounds
            ]
            return [builder.zext(builder.bitcast(one, MASK), I64) for one in found]

        def body(number: Any, masks: list[Any]) -> list[Any]:
            chunk, shift = chunk_at(builder, sums, number), builder.mul(number, I64(LIST))
            found = low(chunk.load(0), chunk.load(1))
            return [
                builder.or_(mask, builder.shl(one, shift))
                for mask, one in zip(masks, found, strict=True)
            ]

        masks = further(builder, chunks_of(builder, size), body, *low(*first))
        return [builder.and_(mask, listed) for mask in masks]

    def lead_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        terms, near, listed, *ends, tolerance, chunk, size, sums = arguments
        ends = [splat(builder, end, LIST) for end in ends]
        most, start = compared(builder, size), builder.zext(chunk, I64)

        def kept(number: Any) -> list[Any]:
            found = sums_of(builder, terms, near, listed, builder.add(start, number))
            for k, value in enumerate(found):
                chunk_at(builder, sums, number).store(k, value)
            return list(found)

        def errors(number: Any, least: list[Any]) -> list[Any]:
            a, b = kept(number)
            return [
                lower(builder, half_error(builder, end, a, b), old)
                for end, old in zip(ends, least, strict=True)
            ]

        first = kept(I64(0))
        least = [half_error(builder, end, *first) for end in ends]
        least = further(builder, chunks_of(builder, most), errors, *least)
        bars = bars_of(builder, least, tolerance)
        masks = masks_of(builder, sums, most, first, *zip(ends, bars, strict=True))
        # One each: the least is not above its bar, unless the tolerance is NaN, and both are empty.
        bits = [call(builder, "llvm.ctpop.i64", I64, mask) for mask in masks]
        sure = builder.icmp_unsigned("==", builder.add(*bits), I64(2))
        if longest > MOST:
            sure = builder.and_(sure, builder.icmp_unsigned("<=", size, I32(MOST)))
        leads = []
        for mask in masks:
            place = call(builder, "llvm.cttz.i64", I64, mask, _I1(0))
            leads.append(builder.and_(place, I64(MOST - 1)))
        same = builder.icmp_unsigned("==", *leads)
        state = builder.select(same, I32(0), I32(SEVERAL))
        state = builder.select(sure, state, I32(OPEN))
        leads[1] = builder.shl(leads[1], I64(6))
        return builder.or_(builder.trunc(builder.or_(*leads), I32), state)

    def share_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, size, tolerance, leads, met = arguments
        leads = builder.zext(leads, I64)
        places = [builder.and_(builder.lshr(leads, I64(shift)), I64(MOST - 1)) for shift in (0, 6)]
        floats = builder.bitcast(sums, _F32.as_pointer())

        def value(array: int, place: Any) -> Any:
            before = builder.and_(place, I64(-LIST))
            at = builder.add(builder.add(place, before), I64(array * LIST))
            return builder.load(builder.gep(floats, [at]))

        a, b = ([value(k, place) for place in places] for k in range(2))
        apart = builder.fsub(a[0], a[1])
        meet = builder.fdiv(builder.fsub(b[0], b[1]), apart)
        bar = builder.fadd(half_error(builder, meet, a[0], b[0]), tolerance)
        first = chunk_at(builder, sums, I64(0))
        bound = tuple(splat(builder, v, LIST) for v in (meet, bar))
        (low,) = masks_of(
            builder, sums, compared(builder, size), [first.load(0), first.load(1)], bound
        )
        two = builder.or_(*(builder.shl(I64(1), place) for place in places))
        unsure = builder.fdiv(tolerance, call(builder, "llvm.fabs.f32", _F32, apart))
        values = builder.bitcast(met, _F32.as_pointer())
        builder.store(meet, values)
        builder.store(unsure, builder.gep(values, [I64(1)]))
        return builder.icmp_unsigned("==", builder.or_(low, two), two)

    address, number, real = types.voidptr, types.int32, types.float32

    @intrinsic
    def lead(typing, terms, near, listed, far, close, tolerance, chunk, size, sums):
        kinds = (address, address, address, real, real, real, number, number, address)
        return number(*kinds), lead_code

    @intrinsic
    def share(typing, sums, size, tolerance, leads, met):
        return types.boolean(address, number, real, number, address), share_code

    return lead, share


@intrinsic
def below(typing, values, bar):
    """Which of 32 float32 at an address are below a bar: bits, the first the lowest, int32."""
    kind = ir.VectorType(_F32, 32)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, bar = arguments
        found = builder.load(builder.bitcast(address, kind.as_pointer()), align=4)
        return builder.bitcast(builder.fcmp_ordered("<", found, splat(builder, bar, 32)), I32)

    return types.int32(types.voidptr, types.float32), code
