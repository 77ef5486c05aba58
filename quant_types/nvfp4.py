"""NVFP4: 64 weights in 36 bytes, 4.5 bits a weight; four sub-blocks of 16 (E2M1 under UE4M3).

0  d   u8[4]    a sub-block's scale: 4 bits of exponent, 3 of mantissa, no sign
4  qs  u8[32]   a sign and a value of `mxfp4.VALUES`: byte 8 * s + j holds, of sub-block s,
                weights j and, above, j + 8
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace, number
from quant_types.format import BlockFormat
from quant_types.mxfp4 import VALUES

RECORD = np.dtype([("d", "u1", 4), ("qs", "u1", 32)])
assert RECORD.itemsize == 36
_LARGEST = 448.0  # of UE4M3
_BYTES = np.arange(256)
# ggml `ggml_ue4m3_to_fp32`: halved, since the values are doubled; 0x7f is NaN, and read as 0
_SCALES = np.where(
    _BYTES >> 3 & 15,
    np.ldexp(1 + (_BYTES & 7) / 8, (_BYTES >> 3 & 15) - 8),
    np.ldexp(_BYTES & 7, -10),
).astype(np.float32)
_SCALES[0x7F] = 0


def _scale(e: Array) -> Array:
    xp = namespace(e)
    return xp.asarray(_SCALES, device=e.device)[xp.astype(e, xp.int32)]


def _nearest_scale(v: Array) -> Array:
    """ggml `ggml_fp32_to_ue4m3`: float32 that is not negative -> int32; half up.

    From 248 on all are 0x7e, which stands for 448: the last exponent is never rounded to.
    """
    xp = namespace(v)
    v = xp.clip(v, None, _LARGEST)
    subnormal = xp.clip(xp.astype(v * 512 + 0.5, xp.int32), None, 7)
    normal = (v.view(xp.int32) + (1 << 19) >> 20) - (120 << 3)
    normal = xp.where(normal < 120, normal, xp.full_like(normal, 0x7E))
    return xp.where(v < 2.0**-6, subnormal, normal)


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 36]` -> float32 `[blocks, 64]`."""
    xp = namespace(data)
    d, qs = field(data, RECORD, "d"), xp.reshape(field(data, RECORD, "qs"), (-1, 4, 8))
    q = xp.concat([qs & 15, qs >> 4], axis=2)
    values = xp.asarray(
        [*VALUES, 0.0, *(-v for v in VALUES[1:])], dtype=xp.float32, device=data.device
    )
    return xp.reshape(values[xp.astype(q, xp.int32)] * _scale(d)[:, :, None], (-1, 64))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 64]` -> uint8 `[blocks, 36]` (ggml `quantize_row_nvfp4_ref`)."""
    xp = namespace(x)
    x = xp.reshape(x, (-1, 16))
    magnitude = xp.abs(x)
    e = _nearest_scale(xp.max(magnitude, axis=1) / number(6, x))
    d = _scale(e)[:, None]
    # Far above the values all errors round to the same, and the first of equals is taken.
    least = magnitude
    level = xp.zeros_like(x, dtype=xp.int32)
    for k, value in enumerate(VALUES[1:], 1):
        error = xp.abs(value * d - magnitude)
        closer = error < least
        level = xp.where(closer, xp.full_like(level, k), level)
        least = xp.where(closer, error, least)
    q = level | xp.where((x < 0) & (level > 0), xp.zeros_like(level) + 8, xp.zeros_like(level))
    q = xp.reshape(q, (-1, 4, 2, 8))
    return join(
        RECORD, d=xp.reshape(e, (-1, 4)), qs=xp.reshape(q[:, :, 0] | (q[:, :, 1] << 4), (-1, 32))
    )


FORMAT = BlockFormat(
    "NVFP4", 40, 64, RECORD, quantize, dequantize, "few_bits.nvfp4", takes_importance=False
)
