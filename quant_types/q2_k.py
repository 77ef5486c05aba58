"""Q2_K: 256 weights in 84 bytes, 2.625 bits a weight; sixteen sub-blocks of 16.

 0  scales  u8[16]   scale in the low 4 bits, min in the high 4
16  qs      u8[64]   q of 2 bits (`k_quants.pack_crumbs`)
80  d       f16      weight = d * scale * q - dmin * min
82  dmin    f16
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
    pack_crumbs,
    quantize_again,
    rows,
    search_min_weighted,
    unpack_crumbs,
)
from quant_types.search import MinSteps, search_min

RECORD = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
assert RECORD.itemsize == 84
STEPS = MinSteps(top=3, start=-0.5, delta=0.1, last=15)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 84]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    scales, qs, d, dmin = (field(data, RECORD, name) for name in RECORD.names or ())
    d = xp.astype(d, xp.float32) * xp.astype(scales & 15, xp.float32)
    dm = xp.astype(dmin, xp.float32) * xp.astype(scales >> 4, xp.float32)
    q = xp.reshape(xp.astype(unpack_crumbs(qs), xp.float32), (-1, 16, 16))
    return xp.reshape(q * d[:, :, None] - dm[:, :, None], (-1, QK_K))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 84]` (ggml `quantize_row_q2_K_ref`, `_impl`)."""
    xp = namespace(x)
    lanes = columns(x, 16)
    if importance is None:
        scale, minimum, quants = search_min(lanes, xp.abs(lanes), STEPS, absolute=True)
        d, ls = largest_as_unit(xp.reshape(scale, (-1, 16)), 15)
        dmin, lm = largest_as_unit(xp.reshape(minimum, (-1, 16)), 15)
    else:
        d, dmin, ls, lm, quants = search_min_weighted(x, importance, 16, 1, STEPS.top, 15)
    scales = (ls | (lm << 4)) & 255
    d, d_float = half_and_float(d)
    dmin, dmin_float = half_and_float(dmin)
    quants = quantize_again(
        lanes,
        xp.reshape(d_float * xp.astype(scales & 15, xp.float32), (-1,)),
        xp.reshape(dmin_float * xp.astype(scales >> 4, xp.float32), (-1,)),
        0,
        STEPS.top,
        quants,
    )
    return join(RECORD, scales=scales, qs=pack_crumbs(rows(quants)), d=d, dmin=dmin)


FORMAT = BlockFormat("Q2_K", 10, QK_K, RECORD, quantize, dequantize, "k_min.q2_k")
