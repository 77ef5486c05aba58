"""IQ3_S: 256 weights in 110 bytes, 3.4375 bits a weight; eight sub-blocks of 32.

  0  d       f16     weight = d * (1 + 2 * scale) * a value of the grid, 1 to 15, or its negative
  2  qs      u8[64]  the points of groups of 4, low 8 bits
 66  qh      u8[8]   the points' high bits: bit i of byte j is group 8 * j + i's
 74  signs   u8[32]  bit i is set where weight i of eight is negative
106  scales  u8[4]   4 bits each: byte j holds sub-blocks 2 * j and, above, 2 * j + 1
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.format import BlockFormat
from quant_types.grids import grid
from quant_types.iq_search import (
    Search,
    low_and_high,
    magnitudes,
    pack_codes,
    quantize_sub_blocks,
    scaled,
)
from quant_types.k_quants import QK_K

NAME = "IQ3_S"
RECORD = np.dtype(
    [("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)]
)
assert RECORD.itemsize == 110
SEARCH = Search(
    length=32, tries=9, step=0.2, epsilon=0.0, factor=2, fudge=1.033, parity=False, again="off"
)
VALUES = (1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0)  # of the levels


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 110]` -> float32 `[blocks, 256]`."""
    xp = namespace(data)
    d, qs, qh, signs, codes = (field(data, RECORD, name) for name in RECORD.names or ())
    high = xp.reshape(xp.stack([qh >> i & 1 for i in range(8)], axis=2), (-1, 64))
    points = xp.astype(qs, xp.int32) | (xp.astype(high, xp.int32) << 8)
    scales = xp.astype(d, xp.float32) * (1 + 2 * low_and_high(codes))
    return scaled(magnitudes(grid(NAME), VALUES, points, signs), scales)


def _closed_up(a: Array, empty: Array) -> Array:
    """What ggml stores sub-block after sub-block: it does not move on behind an empty one.

    Args:
        a: `[blocks, 8 * n]`, zeros in empty sub-blocks.
        empty: bool `[blocks, 8]`.
    """
    xp = namespace(a)
    order = xp.argsort(xp.astype(empty, xp.int8), axis=1, stable=True)[:, :, None]
    parts = xp.reshape(a, (a.shape[0], 8, -1))
    order = xp.broadcast_to(order, parts.shape)
    return xp.reshape(xp.take_along_axis(parts, order, axis=1), a.shape)


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 256]` -> uint8 `[blocks, 110]` (ggml `quantize_row_iq3_s_impl`)."""
    xp = namespace(x)
    found = quantize_sub_blocks(x, importance, grid(NAME), SEARCH)
    high = xp.reshape(found.points >> 8, (-1, 8, 8))
    qh = high[:, :, 0]
    for i in range(1, 8):
        qh = qh | (high[:, :, i] << i)
    return join(
        RECORD, d=found.d, qs=_closed_up(found.points & 255, found.empty), qh=qh,
        signs=_closed_up(found.signs, found.empty), scales=pack_codes(found.codes),
    )  # fmt: skip


FORMAT = BlockFormat(NAME, 21, QK_K, RECORD, quantize, dequantize, "iq3.iq3_s", grid=NAME)
