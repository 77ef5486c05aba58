"""What the kernels of IQ2 and IQ3 make of a tile before they search, and of what they find.

Weights are seen in blocks of 256, in eights for their signs, and in columns for the search.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from quant_types.grids import OFF
from quant_types.lanes.compile import inner
from quant_types.lanes.grid_work import BLOCKS
from quant_types.lanes.rows import I32, INTS, Rows, floats, ints, magnitude
from quant_types.lanes.scalars import ZERO


def make_mean_squares(factor: int):
    """`mean_squares(x, sigma2)`: `factor * sum(x * x) / 256` of each block of 256."""
    factor_float = np.float32(factor)
    whole = np.float32(256.0)

    @inner
    def mean_squares(x, sigma2):
        for b in range(BLOCKS):
            sigma2[b] = ZERO
        for i in range(0, 256, 8):
            for b in range(BLOCKS):
                total = sigma2[b]
                for j in range(8):
                    v = x[b * 256 + i + j]
                    total += v * v
                sigma2[b] = total
        for b in range(BLOCKS):
            sigma2[b] = factor_float * sigma2[b] / whole

    return mean_squares


@inner
def weigh(x, w, sigma2):
    """Importance becomes the weight of each error."""
    for b in range(BLOCKS):
        for i in range(256):
            k = b * 256 + i
            w[k] = w[k] * np.sqrt(sigma2[b] + x[k] * x[k])


def make_unweighted(floor: float):
    """`unweighted(x, w, sigma2)`: the weight of each error without importance."""
    floor_float = np.float32(floor)

    @inner
    def unweighted(x, w, sigma2):
        for b in range(BLOCKS):
            low = floor_float * sigma2[b] if floor else ZERO
            for i in range(256):
                k = b * 256 + i
                w[k] = low + x[k] * x[k]

    return unweighted


def make_magnitudes(parity: bool, length: int, lanes: int):
    """`magnitudes(x, w, signs)`, of columns `[length, lanes]`: weights become magnitudes, their
    signs a byte of each eight, int32 `[length / 8, lanes]`.

    With parity, where an odd number of the eight is negative, the first of least weight is turned.
    """

    @inner
    def magnitudes(x, w, signs):
        for g in range(length // 8):
            for j in range(lanes):
                sign, turned, least = np.int32(0), np.int32(1), ZERO
                for i in range(8):
                    k = (8 * g + i) * lanes + j
                    v = x[k]
                    bit = np.int32(1 << i)
                    sign = np.int32(sign | (bit if v < ZERO else np.int32(0)))
                    if parity:
                        weight = w[k] * v * v
                        if i == 0:
                            least = weight
                        less = weight < least
                        least = weight if less else least
                        turned = bit if less else turned
                if parity:
                    odd = np.int32(sign ^ np.int32(sign >> np.int32(4)))
                    odd = np.int32(odd ^ np.int32(odd >> np.int32(2)))
                    odd = np.int32(np.int32(odd ^ np.int32(odd >> np.int32(1))) & np.int32(1))
                    turned = turned if odd == np.int32(1) else np.int32(0)
                    sign = np.int32(sign ^ turned)
                signs[g * lanes + j] = sign
                for i in range(8):
                    k = (8 * g + i) * lanes + j
                    v = abs(x[k])
                    if parity:
                        v = -v if np.int32(turned & np.int32(1 << i)) != np.int32(0) else v
                    x[k] = v

    return magnitudes


def _zipped(builder: Any, rows: list[Any]) -> Any:
    """The first numbers of all rows, then the second ..."""
    while len(rows) > 1:
        half, n = len(rows) // 2, rows[0].type.count
        places = [place for i in range(n) for place in (i, n + i)]
        rows = [
            builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 2 * n), places))
            for a, b in zip(rows[:half], rows[half:], strict=True)
        ]
    return rows[0]


def make_take_over(eights: int, groups: int, sub_blocks: int, sign_bits: int):
    """`take_over(scale, empty, sign, cell, scales, used, signs, points)`: what was found for
    `LANES` sub-blocks, into a tile.

    Args of `make_take_over`:
        eights, groups: of a sub-block.
        sub_blocks: of a tile.
        sign_bits: those that are stored.

    Args of `take_over`, addresses:
        scale, empty, cell: the arrays of `Work`.
        sign: int32 [eights, sub_blocks].
        scales, used, signs, points: of the tile, from these sub-blocks on, that are written to.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scale, empty, sign, cell, scales, used, signs, points = arguments
        found = Rows(builder, scale).load(0)
        Rows(builder, scales).store(0, magnitude(builder, found))
        negative = builder.fcmp_ordered("<", found, floats(0.0))
        turned = builder.select(negative, ints(sign_bits), ints(0))
        none = builder.icmp_signed("!=", Rows(builder, empty, INTS).load(0), ints(0))
        stored = builder.select(none, ints(0), ints(sign_bits))
        Rows(builder, used, INTS).store(0, stored)
        sign, cell = Rows(builder, sign, INTS, sub_blocks), Rows(builder, cell, INTS)
        of_eights = [builder.and_(builder.xor(sign.load(i), turned), stored) for i in range(eights)]
        of_groups = [builder.and_(cell.load(k), ints(OFF - 1)) for k in range(groups)]
        for address, rows in ((signs, of_eights), (points, of_groups)):
            zipped = _zipped(builder, rows)
            where = builder.bitcast(address, zipped.type.as_pointer())
            builder.store(zipped, where, align=4)
        return context.get_dummy_value()

    @intrinsic
    def take_over(typing, scale, empty, sign, cell, scales, used, signs, points):
        return types.void(*[types.voidptr] * 8), code

    return take_over
