"""IQ2_S: 256 weights in 82 bytes, 2.5625 bits a weight; sixteen sub-blocks of 16.

 0  d       f16     weight = d * (0.5 + scale) / 4 * (8, 25 or 43, or its negative)
 2  qs      u8[32]  the points of groups of 8, low 8 bits
34  signs   u8[32]  bit i is set where weight i of the group is negative
66  qh      u8[8]   the points' high 2 bits: byte j holds groups 4 * j to 4 * j + 3, low to high
74  scales  u8[8]   4 bits each: byte j holds sub-blocks 2 * j and, above, 2 * j + 1
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.grids import grid
from quant_types.iq2_xxs import VALUES
from quant_types.iq_search import (
    Search,
    low_and_high,
    magnitudes,
    pack_codes,
    quantize_sub_blocks,
    scaled,
)
from quant_types.k_quants import QK_K

NAME = "IQ2_S"
RECORD = np.dtype(
    [("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)]
)
assert RECORD.itemsize == 82
SEARCH = Search(
    length=16, tries=9, step=0.1, epsilon=1e-8, factor=2, fudge=0.9875, parity=False, floor=0.25
)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 82]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, qs, signs, qh, codes = (field(data, RECORD, name) for name in RECORD.names or ())
    high = xp.reshape(xp.stack([qh >> 2 * i & 3 for i in range(4)], axis=2), (-1, 32))
    points = xp.astype(qs, xp.int32) | (xp.astype(high, xp.int32) << 8)
    scales = xp.astype(d, xp.float32) * (0.5 + low_and_high(codes)) * 0.25
    return scaled(magnitudes(grid(NAME), VALUES, points, signs), scales)


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 82]` (ggml `quantize_row_iq2_s_impl`)."""
    xp = namespace(x)
    found = quantize_sub_blocks(x, importance, grid(NAME), SEARCH)
    high = xp.reshape(found.points >> 8, (-1, 8, 4))
    qh = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return join(
        RECORD, d=found.d, qs=found.points & 255, signs=found.signs, qh=qh,
        scales=pack_codes(found.codes),
    )  # fmt: skip


FORMAT = BlockFormat(NAME, 22, QK_K, RECORD, quantize, dequantize, "iq2.iq2_s", grid=NAME)
