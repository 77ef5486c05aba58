"""Q8_0: 32 weights in 34 bytes, 8.5 bits a weight.

0  d    f16     weight = d * q
2  qs   i8[32]  q, from -127 to 127
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace, number
from quant_types.format import BlockFormat

RECORD = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
assert RECORD.itemsize == 34


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 34]` -> float32 `[blocks, 32]`."""
    xp = namespace(data)
    d = xp.astype(field(data, RECORD, "d"), xp.float32)
    return xp.astype(field(data, RECORD, "qs"), xp.float32) * d


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 32]` -> uint8 `[blocks, 34]` (ggml `quantize_row_q8_0_ref`)."""
    xp = namespace(x)
    d = xp.max(xp.abs(x), axis=1, keepdims=True) / number(127, x)
    inverse = xp.where(d != 0, number(1, x) / d, xp.zeros_like(d))
    v = x * inverse
    # C's roundf: half away from zero; where 1/d is infinite its conversion to int8 gives 0.
    q = xp.trunc(v)
    q = q + xp.sign(v) * xp.astype(xp.abs(v - q) >= 0.5, xp.float32)
    q = xp.where(xp.isfinite(v), q, xp.zeros_like(q))
    return join(RECORD, d=d, qs=q)


FORMAT = BlockFormat(
    "Q8_0", 8, 32, RECORD, quantize, dequantize, "q8_0.q8_0", takes_importance=False
)
