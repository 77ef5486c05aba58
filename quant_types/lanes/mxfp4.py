"""MXFP4 as a kernel."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import (
    as_longs,
    inner,
    make_records,
    take_bytes,
    take_floats,
    take_zeros,
)
from quant_types.lanes.groups import GROUPS, WEIGHTS, magnitudes
from quant_types.lanes.scalars import ZERO, from_bits, load
from quant_types.mxfp4 import BORDERS, VALUES

BLOCKS = WEIGHTS // 32  # in a tile
_INFINITE = np.float32(np.inf)
_bytes_17 = make_records(np.uint8, 17)
_BORDERS = tuple(np.float32(border) for border in BORDERS)
_VALUES = tuple(np.float32(value) for value in VALUES[1:])


@inner
def _exponent(largest):
    """The scale's byte for a block's greatest magnitude, int32 (`quant_types.mxfp4.quantize`)."""
    if largest == ZERO:
        return np.int32(0)
    log2 = np.float32(np.log2(np.float64(largest)))
    return np.int32((np.int32(np.floor(log2)) + 125) & 255)


@inner
def _scale(e):
    """The float32 `2 ** (e - 128)`."""
    return from_bits(np.int32(0x200000 << e) if e < 2 else np.int32((e - 1) << 23))


@inner
def _border(k, d):
    """Where value k + 1 begins under scale d; never, if it is past float32's range."""
    return _BORDERS[k] * d if _VALUES[k] * d < _INFINITE else _INFINITE


@inner
def mxfp4(floats, words, kind, out, memory):
    """Blocks of `quant_types.mxfp4`."""
    tile, memory = take_zeros(memory, WEIGHTS)
    groups, memory = take_floats(memory, GROUPS)
    e, memory = take_bytes(memory, BLOCKS)
    q, memory = take_bytes(memory, WEIGHTS)
    q64 = as_longs(q)
    records = _bytes_17(out)
    for first in range(0, len(records), BLOCKS):
        count = min(BLOCKS, len(records) - first)
        if not load(floats, words, kind, first * 32, count * 32, tile):
            return first
        magnitudes(tile, groups)
        for b in range(BLOCKS):
            largest = groups[4 * b]
            for g in range(1, 4):
                v = groups[4 * b + g]
                largest = v if v > largest else largest
            exponent = _exponent(largest)
            e[b] = np.uint8(exponent)
            for g in range(4):
                groups[4 * b + g] = _scale(exponent)
        for g in range(GROUPS):
            d = groups[g]
            b1, b2, b3, b4 = _border(0, d), _border(1, d), _border(2, d), _border(3, d)
            b5, b6, b7 = _border(4, d), _border(5, d), _border(6, d)
            for i in range(8):
                x = tile[8 * g + i]
                a = abs(x)
                level = np.int32(a > b1) + np.int32(a > b2) + np.int32(a > b3) + np.int32(a > b4)
                level = level + np.int32(a > b5) + np.int32(a > b6) + np.int32(a > b7)
                sign = np.int32(8) if x < -b1 else np.int32(0)
                q[8 * g + i] = np.uint8(level | sign)
        for b in range(count):
            record = records[first + b]
            record[0] = e[b]
            for h in range(2):
                both = q64[4 * b + h] | (q64[4 * b + h + 2] << np.uint64(4))
                for i in range(8):
                    record[1 + 8 * h + i] = np.uint8(both >> np.uint64(8 * i))
    return -1
