"""MXFP4: 32 weights in 17 bytes, 4.25 bits a weight (OCP microscaling, E2M1 under E8M0).

0  e   u8       scale: 2 ** (e - 128) for a doubled value, exactly a power of two
1  qs  u8[16]   a sign and a value of `VALUES`: byte j holds weights j and, above, j + 16
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.blocks_32 import pack_nibbles, unpack_nibbles
from quant_types.format import BlockFormat

RECORD = np.dtype([("e", "u1"), ("qs", "u1", 16)])
assert RECORD.itemsize == 17
VALUES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)  # of E2M1, doubled
BORDERS = tuple((low + high) / 2 for low, high in pairwise(VALUES))


def _scale(e: Array) -> Array:
    """ggml `ggml_e8m0_to_fp32_half`: uint8 -> float32 `2 ** (e - 128)`."""
    xp = namespace(e)
    e = xp.astype(e, xp.int32)
    return xp.where(e < 2, 0x200000 << xp.clip(e, 0, 1), (e - 1) << 23).view(xp.float32)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 17]` -> float32 `[blocks, 32]`."""
    xp = namespace(data)
    q = unpack_nibbles(field(data, RECORD, "qs"))
    values = xp.asarray([*VALUES, 0.0, *(-v for v in VALUES[1:])], dtype=xp.float32)
    values = values[xp.astype(q, xp.int32)]
    return values * _scale(field(data, RECORD, "e"))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 32]` -> uint8 `[blocks, 17]` (ggml `quantize_row_mxfp4_ref`)."""
    xp = namespace(x)
    magnitude = xp.abs(x)
    largest = xp.max(magnitude, axis=1, keepdims=True)
    # log2 is rounded to float32 before floor: just below a power of two it is that power's.
    log2 = xp.log2(xp.astype(xp.where(largest > 0, largest, xp.ones_like(largest)), xp.float64))
    e = xp.astype(xp.floor(xp.astype(log2, xp.float32)), xp.int32) + 125
    e = xp.where(largest > 0, e, xp.zeros_like(e)) & 255  # below 2 ** -125 it wraps, as on x86
    d = _scale(e)
    level = xp.zeros_like(e)
    for border, value in zip(BORDERS, VALUES[1:], strict=True):
        # A value past float32's range is infinitely far away.
        beyond = (magnitude > border * d) & xp.isfinite(value * d)
        level = level + xp.astype(beyond, xp.int32)
    q = level | xp.where((x < 0) & (level > 0), xp.zeros_like(level) + 8, xp.zeros_like(level))
    return join(RECORD, e=e, qs=pack_nibbles(q))


FORMAT = BlockFormat(
    "MXFP4", 39, 32, RECORD, quantize, dequantize, "mxfp4.mxfp4", takes_importance=False
)
