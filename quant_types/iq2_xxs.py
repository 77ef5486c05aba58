"""IQ2_XXS: 256 weights in 66 bytes, 2.0625 bits a weight; eight sub-blocks of 32.

0  d   f16        weight = d * (0.5 + scale) / 4 * (8, 25 or 43, or its negative)
2  qs  u32[2][8]  a sub-block: points of four groups of 8, a byte each; then their signs, 7 bits
                  each (`iq_search.pack_signs`), and in the high 4 bits the scale
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, contiguous, field, join, namespace
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

NAME = "IQ2_XXS"
RECORD = np.dtype([("d", "<f2"), ("qs", "u1", 64)])
assert RECORD.itemsize == 66
SEARCH = Search(
    length=32, tries=6, step=0.1, epsilon=1e-15, factor=1, fudge=1.0, parity=True,
    least_squares=True, again="all",
)  # fmt: skip
VALUES = (8.0, 25.0, 43.0)  # of the levels, in IQ2_XS and IQ2_S too


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 66]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, qs = (field(data, RECORD, name) for name in RECORD.names or ())
    qs = xp.reshape(qs, (-1, 8, 8))
    rest = xp.reshape(contiguous(qs[:, :, 4:]).view(xp.int32), (-1, 8))
    scales = xp.astype(d, xp.float32) * (0.5 + xp.astype(rest >> 28 & 15, xp.float32)) * 0.25
    points = xp.reshape(qs[:, :, :4], (-1, 32))
    return scaled(magnitudes(grid(NAME), VALUES, points, unpack_signs(rest)), scales)


def quantize(x: Array, importance: Array) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 66]` (ggml `quantize_row_iq2_xxs_impl`)."""
    xp = namespace(x)
    found = quantize_sub_blocks(x, importance, grid(NAME), SEARCH)
    points = xp.astype(xp.reshape(found.points, (-1, 8, 4)), xp.uint8)
    rest = (pack_signs(found.signs) | (found.codes << 28))[:, :, None].view(xp.uint8)
    qs = xp.reshape(xp.concat([points, rest], axis=2), (-1, 64))
    return join(RECORD, d=found.d, qs=qs)


FORMAT = BlockFormat(
    NAME, 16, QK_K, RECORD, quantize, dequantize, "iq2.iq2_xxs", needs_importance=True, grid=NAME
)
