"""Q2_0: 64 weights in 18 bytes, 2.25 bits a weight.

0  d   f16      weight = d * (q - 1); the greatest magnitude of the block
2  qs  u8[16]   q, from 0 to 3 (a quantizer uses no 3): byte j holds weights 4 * j to 4 * j + 3,
                from low to high
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace, number
from quant_types.format import BlockFormat

RECORD = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
assert RECORD.itemsize == 18


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 18]` -> float32 `[blocks, 64]`."""
    xp = namespace(data)
    d = xp.astype(field(data, RECORD, "d"), xp.float32)
    qs = field(data, RECORD, "qs")
    q = xp.reshape(xp.stack([qs >> 2 * i & 3 for i in range(4)], axis=2), (-1, 64))
    return (xp.astype(q, xp.float32) - 1) * d


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 64]` -> uint8 `[blocks, 18]` (ggml `quantize_row_q2_0_ref`)."""
    xp = namespace(x)
    d = xp.max(xp.abs(x), axis=1, keepdims=True)
    inverse = xp.where(d > 0, number(1, x) / d, xp.zeros_like(d))
    v = x * inverse
    # C's roundf: half away from zero. Where 1/d is infinite, its cast to int is the least one.
    q = 1 + xp.astype(v >= 0.5, xp.int32) - xp.astype(v <= -0.5, xp.int32)
    q = xp.where(xp.isfinite(inverse), q, xp.zeros_like(q))
    q = xp.reshape(q, (-1, 16, 4))
    packed = q[:, :, 0] | (q[:, :, 1] << 2) | (q[:, :, 2] << 4) | (q[:, :, 3] << 6)
    return join(RECORD, d=d, qs=packed)


FORMAT = BlockFormat(
    "Q2_0", 42, 64, RECORD, quantize, dequantize, "few_bits.q2_0", takes_importance=False
)
