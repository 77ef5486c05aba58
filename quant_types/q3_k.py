"""Q3_K: 256 weights in 110 bytes, 3.4375 bits a weight; sixteen sub-blocks of 16.

  0  hmask   u8[32]  high bit of q: bit i of byte j is that of weight 32 * i + j
 32  qs      u8[64]  low 2 bits of q (`k_quants.pack_crumbs`)
 96  scales  u8[12]  6 bits a sub-block: weight = d * (scale - 32) * (q - 4); `pack_six`
108  d       f16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import (
    Array,
    clamp,
    contiguous,
    field,
    join,
    namespace,
    nearest_int,
    number,
    sum_rows,
)
from quant_types.format import BlockFormat
from quant_types.k_quants import (
    QK_K,
    columns,
    half_and_float,
    importance_weights,
    pack_crumbs,
    quantize_again,
    rows,
    unpack_crumbs,
)
from quant_types.search import extreme_of, search_descent, search_symmetric

RECORD = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
assert RECORD.itemsize == 110


def pack_six(scales: Array) -> Array:
    """Scales `[blocks, 16]`, 0 to 63 -> `[blocks, 12]`.

    Bytes 0-7: the low 4 bits of scale j and, above, of scale j + 8. Bytes 8-11: the high 2 bits of
    scales j, j + 4, j + 8, j + 12, from low to high.
    """
    high = scales >> 4
    high = high[:, :4] | (high[:, 4:8] << 2) | (high[:, 8:12] << 4) | (high[:, 12:] << 6)
    return namespace(scales).concat(
        [(scales[:, :8] & 15) | ((scales[:, 8:] & 15) << 4), high], axis=1
    )


def unpack_six(packed: Array) -> Array:
    """`[blocks, 12]` -> `[blocks, 16]`, the inverse of `pack_six`."""
    xp = namespace(packed)
    low, high = packed[:, :8], packed[:, 8:]
    high = xp.concat([high & 3, high >> 2 & 3, high >> 4 & 3, high >> 6], axis=1)
    return xp.concat([low & 15, low >> 4], axis=1) | (high << 4)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 110]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    hmask, qs, scales, d = (field(data, RECORD, name) for name in RECORD.names or ())
    d = xp.astype(d, xp.float32) * (xp.astype(unpack_six(scales), xp.float32) - 32)
    high = xp.reshape(xp.stack([hmask >> bit & 1 for bit in range(8)], axis=1), (-1, QK_K))
    q = xp.astype(unpack_crumbs(qs) | (high << 2), xp.float32) - 4
    return xp.reshape(xp.reshape(q, (-1, 16, 16)) * d[:, :, None], (-1, QK_K))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 110]` (ggml `quantize_row_q3_K_ref`, `_impl`)."""
    xp = namespace(x)
    lanes = columns(x, 16)
    if importance is None:
        scale, quants = search_descent(lanes, 4)
        scale = xp.reshape(scale, (-1, 16))
        largest = extreme_of(xp.permute_dims(scale, (1, 0)))[:, None]
        inverse = number(-32, x) / largest
        codes = nearest_int(inverse * scale)
        codes = clamp(((codes & 255) ^ 128) - 128, -32, 31) + 32  # an int8 wraps
        zero = largest == 0
        codes = xp.where(zero, xp.zeros_like(codes), codes)
        d = xp.where(zero, xp.zeros_like(largest), number(1, x) / inverse)
    else:
        w = importance_weights(x, importance, 16, 2)
        scale, quants = search_symmetric(lanes, w, 4)
        by_block = (xp.reshape(scale, (-1, 16)), xp.reshape(sum_rows(w), (-1, 16)))
        values, weights = (contiguous(xp.permute_dims(a, (1, 0))) for a in by_block)
        d, codes = search_symmetric(values, weights, 32)
        codes = xp.permute_dims(codes, (1, 0)) + 32
    d, d_float = half_and_float(d)
    sub_d = xp.reshape(xp.reshape(d_float, (-1, 1)) * xp.astype(codes - 32, xp.float32), (-1,))
    quants = rows(quantize_again(lanes, sub_d, 0.0, -4, 3, quants)) + 4
    high = xp.reshape(quants >> 2, (-1, 8, 32))
    hmask = high[:, 0]
    for bit in range(1, 8):
        hmask = hmask | (high[:, bit] << bit)
    return join(RECORD, hmask=hmask, qs=pack_crumbs(quants & 3), scales=pack_six(codes), d=d)


FORMAT = BlockFormat("Q3_K", 11, QK_K, RECORD, quantize, dequantize, "k_symmetric.q3_k")
