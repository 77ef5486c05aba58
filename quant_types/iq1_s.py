"""IQ1_S: 256 weights in 50 bytes, 1.5625 bits a weight; eight sub-blocks of 32.

 0  d   f16     weight = d * (2 * scale + 1) * (-1, 0 or 1, plus or minus 0.125)
 2  qs  u8[32]  the points of groups of 8, low 8 bits
34  qh  u16[8]  a sub-block: its points' high 3 bits from low to high, 3 bits of scale, and a bit
                that is set where its values are lower
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.iq1 import (
    DELTA,
    GRID,
    Best,
    Split,
    codes_of,
    dequantized,
    quantize_sub_blocks,
    sorted_sums,
    weights,
)
from quant_types.k_quants import QK_K

RECORD = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("qh", "<i2", 8)])
assert RECORD.itemsize == 50
EPSILON = 1e-12
FUDGE = 1.125


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 50]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, qs, qh = (field(data, RECORD, name) for name in RECORD.names or ())
    qh = xp.astype(qh, xp.int32)
    high = xp.reshape(xp.stack([qh >> 3 * k & 7 for k in range(4)], axis=2), (-1, 32))
    lower = xp.astype(qh >> 15 & 1, xp.float32)
    shift = xp.reshape(xp.stack([DELTA - 2 * DELTA * lower] * 4, axis=2), (-1, 32))
    scales = xp.astype(d, xp.float32) * (2 * xp.astype(qh >> 12 & 7, xp.float32) + 1)
    return dequantized(xp.astype(qs, xp.int32) | (high << 8), shift, scales)


def _split(x: Array, w: Array, order: Array, largest: Array) -> Split:
    """The best split of columns `[32, lanes]`, by its sums over the three parts."""
    best = Best(largest)
    sum_x, sum_w = sorted_sums(x, w, order)
    for first in range(33):
        for second in range(first, 33):
            parts_x = (sum_x[first], sum_x[second] - sum_x[first], sum_x[32] - sum_x[second])
            parts_w = (sum_w[first], sum_w[second] - sum_w[first], sum_w[32] - sum_w[second])
            for lower, shift in enumerate((DELTA, -DELTA)):
                a, b, c = -1 + shift, shift, 1 + shift
                sum_qx = parts_x[0] * a + parts_x[1] * b + parts_x[2] * c
                sum_q2 = parts_w[0] * a * a + parts_w[1] * b * b + parts_w[2] * c * c
                best.offer(sum_qx, sum_q2, first, second, lower)
    return best.split


def quantize(x: Array, importance: Array) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 50]` (ggml `quantize_row_iq1_s_impl`)."""
    xp = namespace(x)
    found = quantize_sub_blocks(x, weights(x, importance), 32, 1, EPSILON, _split)
    d, codes, empty = codes_of(found.scale)
    lower = xp.where(empty, xp.zeros_like(found.shifts), found.shifts)
    high = xp.reshape(found.points >> 8, (-1, 8, 4))
    qh = codes << 12 | lower << 15
    for k in range(4):
        qh = qh | (high[:, :, k] << 3 * k)
    return join(RECORD, d=d * FUDGE, qs=found.points & 255, qh=qh)


FORMAT = BlockFormat(
    "IQ1_S", 19, QK_K, RECORD, quantize, dequantize, "iq1.iq1_s", needs_importance=True, grid=GRID
)
