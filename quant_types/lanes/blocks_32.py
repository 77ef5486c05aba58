"""Q4_0, Q4_1, Q5_0 and Q5_1 as kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.lanes.compile import PLAIN, inner, kernel
from quant_types.lanes.groups import GROUPS, WEIGHTS, extremes, halves, ranges, to_int8
from quant_types.lanes.scalars import ONE, ZERO, load

BLOCKS = WEIGHTS // 32  # in a tile
_HALF = np.float32(0.5)
_LOW_BITS = np.uint64(0x0F0F0F0F0F0F0F0F)
_ONES = np.uint64(0x0101010101010101)
_GATHER = np.uint64(0x0102040810204080)
_4 = np.uint64(4)
_56 = np.uint64(56)


class Tile(NamedTuple):
    """What a kernel holds at once."""

    x: np.ndarray  # float32 [WEIGHTS]
    low: np.ndarray  # float32 [GROUPS]: of a group
    high: np.ndarray
    d: np.ndarray  # float32 [BLOCKS]: the block's scale
    m: np.ndarray  # float32 [BLOCKS]: its minimum
    inverse: np.ndarray  # float32 [GROUPS]: of the scale of the group's block
    d_bits: np.ndarray  # uint16 [BLOCKS]: d and m as float16
    m_bits: np.ndarray
    q: np.ndarray  # uint8 [WEIGHTS]


@inner
def new_tile():
    return Tile(
        np.zeros(WEIGHTS, np.float32),
        np.empty(GROUPS, np.float32),
        np.empty(GROUPS, np.float32),
        np.empty(BLOCKS, np.float32),
        np.empty(BLOCKS, np.float32),
        np.empty(GROUPS, np.float32),
        np.empty(BLOCKS, np.uint16),
        np.empty(BLOCKS, np.uint16),
        np.empty(WEIGHTS, np.uint8),
    )


@inner
def symmetric(tile, half):
    """Quants of `quant_types.blocks_32.symmetric`."""
    extremes(tile.x, tile.low)
    for b in range(BLOCKS):
        extreme = tile.low[4 * b]
        for g in range(1, 4):
            v = tile.low[4 * b + g]
            extreme = v if abs(v) > abs(extreme) else extreme
        d = extreme / -half
        tile.d[b] = d
        inverse = ONE / d if d != ZERO else ZERO
        for g in range(4):
            tile.inverse[4 * b + g] = inverse
    halves(tile.d, tile.d_bits)
    add = half + _HALF
    top = np.int32(half + half - ONE)
    for g in range(GROUPS):
        inverse = tile.inverse[g]
        for i in range(8):
            q = to_int8(tile.x[8 * g + i] * inverse + add)
            tile.q[8 * g + i] = np.uint8(q if q < top else top)


@inner
def with_minimum(tile, top):
    """Quants of `quant_types.blocks_32.with_minimum`."""
    ranges(tile.x, tile.low, tile.high)
    for b in range(BLOCKS):
        low = tile.low[4 * b]
        high = tile.high[4 * b]
        for g in range(1, 4):
            v = tile.low[4 * b + g]
            low = v if v < low else low
            v = tile.high[4 * b + g]
            high = v if v > high else high
        d = (high - low) / top
        tile.d[b] = d
        tile.m[b] = low
        inverse = ONE / d if d != ZERO else ZERO
        for g in range(4):
            tile.inverse[4 * b + g] = inverse
            tile.low[4 * b + g] = low
    halves(tile.d, tile.d_bits)
    halves(tile.m, tile.m_bits)
    top = np.int32(top)
    for g in range(GROUPS):
        inverse = tile.inverse[g]
        low = tile.low[g]
        for i in range(8):
            q = to_int8((tile.x[8 * g + i] - low) * inverse + _HALF)
            tile.q[8 * g + i] = np.uint8(q if q < top else top)


@inner
def pack_nibbles(q, b, out):
    """Block b of quants, uint64 [4 * BLOCKS], into uint16 [8] (`blocks_32.pack_nibbles`)."""
    for h in range(2):
        low = q[4 * b + h] & _LOW_BITS
        both = low | ((q[4 * b + h + 2] & _LOW_BITS) << _4)
        for i in range(4):
            out[4 * h + i] = np.uint16(both >> np.uint64(16 * i))


@inner
def pack_fifth(q, b, out):
    """Bit 4 of block b of quants, uint64 [4 * BLOCKS], into uint16 [2] (`blocks_32.pack_fifth`)."""
    for h in range(2):
        low = ((q[4 * b + 2 * h] >> _4 & _ONES) * _GATHER) >> _56
        high = ((q[4 * b + 2 * h + 1] >> _4 & _ONES) * _GATHER) >> _56
        out[h] = np.uint16(low | (high << np.uint64(8)))


@kernel(PLAIN)
def q4_0(floats, words, kind, out):
    """Blocks of `quant_types.q4_0`."""
    tile = new_tile()
    q = tile.q.view(np.uint64)
    records = out.view(np.uint16).reshape(-1, 9)
    for first in range(0, len(records), BLOCKS):
        count = min(BLOCKS, len(records) - first)
        if not load(floats, words, kind, first * 32, count * 32, tile.x):
            return first
        symmetric(tile, np.float32(8.0))
        for b in range(count):
            record = records[first + b]
            record[0] = tile.d_bits[b]
            pack_nibbles(q, b, record[1:])
    return -1


@kernel(PLAIN)
def q4_1(floats, words, kind, out):
    """Blocks of `quant_types.q4_1`."""
    tile = new_tile()
    q = tile.q.view(np.uint64)
    records = out.view(np.uint16).reshape(-1, 10)
    for first in range(0, len(records), BLOCKS):
        count = min(BLOCKS, len(records) - first)
        if not load(floats, words, kind, first * 32, count * 32, tile.x):
            return first
        with_minimum(tile, np.float32(15.0))
        for b in range(count):
            record = records[first + b]
            record[0] = tile.d_bits[b]
            record[1] = tile.m_bits[b]
            pack_nibbles(q, b, record[2:])
    return -1


@kernel(PLAIN)
def q5_0(floats, words, kind, out):
    """Blocks of `quant_types.q5_0`."""
    tile = new_tile()
    q = tile.q.view(np.uint64)
    records = out.view(np.uint16).reshape(-1, 11)
    for first in range(0, len(records), BLOCKS):
        count = min(BLOCKS, len(records) - first)
        if not load(floats, words, kind, first * 32, count * 32, tile.x):
            return first
        symmetric(tile, np.float32(16.0))
        for b in range(count):
            record = records[first + b]
            record[0] = tile.d_bits[b]
            pack_fifth(q, b, record[1:])
            pack_nibbles(q, b, record[3:])
    return -1


@kernel(PLAIN)
def q5_1(floats, words, kind, out):
    """Blocks of `quant_types.q5_1`."""
    tile = new_tile()
    q = tile.q.view(np.uint64)
    records = out.view(np.uint16).reshape(-1, 12)
    for first in range(0, len(records), BLOCKS):
        count = min(BLOCKS, len(records) - first)
        if not load(floats, words, kind, first * 32, count * 32, tile.x):
            return first
        with_minimum(tile, np.float32(31.0))
        for b in range(count):
            record = records[first + b]
            record[0] = tile.d_bits[b]
            record[1] = tile.m_bits[b]
            pack_fifth(q, b, record[2:])
            pack_nibbles(q, b, record[4:])
    return -1
