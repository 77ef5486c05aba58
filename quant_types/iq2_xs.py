"""IQ2_XS: 256 weights in 74 bytes, 2.3125 bits a weight; sixteen sub-blocks of 16.

 0  d       f16      weight = d * (0.5 + scale) / 4 * (8, 25 or 43, or its negative)
 2  qs      u16[32]  a group of 8: its point in the low 9 bits, above them 7 of its signs
66  scales  u8[8]    4 bits each: byte j holds sub-blocks 2 * j and, above, 2 * j + 1
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.grids import grid
from quant_types.iq2_xxs import VALUES
from quant_types.iq_search import (
    Search,
    even,
    low_and_high,
    magnitudes,
    pack_codes,
    quantize_sub_blocks,
    scaled,
)
from quant_types.k_quants import QK_K

NAME = "IQ2_XS"
RECORD = np.dtype([("d", "<f2"), ("qs", "<i2", 32), ("scales", "u1", 8)])
assert RECORD.itemsize == 74
SEARCH = Search(length=16, tries=9, step=0.1, epsilon=1e-15, factor=1, fudge=1.0, parity=True)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 74]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, qs, codes = (field(data, RECORD, name) for name in RECORD.names or ())
    qs = xp.astype(qs, xp.int32)
    scales = xp.astype(d, xp.float32) * (0.5 + low_and_high(codes)) * 0.25
    return scaled(magnitudes(grid(NAME), VALUES, qs & 511, even(qs >> 9 & 127)), scales)


def quantize(x: Array, importance: Array) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 74]` (ggml `quantize_row_iq2_xs_impl`)."""
    found = quantize_sub_blocks(x, importance, grid(NAME), SEARCH)
    qs = found.points | (found.signs << 9)
    return join(RECORD, d=found.d, qs=qs, scales=pack_codes(found.codes))


FORMAT = BlockFormat(
    NAME, 17, QK_K, RECORD, quantize, dequantize, "iq2.iq2_xs", needs_importance=True, grid=NAME
)
