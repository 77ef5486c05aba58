"""IQ1's terms of sums, as vectors of LLVM's: errors of each weight's values and sums of fits, of 16
sub-blocks side by side; and what each weight of IQ1_M adds to the sums that fit a block's d.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.grids import LEVELS_BIT
from quant_types.iq1 import DELTA
from quant_types.lanes.compile import splat
from quant_types.lanes.rows import FLOATS, I32, I64, INTS, Loop, Rows, floats, ints

_LENGTH = 16  # weights of a sub-block, two groups of 8
_TWO = ir.VectorType(I32, 2)
_BITS = ir.Constant(INTS, [LEVELS_BIT + 2 * (i % 8) for i in range(_LENGTH)])
_HALF_BITS = ir.Constant(INTS, [1 - i // 8 for i in range(_LENGTH)])  # of `shifts`
_GROUPS = ir.Constant(INTS, [i // 8 for i in range(_LENGTH)])


def make_levels(groups: int):
    """`add_levels(x, w, rank, split, scale, shift, negative, code, clear, terms)`: the levels of
    weights under a split, as codes, and the weighted errors of all levels.

    Args of `add_levels`:
        x, w: addresses of float32 `[8 * groups, LANES]`.
        rank: address of int32 `[8 * groups, LANES]`: places among the sorted.
        split: address of int32 `[LANES]`, as `splits` has it.
        scale: address of float32 `[LANES]`.
        shift: address of float32 `[groups, LANES]`.
        negative: address of int32 `[LANES]`: not zero where the lowest get the highest value.
        code: address of int32 `[groups, LANES]` that is written to.
        clear: address of int32 `[groups, LANES]` that is written to: not zero where no weight's
            error falls from its level outwards.
        terms: address of float32 `[8 * groups, 3, LANES]` that is written to.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = (FLOATS, FLOATS, INTS, INTS, FLOATS, FLOATS, INTS, INTS, INTS, FLOATS)
        x, w, rank, split, scale, shift, negative, codes, clear, terms = (
            Rows(builder, a, kind) for a, kind in zip(arguments, kinds, strict=True)
        )
        cuts = split.load(0)
        first = builder.ashr(cuts, ints(8))
        second = builder.and_(builder.ashr(cuts, ints(2)), ints(63))
        turned = builder.icmp_signed("!=", negative.load(0), ints(0))
        loop = Loop(builder, 0)
        group = loop.number
        its_scale, its_shift = scale.load(0), shift.load(group)
        values = [
            builder.fmul(its_scale, v)
            for v in (
                builder.fsub(its_shift, floats(1.0)), its_shift,
                builder.fadd(its_shift, floats(1.0)),
            )
        ]  # fmt: skip
        its_code, fine = ints(0), None
        for i in range(7, -1, -1):
            k = builder.add(builder.mul(group, I64(8)), I64(i))
            place, value, weight = rank.load(k), x.load(k), w.load(k)
            low = builder.icmp_signed("<", place, first)
            high = builder.icmp_signed(">=", place, second)
            lowest = builder.select(turned, high, low)
            highest = builder.select(turned, low, high)
            level = builder.sub(builder.sext(lowest, INTS), builder.sext(highest, INTS))
            its_code = builder.add(builder.mul(its_code, ints(3)), builder.add(level, ints(1)))
            errors = []
            for one, v in enumerate(values):
                apart = builder.fsub(v, value)
                errors.append(builder.fmul(builder.fmul(weight, apart), apart))
                to = builder.add(builder.mul(k, I64(3)), I64(one))
                terms.store(to, errors[-1])

            def grows(a: int, b: int, errors: list[Any] = errors) -> Any:
                return builder.fcmp_ordered("<=", errors[a], errors[b])

            below = builder.select(lowest, grows(0, 1), grows(1, 0))
            above = builder.select(highest, grows(2, 1), grows(1, 2))
            both = builder.and_(below, above)
            fine = both if fine is None else builder.and_(fine, both)
        codes.store(group, its_code)
        clear.store(group, builder.zext(fine, INTS))
        loop.end(groups)
        return context.get_dummy_value()

    @intrinsic
    def add_levels(typing, x, w, rank, split, scale, shift, negative, codes, clear, terms):
        return types.void(*[types.voidptr] * 10), code

    return add_levels


