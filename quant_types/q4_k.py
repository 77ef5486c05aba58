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
from quant_types.k_quants import (
    QK_K,
    columns,
    half_and_float,
    largest_as_unit,
    mean_weights,
    pack_scales,
    quantize_again,
    rows,
    unpack_scales,
)
from quant_types.search import MinSteps, search_min

RECORD = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
assert RECORD.itemsize == 144
STEPS = MinSteps(top=15, start=-1.0, delta=0.1, count=20)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 144]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    scales, mins = unpack_scales(field(data, RECORD, "scales"))
    d = xp.astype(field(data, RECORD, "d"), xp.float32) * xp.astype(scales, xp.float32)
    dm = xp.astype(field(data, RECORD, "dmin"), xp.float32) * xp.astype(mins, xp.float32)
    qs = xp.reshape(field(data, RECORD, "qs"), (-1, 4, 1, 32))
    q = xp.astype(xp.concat([qs & 15, qs >> 4], axis=2), xp.float32)
    x = xp.reshape(q, (-1, 8, 32)) * d[:, :, None] - dm[:, :, None]
    return xp.reshape(x, (-1, QK_K))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 144]` (ggml `quantize_row_q4_K_ref`)."""
    xp = namespace(x)
    lanes = columns(x, 32)
    scale, minimum, quants = search_min(lanes, mean_weights(lanes), STEPS)
    d, ls = largest_as_unit(xp.reshape(scale, (-1, 8)), 63)
    dmin, lm = largest_as_unit(xp.reshape(minimum, (-1, 8)), 63)
    packed = pack_scales(xp.clip(ls & 255, 0, 63), xp.clip(lm & 255, 0, 63))
    d, d_float = half_and_float(d)
    dmin, dmin_float = half_and_float(dmin)
    sc, m = unpack_scales(packed)
    quants = quantize_again(
        lanes,
        xp.reshape(d_float * xp.astype(sc, xp.float32), (-1,)),
        xp.reshape(dmin_float * xp.astype(m, xp.float32), (-1,)),
        0,
        15,
        quants,
    )
    q = xp.reshape(rows(quants), (-1, 4, 2, 32))
    return join(RECORD, d=d, dmin=dmin, scales=packed, qs=q[:, :, 0] | (q[:, :, 1] << 4))


FORMAT = BlockFormat("Q4_K", 12, QK_K, RECORD, quantize, dequantize, "k_min.q4_k")
