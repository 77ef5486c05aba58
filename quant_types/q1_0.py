"""Q1_0: 128 weights in 18 bytes, 1.125 bits a weight.

0  d   f16      weight = d or -d; the mean magnitude of the block
2  qs  u8[16]   a bit a weight, set for d: bit i of byte j is weight 8 * j + i's
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, contiguous, field, join, namespace, sum_rows
from quant_types.format import BlockFormat

RECORD = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
assert RECORD.itemsize == 18


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 18]` -> float32 `[blocks, 128]`."""
    xp = namespace(data)
    d = xp.astype(field(data, RECORD, "d"), xp.float32)
    qs = field(data, RECORD, "qs")
    bits = xp.reshape(xp.stack([qs >> i & 1 for i in range(8)], axis=2), (-1, 128))
    return xp.where(bits == 1, d, -d)


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 128]` -> uint8 `[blocks, 18]` (ggml `quantize_row_q1_0_ref`)."""
    xp = namespace(x)
    d = sum_rows(contiguous(xp.permute_dims(xp.abs(x), (1, 0)))) / 128
    bit = xp.reshape(xp.astype(x >= 0, xp.uint8), (-1, 16, 8))
    qs = bit[:, :, 0]
    for i in range(1, 8):
        qs = qs | (bit[:, :, i] << i)
    return join(RECORD, d=d, qs=qs)


FORMAT = BlockFormat(
    "Q1_0", 41, 128, RECORD, quantize, dequantize, "few_bits.q1_0", takes_importance=False
)
