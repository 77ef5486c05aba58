"""TQ1_0: 256 weights in 54 bytes, 1.6875 bits a weight; each weight is -d, 0 or d.

 0  qs  u8[48]  five weights a byte: byte j < 32 holds weights j + 0, 32, 64, 96, 128;
                byte 32 + j holds weights 160 + j + 0, 16, 32, 48, 64
48  qh  u8[4]   four weights a byte: byte j holds weights 240 + j + 0, 4, 8, 12
52  d   f16

A byte is the fraction 0.t1 t2 t3 t4 t5 in base 3, times 256 and rounded up: multiplying it by 3
again and again brings out one digit after another, which is the weight plus 1.
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.k_quants import QK_K
from quant_types.ternary import digits

RECORD = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])
assert RECORD.itemsize == 54


def _pack(t: Array) -> Array:
    """Digits `[blocks, count, n]` -> bytes `[blocks, n]`; what is missing to five digits is 0."""
    xp = namespace(t)
    q = xp.zeros_like(t[:, 0])
    for i in range(5):
        q = q * 3 + (t[:, i] if i < t.shape[1] else 0)
    return (q * 256 + 242) // 243


def _unpack(q: Array, count: int) -> Array:
    """uint8 `[blocks, n]` -> digits int32 `[blocks, count * n]`."""
    xp = namespace(q)
    q = xp.astype(q, xp.int32)
    powers = (1, 3, 9, 27, 81)[:count]
    return xp.concat([((q * power & 255) * 3) >> 8 for power in powers], axis=1)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 54]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    qs, qh, d = (field(data, RECORD, name) for name in RECORD.names or ())
    t = xp.concat([_unpack(qs[:, :32], 5), _unpack(qs[:, 32:], 5), _unpack(qh, 4)], axis=1)
    return xp.astype(t - 1, xp.float32) * xp.astype(d, xp.float32)


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 54]` (ggml `quantize_row_tq1_0_ref`)."""
    xp = namespace(x)
    d, t = digits(x)
    first = _pack(xp.reshape(t[:, :160], (-1, 5, 32)))
    second = _pack(xp.reshape(t[:, 160:240], (-1, 5, 16)))
    last = _pack(xp.reshape(t[:, 240:], (-1, 4, 4)))
    return join(RECORD, qs=xp.concat([first, second], axis=1), qh=last, d=d)


FORMAT = BlockFormat(
    "TQ1_0", 34, QK_K, RECORD, quantize, dequantize, "ternary.tq1_0", takes_importance=False
)
