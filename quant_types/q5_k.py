"""Q5_K: 256 weights in 176 bytes, 5.5 bits a weight; eight sub-blocks of 32.

 0  d       f16      weight = d * scale * q - dmin * min
 2  dmin    f16
 4  scales  u8[12]   a scale and a min of 6 bits a sub-block (`k_quants.pack_scales`)
16  qh      u8[32]   fifth bit of q: bit i of byte j is that of weight 32 * i + j
48  qs      u8[128]  low 4 bits: byte 32 * i + j holds weights 64 * i + j and, above, + 32
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.k_quants import QK_K, dequantize_min_32, quantize_min_32
from quant_types.search import MinSteps

RECORD = np.dtype(
    [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
)
assert RECORD.itemsize == 176
STEPS = MinSteps(top=31, start=-0.5, delta=0.1, last=15)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 176]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, dmin, scales, qh, qs = (field(data, RECORD, name) for name in RECORD.names or ())
    qs = xp.reshape(qs, (-1, 4, 1, 32))
    low = xp.reshape(xp.concat([qs & 15, qs >> 4], axis=2), (-1, 8, 32))
    high = xp.stack([qh >> bit & 1 for bit in range(8)], axis=1)
    return dequantize_min_32(d, dmin, scales, xp.reshape(low | (high << 4), (-1, QK_K)))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 176]` (ggml `quantize_row_q5_K_ref`, `_impl`)."""
    d, dmin, scales, quants = quantize_min_32(x, importance, STEPS)
    q = namespace(x).reshape(quants, (-1, 8, 32))
    low = q & 15
    qh = q[:, 0] >> 4
    for bit in range(1, 8):
        qh = qh | (q[:, bit] >> 4 << bit)
    return join(RECORD, d=d, dmin=dmin, scales=scales, qh=qh, qs=low[:, 0::2] | (low[:, 1::2] << 4))


FORMAT = BlockFormat("Q5_K", 13, QK_K, RECORD, quantize, dequantize, "k_min.q5_k")
