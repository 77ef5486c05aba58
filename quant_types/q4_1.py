"""Q4_1: 32 weights in 20 bytes, 5 bits a weight.

0  d   f16      weight = d * q + m
2  m   f16
4  qs  u8[16]   q, from 0 to 15: byte j holds weights j and, above, j + 16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.blocks_32 import minimum_weighted, pack_nibbles, unpack_nibbles, with_minimum
from quant_types.format import BlockFormat

RECORD = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
assert RECORD.itemsize == 20


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 20]` -> float32 `[blocks, 32]`."""
    xp = namespace(data)
    d, m = (xp.astype(field(data, RECORD, name), xp.float32) for name in ("d", "m"))
    return xp.astype(unpack_nibbles(field(data, RECORD, "qs")), xp.float32) * d + m


def quantize(x: Array, weights: Array | None = None) -> Array:
    """float32 `[blocks, 32]` -> uint8 `[blocks, 20]` (ggml `quantize_row_q4_1_ref`, `_impl`)."""
    d, m, q = with_minimum(x, 15) if weights is None else minimum_weighted(x, weights, 15)
    return join(RECORD, d=d, m=m, qs=pack_nibbles(q))


FORMAT = BlockFormat(
    "Q4_1", 3, 32, RECORD, quantize, dequantize, "blocks_32.q4_1", weighs_rows=True
)
