"""Q5_1: 32 weights in 24 bytes, 6 bits a weight.

0  d   f16      weight = d * q + m
2  m   f16
4  qh  u8[4]    fifth bit of q, from 0 to 31: bit i of byte j is that of weight 8 * j + i
8  qs  u8[16]   low 4 bits: byte j holds weights j and, above, j + 16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.blocks_32 import (
    minimum_weighted,
    pack_fifth,
    pack_nibbles,
    unpack_fifth,
    unpack_nibbles,
    with_minimum,
)
from quant_types.format import BlockFormat

RECORD = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
assert RECORD.itemsize == 24


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 24]` -> float32 `[blocks, 32]`."""
    xp = namespace(data)
    d, m = (xp.astype(field(data, RECORD, name), xp.float32) for name in ("d", "m"))
    q = unpack_nibbles(field(data, RECORD, "qs")) | unpack_fifth(field(data, RECORD, "qh"))
    return xp.astype(q, xp.float32) * d + m


def quantize(x: Array, weights: Array | None = None) -> Array:
    """float32 `[blocks, 32]` -> uint8 `[blocks, 24]` (ggml `quantize_row_q5_1_ref`, `_impl`)."""
    d, m, q = with_minimum(x, 31) if weights is None else minimum_weighted(x, weights, 31)
    return join(RECORD, d=d, m=m, qh=pack_fifth(q), qs=pack_nibbles(q))


FORMAT = BlockFormat(
    "Q5_1", 7, 32, RECORD, quantize, dequantize, "blocks_32.q5_1", weighs_rows=True
)
