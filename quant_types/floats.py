"""F32, F16 and BF16: formats with one weight a block.

F32   f32
F16   f16    rounded to nearest even, past the range to infinity
BF16  u16    the upper half of the float32, rounded to nearest even (ggml `fp32_to_bf16`)
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, join, namespace
from quant_types.format import BlockFormat

F32_RECORD = np.dtype([("value", "<f4")])
F16_RECORD = np.dtype([("value", "<f2")])
BF16_RECORD = np.dtype([("value", "<i2")])


def dequantize_f32(data: Array) -> Array:
    """uint8 `[n, 4]` -> float32 `[n, 1]`."""
    return data.view(namespace(data).float32)


def quantize_f32(x: Array, importance: Array | None = None) -> Array:
    """float32 `[n, 1]` -> uint8 `[n, 4]`."""
    return join(F32_RECORD, value=x)


def dequantize_f16(data: Array) -> Array:
    """uint8 `[n, 2]` -> float32 `[n, 1]`."""
    xp = namespace(data)
    return xp.astype(data.view(xp.float16), xp.float32)


def quantize_f16(x: Array, importance: Array | None = None) -> Array:
    """float32 `[n, 1]` -> uint8 `[n, 2]`."""
    return join(F16_RECORD, value=x)


def dequantize_bf16(data: Array) -> Array:
    """uint8 `[n, 2]` -> float32 `[n, 1]`."""
    xp = namespace(data)
    return (xp.astype(data.view(xp.int16), xp.int32) << 16).view(xp.float32)


def quantize_bf16(x: Array, importance: Array | None = None) -> Array:
    """float32 `[n, 1]` -> uint8 `[n, 2]`."""
    bits = x.view(namespace(x).int32)
    return join(BF16_RECORD, value=(bits + (0x7FFF + ((bits >> 16) & 1))) >> 16)


F32 = BlockFormat(
    "F32", 0, 1, F32_RECORD, quantize_f32, dequantize_f32, "floats.f32", takes_importance=False
)
F16 = BlockFormat(
    "F16", 1, 1, F16_RECORD, quantize_f16, dequantize_f16, "floats.f16", takes_importance=False
)
BF16 = BlockFormat(
    "BF16",
    30,
    1,
    BF16_RECORD,
    quantize_bf16,
    dequantize_bf16,
    "floats.bf16",
    takes_importance=False,
)
