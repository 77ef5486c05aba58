"""What a split of IQ1's is held against: a score that one is known to have.

ggml tries all splits one after another and keeps the best. A good one is found sooner: the values
nearest to the weights under a scale are a split of the sorted, and its best scale is better than
that one. Whatever scores less is not what ggml keeps at the end, nor does it change what that is.
Sums are not ggml's here, so a score counts less than it is by more than rounding can do.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from quant_types.iq1 import DELTA
from quant_types.lanes.nearest import fused
from quant_types.lanes.rows import (
    I32,
    MASK,
    Loop,
    Rows,
    floats,
    magnitude,
    product,
)  # fmt: skip

SHIFTS = (DELTA, -DELTA)
_FIRST_SCALE = 1.5  # of the mean magnitude: about the best of normal weights
# Sums of up to 32 terms in two orders, and a few more roundings, are apart by less than 2**-15 of
# the sum of magnitudes; the few alone by less than 2**-17.
_SUM_LOSS, _LOSS, _SLACK = 2.0**-15, 2.0**-16, 2.0**-15
_SMALL, _GREAT = 2.0**-50, 2.0**50  # sums of magnitudes: no square of theirs is lost
_LARGEST = 3.4028234663852886e38
_LEAST, _MOST = 2.0**-90, 2.0**90


def ways_of(halves: int) -> list[list[float]]:
    """The ways to shift values: by how much in each half."""
    return [[SHIFTS[k >> (halves - 1 - h) & 1] for h in range(halves)] for k in range(1 << halves)]


def make_bar(length: int, halves: int, epsilon: float):
    """`bar(x, w, largest, found)`: what a split's score has to reach, lane by lane.

    Args of `bar`:
        x, w: addresses of float32 `[length, LANES]`.
        largest: address of float32 `[LANES]` that is written to: greatest magnitudes. Below
            epsilon no split counts.
        found: address of float32 `[3, LANES]` that is written to: the score; what is added to the
            other side since rounding may have taken it away, less than nothing where no split is
            wanted; the score that ggml's splits have to be above.

    Returns int32: not 0 where numbers are too great or too small for it, and all splits count.
    """
    part = length // halves

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, largest, found = (Rows(builder, a) for a in arguments)
        zero = floats(0.0)

        def plus(total: Any, v: Any) -> Any:
            return builder.fadd(total, v, flags=("nsz",))

        def weighed(i: Any, half: int) -> tuple[Any, Any, Any]:
            number = builder.add(i, i.type(half * part))
            value, weight = x.load(number), w.load(number)
            return value, builder.fmul(weight, value), weight

        loop = Loop(builder, 0, *[zero] * (2 * halves + 2))
        *sums, magnitudes, greatest = loop.carried
        for half in range(halves):
            value, wx, weight = weighed(loop.number, half)
            value = magnitude(builder, value)
            more = builder.fcmp_ordered(">", value, greatest)
            greatest = builder.select(more, value, greatest)
            sums[half], sums[halves + half] = (
                plus(sums[half], wx),
                plus(sums[halves + half], weight),
            )
            magnitudes = plus(magnitudes, magnitude(builder, wx))
        *sums, magnitudes, greatest = loop.end(part, *sums, magnitudes, greatest)
        largest.store(0, greatest)
        total_x, total_w = sums[:halves], sums[halves:]
        whole = total_w[0] if halves == 1 else plus(*total_w)

        def below(scale: Any, shift: float) -> list[Any]:
            """Sums over the lowest values, and over these and the middle ones: of each half those
            of w * x, then of each those of w."""
            borders = [product(builder, scale, shift + side) for side in (-0.5, 0.5)]
            loop = Loop(builder, 0, *[zero] * (4 * halves))
            sums = list(loop.carried)
            for half in range(halves):
                value, *terms = weighed(loop.number, half)
                for side, border in enumerate(borders):
                    less = builder.fcmp_ordered("<", value, border)
                    for k, term in enumerate(terms):
                        at = (2 * k + side) * halves + half
                        sums[at] = plus(sums[at], builder.select(less, term, zero))
            return loop.end(part, *sums)

        def best(state: tuple[Any, Any], sums: list[Any]) -> tuple[Any, Any]:
            """Score and scale of the best shifts."""
            score, scale = state
            parts = [sums[k * halves : (k + 1) * halves] for k in range(4)]
            for shifts in ways_of(halves):
                sum_qx, sum_q2 = zero, product(builder, whole, _SUM_LOSS)
                for half, shift in enumerate(shifts):
                    low_x, middle_x, low_w, middle_w = (one[half] for one in parts)
                    both = builder.fadd(low_x, middle_x)
                    sum_qx = plus(sum_qx, product(builder, total_x[half], 1 + shift))
                    sum_qx = builder.fsub(sum_qx, both)
                    sum_q2 = plus(sum_q2, product(builder, total_w[half], (1 + shift) ** 2))
                    sum_q2 = plus(sum_q2, product(builder, low_w, 1 - 2 * shift))
                    sum_q2 = builder.fsub(sum_q2, product(builder, middle_w, 1 + 2 * shift))
                sum_qx = builder.fsub(
                    magnitude(builder, sum_qx), product(builder, magnitudes, _SUM_LOSS)
                )
                its_scale = builder.fdiv(sum_qx, sum_q2)
                its_score = builder.fmul(its_scale, sum_qx)
                better = builder.and_(
                    builder.fcmp_ordered(">", sum_qx, zero),
                    builder.fcmp_ordered(">", its_score, score),
                )
                score = builder.select(better, its_score, score)
                scale = builder.select(better, its_scale, scale)
            return score, scale

        mean = builder.fdiv(magnitudes, whole)
        state = best((zero, zero), below(product(builder, mean, _FIRST_SCALE), 0.0))
        scale = state[1]
        for shift in SHIFTS:
            state = best(state, below(scale, shift))
        score = product(builder, state[0], 1 - _LOSS)

        none = builder.and_(
            builder.fcmp_ordered("<", greatest, floats(epsilon)),
            builder.fcmp_ordered("==", magnitudes, zero),
        )
        inside = ((magnitudes, _SMALL, _GREAT), (score, _LEAST, _MOST), (whole, _LEAST, _MOST))
        bounded = None
        for v, low, high in inside:
            one = builder.and_(
                builder.fcmp_ordered(">=", v, floats(low)),
                builder.fcmp_ordered("<=", v, floats(high)),
            )
            bounded = one if bounded is None else builder.and_(bounded, one)
        fine = builder.or_(none, bounded)
        slack = product(builder, builder.fmul(magnitudes, magnitudes), _SLACK)
        slack = fused(builder, builder.fmul(score, whole), floats(_SLACK), slack)
        found.store(0, builder.select(none, zero, score))
        found.store(1, builder.select(none, floats(-1.0), slack))
        found.store(2, builder.select(bounded, score, floats(-_LARGEST)))
        some = builder.icmp_unsigned("!=", builder.bitcast(fine, MASK), MASK(-1))
        return builder.zext(some, I32)

    address = types.voidptr

    @intrinsic
    def bar(typing, x, w, largest, found):
        return types.int32(address, address, address, address), code

    return bar
