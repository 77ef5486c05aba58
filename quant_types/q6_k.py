"""Q6_K: 256 weights in 210 bytes, 6.5625 bits a weight; sixteen sub-blocks of 16.

  0  ql      u8[128]  low 4 bits: byte 64 * h + j holds weights 128 * h + j and, above, + 64
128  qh      u8[64]   high 2 bits: byte 32 * h + j holds weights 128 * h + j + 0, 32, 64, 96
192  scales  i8[16]   weight = d * scale * (q - 32)
208  d       f16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, clamp, field, join, namespace, nearest_int, number
from quant_types.format import BlockFormat
from quant_types.k_quants import QK_K, columns, half_and_float, quantize_again, rows
from quant_types.search import GROUP_MAX_EPS, extreme_of, search_symmetric

RECORD = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
assert RECORD.itemsize == 210


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 210]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    ql = xp.reshape(field(data, RECORD, "ql"), (-1, 2, 2, 32))
    qh = xp.reshape(field(data, RECORD, "qh"), (-1, 2, 1, 32))
    low = xp.concat([ql & 15, ql >> 4], axis=2)
    high = xp.concat([qh & 3, qh >> 2 & 3, qh >> 4 & 3, qh >> 6], axis=2)
    q = xp.reshape(xp.astype(low | (high << 4), xp.float32), (-1, 16, 16)) - 32
    d = xp.astype(field(data, RECORD, "d"), xp.float32)
    scales = d * xp.astype(field(data, RECORD, "scales"), xp.float32)
    return xp.reshape(q * scales[:, :, None], (-1, QK_K))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 210]` (ggml `quantize_row_q6_K_impl`)."""
    xp = namespace(x)
    lanes = columns(x, 16)
    w = lanes * lanes if importance is None else columns(importance, 16)
    scale, quants = search_symmetric(lanes, w, 32)
    scale = xp.reshape(scale, (-1, 16))
    largest = extreme_of(xp.permute_dims(scale, (1, 0)))[:, None]
    inverse = number(-128, x) / largest
    d, d_float = half_and_float(number(1, x) / inverse)
    scales = clamp(nearest_int(inverse * scale), None, 127)
    scales = ((scales & 255) ^ 128) - 128  # an int8 wraps
    quants = quantize_again(
        lanes, xp.reshape(d_float * xp.astype(scales, xp.float32), (-1,)), 0.0, -32, 31, quants
    )
    q = xp.reshape(rows(quants + 32), (-1, 2, 4, 32))
    low, high = q & 15, q >> 4
    packed = join(
        RECORD,
        ql=low[:, :, :2] | (low[:, :, 2:] << 4),
        qh=high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6),
        scales=scales,
        d=d,
    )
    return xp.where(xp.abs(largest) < GROUP_MAX_EPS, xp.zeros_like(packed), packed)


FORMAT = BlockFormat("Q6_K", 14, QK_K, RECORD, quantize, dequantize, "k_symmetric.q6_k")
