"""Q5_0: 32 weights in 22 bytes, 5.5 bits a weight.

0  d   f16      weight = d * (q - 16)
2  qh  u8[4]    fifth bit of q, from 0 to 31: bit i of byte j is that of weight 8 * j + i
6  qs  u8[16]   low 4 bits: byte j holds weights j and, above, j + 16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.blocks_32 import (
    pack_fifth,
    pack_nibbles,
    symmetric,
    symmetric_weighted,
    unpack_fifth,
    unpack_nibbles,
)
from quant_types.format import BlockFormat

RECORD = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
assert RECORD.itemsize == 22


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 22]` -> float32 `[blocks, 32]`."""
    xp = namespace(data)
    d = xp.astype(field(data, RECORD, "d"), xp.float32)
    q = unpack_nibbles(field(data, RECORD, "qs")) | unpack_fifth(field(data, RECORD, "qh"))
    return (xp.astype(q, xp.float32) - 16) * d


def quantize(x: Array, weights: Array | None = None) -> Array:
    """float32 `[blocks, 32]` -> uint8 `[blocks, 22]` (ggml `quantize_row_q5_0_ref`, `_impl`)."""
    d, q = symmetric(x, 16) if weights is None else symmetric_weighted(x, weights, 16)
    return join(RECORD, d=d, qh=pack_fifth(q), qs=pack_nibbles(q))


FORMAT = BlockFormat(
    "Q5_0", 6, 32, RECORD, quantize, dequantize, "blocks_32.q5_0", weighs_rows=True
)
