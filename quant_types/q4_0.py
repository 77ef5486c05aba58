"""Q4_0: 32 weights in 18 bytes, 4.5 bits a weight.

0  d   f16      weight = d * (q - 8)
2  qs  u8[16]   q, from 0 to 15: byte j holds weights j and, above, j + 16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.blocks_32 import pack_nibbles, symmetric, symmetric_weighted, unpack_nibbles
from quant_types.format import BlockFormat

RECORD = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
assert RECORD.itemsize == 18


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 18]` -> float32 `[blocks, 32]`."""
    xp = namespace(data)
    d = xp.astype(field(data, RECORD, "d"), xp.float32)
    return (xp.astype(unpack_nibbles(field(data, RECORD, "qs")), xp.float32) - 8) * d


def quantize(x: Array, weights: Array | None = None) -> Array:
    """float32 `[blocks, 32]` -> uint8 `[blocks, 18]` (ggml `quantize_row_q4_0_ref`, `_impl`)."""
    d, q = symmetric(x, 8) if weights is None else symmetric_weighted(x, weights, 8)
    return join(RECORD, d=d, qs=pack_nibbles(q))


FORMAT = BlockFormat(
    "Q4_0", 2, 32, RECORD, quantize, dequantize, "blocks_32.q4_0", weighs_rows=True
)
