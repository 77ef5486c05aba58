"""IQ1_M: 256 weights in 56 bytes, 1.75 bits a weight; sixteen sub-blocks of 16.

 0  qs      u8[32]  the points of groups of 8, low 8 bits
32  qh      u8[16]  a nibble a group: the point's high 3 bits, and a bit that is set where its
                    values are lower
48  scales  u16[4]  from low to high the scales of four sub-blocks, 3 bits each, and 4 bits of the
                    float16 d; weight = d * (2 * scale + 1) * (-1, 0 or 1, plus or minus 0.125)
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, contiguous, field, join, namespace, sum_rows
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
    values,
    weights,
)
from quant_types.k_quants import QK_K, half_and_float

RECORD = np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<i2", 4)])
assert RECORD.itemsize == 56
EPSILON = 1e-7
FUDGE = 1.1125


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 56]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    qs, qh, words = (field(data, RECORD, name) for name in RECORD.names or ())
    words = xp.astype(words, xp.int32)
    bits = words[:, 0] >> 12 & 15
    for k in range(1, 4):
        bits = bits | ((words[:, k] >> 12 & 15) << 4 * k)
    d = xp.astype(xp.astype(bits, xp.int16).view(xp.float16), xp.float32)[:, None]
    codes = xp.reshape(xp.stack([words >> 3 * k & 7 for k in range(4)], axis=2), (-1, 16))
    nibbles = xp.astype(xp.reshape(xp.stack([qh & 15, qh >> 4], axis=2), (-1, 32)), xp.int32)
    shift = DELTA - 2 * DELTA * xp.astype(nibbles >> 3, xp.float32)
    points = xp.astype(qs, xp.int32) | ((nibbles & 7) << 8)
    return dequantized(points, shift, d * (2 * xp.astype(codes, xp.float32) + 1))


def _split(x: Array, w: Array, order: Array, largest: Array) -> Split:
    """The best split of columns `[16, lanes]`; each half has sums, and a shift, of its own."""
    xp = namespace(x)
    best = Best(largest)
    zero = xp.zeros_like(x[:8])
    sums = []
    for half in (x[:8], x[8:]), (w[:8], w[8:]):
        sums.append([xp.concat([half[0], zero], axis=0), xp.concat([zero, half[1]], axis=0)])
    halves = [sorted_sums(sums[0][h], sums[1][h], order) for h in range(2)]
    high, low = 1 + DELTA, 1 - DELTA
    square_steps = [
        ((s - 1) ** 2 - s**2, s**2 - (s + 1) ** 2) for s in (DELTA, -DELTA)
    ]  # between the squares of the three values
    totals = []
    for sum_x, sum_w in halves:
        totals.append(
            (sum_x[16] * high, sum_x[16] * low, sum_w[16] * high * high, sum_w[16] * low * low)
        )
    for first in range(17):
        for second in range(first, 17):
            qx, q2 = [], []
            for (sum_x, sum_w), total in zip(halves, totals, strict=True):
                both = sum_x[first] + sum_x[second]
                qx.append((total[0] - both, total[1] - both))
                q2.append(
                    [
                        total[2 + k] + sum_w[first] * a + sum_w[second] * b
                        for k, (a, b) in enumerate(square_steps)
                    ]
                )
            for k in range(4):
                best.offer(
                    qx[0][k >> 1] + qx[1][k & 1], q2[0][k >> 1] + q2[1][k & 1], first, second, k
                )
    return best.split


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 56]` (ggml `quantize_row_iq1_m_impl`)."""
    xp = namespace(x)
    w = weights(x, importance)
    found = quantize_sub_blocks(x, w, 16, 2, EPSILON, _split)
    d, codes, empty = codes_of(found.scale)
    shifts = xp.where(empty, xp.zeros_like(found.shifts), found.shifts)
    lower = xp.reshape(xp.stack([shifts >> 1, shifts & 1], axis=2), (-1, 32))

    # d again, by least squares over the whole block
    shift = DELTA - 2 * DELTA * xp.astype(lower, xp.float32)
    turned = [xp.permute_dims(a, (1, 0)) for a in (found.points, shift, codes)]
    odd = 2 * xp.astype(turned[2], xp.float32) + 1
    per_weight = xp.reshape(xp.stack([odd] * 16, axis=1), (QK_K, -1))
    q = values(turned[0], turned[1]) * per_weight
    columns, column_w = (contiguous(xp.permute_dims(a, (1, 0))) for a in (x, w))
    sum_qx, sum_q2 = sum_rows(column_w * q * columns), sum_rows(column_w * q * q)
    better = (sum_q2 > 0)[:, None]
    d = xp.where(better, (sum_qx / sum_q2)[:, None], d)
    half = half_and_float(d * float(np.float32(FUDGE)))[0]
    bits = xp.astype(half.view(xp.int16), xp.int32) & 0xFFFF
    bits = xp.where(empty, xp.zeros_like(bits), bits)

    words = xp.concat([(bits >> 4 * k & 15) << 12 for k in range(4)], axis=1)
    for k in range(4):
        words = words | (codes[:, k::4] << 3 * k)
    nibbles = found.points >> 8 | lower << 3
    return join(
        RECORD, qs=found.points & 255, qh=nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scales=words
    )


FORMAT = BlockFormat("IQ1_M", 29, QK_K, RECORD, quantize, dequantize, "iq1.iq1_m", grid=GRID)
