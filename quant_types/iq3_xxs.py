"""IQ3_XXS: 256 weights in 98 bytes, 3.0625 bits a weight; eight sub-blocks of 32.

 0  d     f16     weight = d * (0.5 + scale) / 2 * a value of the grid, 4 to 62, or its negative
 2  qs    u8[64]  the points of groups of 4
66  rest  u32[8]  a sub-block: signs of four eights in 7 bits each (`iq_search.pack_signs`), and in
                  the high 4 bits the scale
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.grids import grid
from quant_types.iq_search import (
    Search,
    magnitudes,
    pack_signs,
    quantize_sub_blocks,
    scaled,
    unpack_signs,
)
from quant_types.k_quants import QK_K

NAME = "IQ3_XXS"
RECORD = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("rest", "<i4", 8)])
assert RECORD.itemsize == 98
SEARCH = Search(length=32, tries=15, step=0.2, epsilon=1e-8, factor=2, fudge=1.0125, parity=True)
VALUES = (4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0)  # of the levels


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 98]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, points, rest = (field(data, RECORD, name) for name in RECORD.names or ())
    scales = xp.astype(d, xp.float32) * (0.5 + xp.astype(rest >> 28 & 15, xp.float32)) * 0.5
    return scaled(magnitudes(grid(NAME), VALUES, points, unpack_signs(rest)), scales)


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 98]` (ggml `quantize_row_iq3_xxs_impl`)."""
    found = quantize_sub_blocks(x, importance, grid(NAME), SEARCH)
    rest = pack_signs(found.signs) | (found.codes << 28)
    return join(RECORD, d=found.d, qs=found.points, rest=rest)


FORMAT = BlockFormat(NAME, 18, QK_K, RECORD, quantize, dequantize, "iq3.iq3_xxs", grid=NAME)