def make_fit(groups: int):
    """`fit(x, w, cells, shift, sums)`: the sums of `w * q * x` and `w * q * q` over a sub-block.

    Args of `fit`:
        x, w: addresses of float32 `[8 * groups, LANES]`.
        cells: address of int32 `[groups, LANES]`, points as `quant_types.grids.Grid.packed` has
            them.
        shift: address of float32 `[groups, LANES]`.
        sums: address of float32 `[2, LANES]` that is written to.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = (FLOATS, FLOATS, INTS, FLOATS, FLOATS)
        x, w, cells, shift, sums = (
            Rows(builder, a, kind) for a, kind in zip(arguments, kinds, strict=True)
        )
        loop = Loop(builder, 0, floats(0.0), floats(0.0))
        sum_qx, sum_q2 = loop.carried
        cell, its_shift = cells.load(loop.number), shift.load(loop.number)
        for i in range(8):
            k = builder.add(builder.mul(loop.number, I64(8)), I64(i))
            q = builder.fadd(_level(builder, cell, ints(LEVELS_BIT + 2 * i)), its_shift)
            weighted = builder.fmul(w.load(k), q)
            sum_qx = builder.fadd(sum_qx, builder.fmul(weighted, x.load(k)))
            sum_q2 = builder.fadd(sum_q2, builder.fmul(weighted, q))
        for k, total in enumerate(loop.end(groups, sum_qx, sum_q2)):
            sums.store(k, total)
        return context.get_dummy_value()

    @intrinsic
    def fit(typing, x, w, cells, shift, sums):
        return types.void(*[types.voidptr] * 5), code

    return fit


def _level(builder: Any, cells: Any, bits: Any) -> Any:
    """Levels that begin at some bits of cells, as the values -1, 0 and 1."""
    levels = builder.and_(builder.lshr(cells, bits), ints(3))
    return builder.fsub(builder.sitofp(levels, FLOATS), floats(1.0))


def make_terms(size: int):
    """`add_terms(x, w, cells, codes, shifts, terms)`: `w * q * x` and `w * q * q` of `size`
    weights, with q a value times its sub-block's scale, `2 * code + 1`.

    Args of `add_terms`:
        x, w: addresses of float32 `[size]`.
        cells: address of int32 `[size / 8]`, points as `quant_types.grids.Grid.packed` has them.
        codes: address of int32 `[size / 16]`.
        shifts: address of int32 `[size / 16]`: a bit for each half that is lower, the first the
            higher.
        terms: address of float32 `[2, size]` that is written to.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, cells, codes, shifts, terms = arguments
        xs, ws, found = (Rows(builder, a) for a in (x, w, terms))
        pairs = Rows(builder, cells, _TWO, 2)
        loop = Loop(builder, 0)
        i = loop.number

        def everywhere(array: Any) -> Any:
            at = builder.gep(builder.bitcast(array, I32.as_pointer()), [i])
            return splat(builder, builder.load(at), _LENGTH)

        pair = pairs.load(i)
        value = _level(builder, builder.shuffle_vector(pair, pair, _GROUPS), _BITS)
        lower = builder.and_(builder.lshr(everywhere(shifts), _HALF_BITS), ints(1))
        lower = builder.icmp_signed("!=", lower, ints(0))
        shift = builder.select(lower, floats(-DELTA), floats(DELTA))
        scale = everywhere(codes)
        scale = builder.sitofp(builder.add(builder.add(scale, scale), ints(1)), FLOATS)
        q = builder.fmul(builder.fadd(value, shift), scale)
        weighted = builder.fmul(ws.load(i), q)
        found.store(i, builder.fmul(weighted, xs.load(i)))
        found.store(i, builder.fmul(weighted, q), size)
        loop.end(size // _LENGTH)
        return context.get_dummy_value()

    @intrinsic
    def add_terms(typing, x, w, cells, codes, shifts, terms):
        return types.void(*[types.voidptr] * 6), code

    return add_terms
