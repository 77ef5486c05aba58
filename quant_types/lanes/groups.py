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
