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

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_F32 = ir.FloatType()
MOST = 64  # candidates that are compared by bits of an integer
SUMS = 2 * LIST  # float32 that are kept of a chunk of candidates
SEVERAL, OPEN = 1 << 12, 1 << 13  # two lead under scales of a range; it is not certain who leads


def make_lead(dim: int, stride: int, width: int, longest: int):
    """`lead(near, x, w, far, close, tolerance, chunk, size, sums)`: the candidate that `nearest`
    finds under all scales of a range; `share(sums, size, tolerance, leads, met)`: the two.

    Args of `make_lead`:
        width: candidates in a vector.
        longest: candidates of the longest list.

    Args of `lead` and `share`:
        near: the grid's candidates (`quant_types.grids`).
        x, w: addresses, as for `nearest`.
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
    lanes, numbers = ir.VectorType(_F32, width), ir.VectorType(_I32, width)
    parts_of_chunk = LIST // width

    def all_of(builder: Any, value: Any) -> Any:
        return splat(builder, value, width)

    def half_error(builder: Any, end: Any, a: Any, b: Any) -> Any:
        """Half of what an error has that not all have in common."""
        return fused(builder, end, a, builder.fneg(b))

    def lower(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", a, b), a, b)

    def lowest_of_two(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
        """The least of a vector, and that of another."""
        half = width // 2

        def shuffled(v: Any, w: Any, places: list[int]) -> Any:
            return builder.shuffle_vector(v, w, ir.Constant(numbers, places))

        first = [*range(half), *range(width, width + half)]
        both = lower(
            builder, shuffled(a, b, first), shuffled(a, b, [place + half for place in first])
        )
        step = half // 2
        while step:
            there = [place ^ step for place in range(width)]
            both = lower(builder, both, shuffled(both, both, there))
            step //= 2
        return tuple(builder.extract_element(both, _I32(i)) for i in (0, half))

    def at_part(builder: Any, sums: Any, array: int, part: Any) -> Any:
        """The address of a part's a or b."""
        at = builder.add(builder.mul(part, _I64(2 * width)), _I64(array * width))
        floats = builder.bitcast(sums, _F32.as_pointer())
        return builder.bitcast(builder.gep(floats, [at]), lanes.as_pointer())

    def parts_of(builder: Any, size: Any) -> Any:
        parts = builder.udiv(builder.add(size, _I32(width - 1)), _I32(width))
        return builder.zext(parts, _I64)

    def compared(builder: Any, size: Any) -> Any:
        """How many of a list are compared."""
        if longest <= MOST:
            return size
        return builder.select(builder.icmp_unsigned("<=", size, _I32(MOST)), size, _I32(MOST))

    def further(
        builder: Any, parts: Any, body: Callable[[Any, list[Any]], list[Any]], *start: Any
    ) -> list[Any]:
        """What `body` makes of a start, part after part of the list behind the first."""
        before = builder.block
        inside, after = (builder.append_basic_block(name) for name in ("parts", "parts_end"))
        builder.cbranch(builder.icmp_unsigned(">", parts, _I64(1)), inside, after)
        builder.position_at_end(inside)
        part = builder.phi(_I64)
        carried = [builder.phi(value.type) for value in start]
        results: list[Any] = body(part, carried)
        following = builder.add(part, _I64(1))
        builder.cbranch(builder.icmp_unsigned("<", following, parts), inside, after)
        part.add_incoming(_I64(1), before)
        part.add_incoming(following, inside)
        for phi, first, value in zip(carried, start, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, inside)
        builder.position_at_end(after)
        found = []
        for first, value in zip(start, results, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(first, before)
            phi.add_incoming(value, inside)
            found.append(phi)
        return found

    def masks_of(
        builder: Any, sums: Any, size: Any, first: list[Any], *bounds: tuple[Any, Any]
    ) -> list[Any]:
        """Who is not above a bar under a scale, bits of an int64 each. `first`: the first part's
        a and b."""
        parts = parts_of(builder, size)
        beyond = builder.sub(_I64(MOST), builder.zext(size, _I64))
        listed = builder.lshr(_I64(-1), beyond)  # the last of a list is repeated behind it
        wide = [(all_of(builder, end), all_of(builder, bar)) for end, bar in bounds]

        def low(a: Any, b: Any) -> list[Any]:
            return [
                builder.bitcast(
                    builder.fcmp_ordered("<=", half_error(builder, end, a, b), bar),
                    ir.IntType(width),
                )
                for end, bar in wide
            ]

        def body(part: Any, masks: list[Any]) -> list[Any]:
            shift = builder.mul(part, _I64(width))
            found = low(*(builder.load(at_part(builder, sums, k, part), align=4) for k in range(2)))
            return [
                builder.or_(mask, builder.shl(builder.zext(one, _I64), shift))
                for mask, one in zip(masks, found, strict=True)
            ]

        masks = further(builder, parts, body, *[builder.zext(one, _I64) for one in low(*first)])
        return [builder.and_(mask, listed) for mask in masks]

    def lead_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        near, x, w, far, close, tolerance, chunk, size, sums = arguments

        def spread(address: Any) -> list[Any]:
            values = builder.bitcast(address, _F32.as_pointer())
            return [
                all_of(builder, builder.load(builder.gep(values, [_I64(i * stride)])))
                for i in range(dim)
            ]

        xs, ws = spread(x), spread(w)
        both_ends = [all_of(builder, end) for end in (far, close)]
        most = compared(builder, size)
        parts = parts_of(builder, most)
        start = builder.mul(builder.zext(chunk, _I64), _I64(dim * LIST))

        def sums_of(part: Any) -> list[Any]:
            whole = builder.udiv(part, _I64(parts_of_chunk))
            rest = builder.urem(part, _I64(parts_of_chunk))
            at = builder.add(start, builder.mul(whole, _I64(dim * LIST)))
            at = builder.add(at, builder.mul(rest, _I64(width)))
            a, b = None, None
            for i in range(dim):
                where = builder.gep(near, [builder.add(at, _I64(i * LIST))])
                where = builder.bitcast(where, ir.VectorType(_I8, width).as_pointer())
                q = builder.uitofp(builder.load(where, align=width), lanes)
                wq = builder.fmul(ws[i], q)
                a = builder.fmul(wq, q) if a is None else fused(builder, wq, q, a)
                b = builder.fmul(wq, xs[i]) if b is None else fused(builder, wq, xs[i], b)
            for k, value in enumerate((a, b)):
                builder.store(value, at_part(builder, sums, k, part), align=4)
            return [a, b]

        def errors(part: Any, least: list[Any]) -> list[Any]:
            a, b = sums_of(part)
            return [
                lower(builder, half_error(builder, end, a, b), old)
                for end, old in zip(both_ends, least, strict=True)
            ]

        first = sums_of(_I64(0))
        least = further(
            builder, parts, errors, *[half_error(builder, end, *first) for end in both_ends]
        )
        bars = [builder.fadd(one, tolerance) for one in lowest_of_two(builder, *least)]
        masks = masks_of(builder, sums, most, first, *zip((far, close), bars, strict=True))
        # One each: the least is not above its bar, unless the tolerance is NaN, and both are empty.
        bits = [call(builder, "llvm.ctpop.i64", _I64, mask) for mask in masks]
        sure = builder.icmp_unsigned("==", builder.add(*bits), _I64(2))
        if longest > MOST:
            sure = builder.and_(sure, builder.icmp_unsigned("<=", size, _I32(MOST)))
        leads = []
        for mask in masks:
            place = call(builder, "llvm.cttz.i64", _I64, mask, _I1(0))
            leads.append(builder.and_(place, _I64(MOST - 1)))
        same = builder.icmp_unsigned("==", *leads)
        state = builder.select(same, _I32(0), _I32(SEVERAL))
        state = builder.select(sure, state, _I32(OPEN))
        leads[1] = builder.shl(leads[1], _I64(6))
        return builder.or_(builder.trunc(builder.or_(*leads), _I32), state)

    def share_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, size, tolerance, leads, met = arguments
        leads = builder.zext(leads, _I64)
        places = [
            builder.and_(builder.lshr(leads, _I64(shift)), _I64(MOST - 1)) for shift in (0, 6)
        ]
        floats = builder.bitcast(sums, _F32.as_pointer())

        def value(array: int, place: Any) -> Any:
            part = builder.and_(place, _I64(-width))
            at = builder.add(builder.add(place, part), _I64(array * width))
            return builder.load(builder.gep(floats, [at]))

        a, b = ([value(k, place) for place in places] for k in range(2))
        apart = builder.fsub(a[0], a[1])
        meet = builder.fdiv(builder.fsub(b[0], b[1]), apart)
        bar = builder.fadd(half_error(builder, meet, a[0], b[0]), tolerance)
        first = [builder.load(at_part(builder, sums, k, _I64(0)), align=4) for k in range(2)]
        (low,) = masks_of(builder, sums, compared(builder, size), first, (meet, bar))
        two = builder.or_(*(builder.shl(_I64(1), place) for place in places))
        unsure = builder.fdiv(tolerance, call(builder, "llvm.fabs.f32", _F32, apart))
        values = builder.bitcast(met, _F32.as_pointer())
        builder.store(meet, values)
        builder.store(unsure, builder.gep(values, [_I64(1)]))
        return builder.icmp_unsigned("==", builder.or_(low, two), two)

    address, number, real = types.voidptr, types.int32, types.float32

    @intrinsic
    def lead(typing, near, x, w, far, close, tolerance, chunk, size, sums):
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
        return builder.bitcast(builder.fcmp_ordered("<", found, splat(builder, bar, 32)), _I32)

    return types.int32(types.voidptr, types.float32), code
