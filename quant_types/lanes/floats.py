"""F32, F16 and BF16 as kernels."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import as_floats, as_halfs, inner, take_floats
from quant_types.lanes.scalars import bits, half_bits, load

_TILE = 1024  # weights


@inner
def f32(floats, words, kind, out, memory):
    """float32 as it is."""
    tile, memory = take_floats(memory, _TILE)
    values = as_floats(out)
    for first in range(0, values.size, _TILE):
        count = min(_TILE, values.size - first)
        if not load(floats, words, kind, first, count, tile):
            return first
        for i in range(count):
            values[first + i] = tile[i]
    return -1


@inner
def f16(floats, words, kind, out, memory):
    """float32 rounded to float16."""
    tile, memory = take_floats(memory, _TILE)
    values = as_halfs(out)
    for first in range(0, values.size, _TILE):
        count = min(_TILE, values.size - first)
        if not load(floats, words, kind, first, count, tile):
            return first
        for i in range(count):
            values[first + i] = np.uint16(half_bits(tile[i]))
    return -1


@inner
def bf16(floats, words, kind, out, memory):
    """float32 rounded to bfloat16 (ggml `fp32_to_bf16`, for finite values)."""
    tile, memory = take_floats(memory, _TILE)
    values = as_halfs(out)
    for first in range(0, values.size, _TILE):
        count = min(_TILE, values.size - first)
        if not load(floats, words, kind, first, count, tile):
            return first
        for i in range(count):
            b = bits(tile[i])
            odd = np.int32(np.int32(b >> np.int32(16)) & np.int32(1))
            rounded = np.int32(np.int32(b + odd) + np.int32(0x7FFF))
            values[first + i] = np.uint16(rounded >> np.int32(16))
    return -1
