"""Q4_0, Q4_1, Q5_0 and Q5_1 as kernels: block after block, each weight read once."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import PLAIN, inner, kernel
from quant_types.lanes.scalars import ONE, ZERO, bits, from_bits, load, store_half

TILE = 32  # blocks
_INFINITE = np.float32(np.inf)
_HALF = np.float32(0.5)


@inner
def _ordered(v):
    """float32 -> int32 in the same order, which LLVM can reduce in SIMD; its own inverse on bits."""
    b = bits(v)
    return np.int32(b ^ np.int32(np.int32(b >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inner
def _unordered(k):
    return from_bits(np.int32(k ^ np.int32(np.int32(k >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@inner
def _range(tile, at):
    """Smallest and largest of 32 weights; among equal zeros a negative one is the smaller."""
    low = _ordered(tile[at])
    high = low
    for i in range(32):
        k = _ordered(tile[at + i])
        low = k if k < low else low
        high = k if k > high else high
    return _unordered(low), _unordered(high)


@inner
def _first(tile, at, magnitude):
    """The first of 32 weights of that magnitude."""
    for i in range(32):
        if abs(tile[at + i]) == magnitude:
            return tile[at + i]
    return magnitude


@inner
def _store_nibbles(tile, at, shift, inverse, add, top, out, to):
    for j in range(16):
        low = min(np.int32((tile[at + j] - shift) * inverse + add), top)
        high = min(np.int32((tile[at + 16 + j] - shift) * inverse + add), top)
        out[to + j] = np.uint8(low | (high << 4))


_M8 = np.float32(-8.0)
_8_5 = np.float32(8.5)
_15 = np.int32(15)


@kernel(PLAIN)
def q4_0(floats, words, kind, out):
    """Blocks of `quant_types.q4_0`."""
    tile = np.empty(TILE * 32, np.float32)
    blocks = out.size // 18
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 32, count * 32, tile):
            return first
        for b in range(count):
            low, high = _range(tile, b * 32)
            extreme = high if high > -low else low
            if high == -low:
                extreme = _first(tile, b * 32, high)
            at = (first + b) * 18
            d = extreme / _M8
            store_half(out, at, d)
            inverse = ONE / d if d != ZERO else ZERO
            if abs(inverse) < _INFINITE:
                _store_nibbles(tile, b * 32, ZERO, inverse, _8_5, _15, out, at + 2)
            else:
                for j in range(16):
                    out[at + 2 + j] = np.uint8(0)
    return -1
