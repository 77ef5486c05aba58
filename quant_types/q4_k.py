"""Q4_K: 256 weights in 144 bytes, 4.5 bits a weight; eight sub-blocks of 32.

 0  d       f16      weight = d * scale * q - dmin * min
 2  dmin    f16
 4  scales  u8[12]   a scale and a min of 6 bits a sub-block (`k_quants.pack_scales`)
16  qs      u8[128]  q of 4 bits: byte 32 * i + j holds weights 64 * i + j and, above, + 32
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.k_quants import QK_K, dequantize_min_32, quantize_min_32
from quant_types.search import MinSteps

RECORD = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
assert RECORD.itemsize == 144
STEPS = MinSteps(top=15, start=-1.0, delta=0.1, last=20)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 144]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, dmin, scales, qs = (field(data, RECORD, name) for name in ("d", "dmin", "scales", "qs"))
    qs = xp.reshape(qs, (-1, 4, 1, 32))
    q = xp.concat([qs & 15, qs >> 4], axis=2)
    return dequantize_min_32(d, dmin, scales, xp.reshape(q, (-1, QK_K)))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 144]` (ggml `quantize_row_q4_K_ref`, `_impl`)."""
    d, dmin, scales, quants = quantize_min_32(x, importance, STEPS)
    q = namespace(x).reshape(quants, (-1, 4, 2, 32))
    return join(RECORD, d=d, dmin=dmin, scales=scales, qs=q[:, :, 0] | (q[:, :, 1] << 4))


FORMAT = BlockFormat("Q4_K", 12, QK_K, RECORD, quantize, dequantize, "k_min.q4_k")
