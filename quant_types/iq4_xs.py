"""IQ4_XS: 256 weights in 136 bytes, 4.25 bits a weight; eight sub-blocks of 32.

0  d         f16      weight = d * (scale - 32) * VALUES[q]
2  scales_h  u16      high 2 bits of the scales: those of sub-block j from bit 2 * j
4  scales_l  u8[4]    low 4 bits: byte j holds sub-blocks 2 * j and, above, 2 * j + 1
8  qs        u8[128]  q: byte 16 * i + j holds weights 32 * i + j and, above, + 16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, contiguous, field, join, namespace, nearest_int
from quant_types.blocks_32 import pack_nibbles, unpack_nibbles
from quant_types.format import BlockFormat
from quant_types.iq4 import error_weights, inverse_of, nearest, search, values_of
from quant_types.k_quants import QK_K, columns
from quant_types.search import extreme_of

RECORD = np.dtype([("d", "<f2"), ("scales_h", "<i2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])
assert RECORD.itemsize == 136


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 136]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, high, low, qs = (field(data, RECORD, name) for name in RECORD.names or ())
    low = xp.reshape(xp.stack([low & 15, low >> 4], axis=2), (-1, 8))
    high = xp.stack([xp.astype(high[:, 0], xp.int32) >> 2 * j & 3 for j in range(8)], axis=1)
    scales = (xp.astype(low, xp.int32) | (high << 4)) - 32
    scales = xp.astype(d, xp.float32) * xp.astype(scales, xp.float32)
    q = unpack_nibbles(xp.reshape(qs, (-1, 16)))
    return xp.reshape(xp.reshape(scales, (-1, 1)) * values_of(q), (-1, QK_K))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 136]` (ggml `quantize_iq4_xs`)."""
    xp = namespace(x)
    scale = xp.reshape(search(columns(x, 32), error_weights(x, importance)), (-1, 8))
    largest = extreme_of(contiguous(xp.permute_dims(scale, (1, 0))))[:, None]
    d = xp.where(largest != 0, largest, xp.zeros_like(largest)) / -32
    code = xp.clip(nearest_int(inverse_of(d) * scale), -32, 31)
    inverse = inverse_of(d * xp.astype(code, xp.float32))
    q = nearest(xp.reshape(x, (-1, 32)) * xp.reshape(inverse, (-1, 1)))
    code = code + 32
    high = code[:, 0] >> 4
    for j in range(1, 8):
        high = high | (code[:, j] >> 4 << 2 * j)
    low = code & 15
    return join(
        RECORD,
        d=d,
        scales_h=high,
        scales_l=low[:, 0::2] | (low[:, 1::2] << 4),
        qs=xp.reshape(pack_nibbles(q), (-1, 128)),
    )


FORMAT = BlockFormat("IQ4_XS", 23, QK_K, RECORD, quantize, dequantize, "iq4.iq4_xs")
