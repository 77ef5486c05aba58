"""Tiles of 2048 weights whose blocks are reduced and rounded in groups of eight.

A loop over the groups of a tile, with the eight weights of a group written out, is one that LLVM
turns into SIMD: a group a lane. The order within a block stays that of ggml's loop.
"""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import inner
from quant_types.lanes.scalars import ZERO, half_bits

WEIGHTS = 2048  # in a tile
GROUPS = WEIGHTS // 8
_INT8 = np.float32(128.0)
_LOW_BITS = np.uint64(0x0F0F0F0F0F0F0F0F)
_ONES = np.uint64(0x0101010101010101)
_GATHER = np.uint64(0x0102040810204080)
_4 = np.uint64(4)
_56 = np.uint64(56)


@inner
def magnitudes(tile, groups):
    """The largest magnitude of each group."""
    for g in range(GROUPS):
        largest = ZERO
        for i in range(8):
            a = abs(tile[8 * g + i])
            largest = a if a > largest else largest
        groups[g] = largest


@inner
def extremes(tile, groups):
    """The first weight of greatest magnitude of each group, 0 where all are zero."""
    for g in range(GROUPS):
        extreme = ZERO
        for i in range(8):
            x = tile[8 * g + i]
            extreme = x if abs(x) > abs(extreme) else extreme
        groups[g] = extreme


@inner
def ranges(tile, low, high):
    """The smallest and the largest weight of each group, the first of equals."""
    for g in range(GROUPS):
        least = tile[8 * g]
        most = least
        for i in range(1, 8):
            x = tile[8 * g + i]
            least = x if x < least else least
            most = x if x > most else most
        low[g] = least
        high[g] = most


@inner
def to_int8(v):
    """A C cast of float32 to int8, as int32; what does not fit or is NaN gives 0, as on x86."""
    return np.int32(v if abs(v) < _INT8 else ZERO)


@inner
def halves(values, bits):
    """float32 -> bits of the nearest float16, uint16."""
    for i in range(values.size):
        bits[i] = np.uint16(half_bits(values[i]))


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
