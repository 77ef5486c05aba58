"""TQ2_0: 256 weights in 66 bytes, 2.0625 bits a weight; each weight is -d, 0 or d.

 0  qs  u8[64]  the weight plus 1 in 2 bits: byte 32 * h + j holds weights
                128 * h + j + 0, 32, 64 and 96, from low to high
64  d   f16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.k_quants import QK_K, pack_crumbs, unpack_crumbs
from quant_types.ternary import digits

RECORD = np.dtype([("qs", "u1", 64), ("d", "<f2")])
assert RECORD.itemsize == 66


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 66]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    t = xp.astype(unpack_crumbs(field(data, RECORD, "qs")), xp.float32)
    return (t - 1) * xp.astype(field(data, RECORD, "d"), xp.float32)


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 66]` (ggml `quantize_row_tq2_0_ref`)."""
    d, t = digits(x)
    return join(RECORD, qs=pack_crumbs(t), d=d)


FORMAT = BlockFormat(
    "TQ2_0", 35, QK_K, RECORD, quantize, dequantize, "ternary.tq2_0", takes_importance=False
)
