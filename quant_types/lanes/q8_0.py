"""Q8_0 as a kernel."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import (
    as_longs,
    inner,
    make_records,
    take_bytes,
    take_floats,
    take_halfs,
    take_zeros,
)
from quant_types.lanes.groups import GROUPS, WEIGHTS, halves, magnitudes, to_int8
from quant_types.lanes.scalars import ONE, ZERO, load

BLOCKS = WEIGHTS // 32  # in a tile
_halfs_17 = make_records(np.uint16, 17)
_TOP = np.float32(127.0)
_BELOW_HALF = np.float32(0.49999997)  # the float32 before 0.5


@inner
def _round_away(v):
    """C's `roundf` of float32, then a cast to int8."""
    return to_int8(v + np.copysign(_BELOW_HALF, v))


@inner
def q8_0(floats, words, kind, out, memory):
    """Blocks of `quant_types.q8_0`."""
    tile, memory = take_zeros(memory, WEIGHTS)
    groups, memory = take_floats(memory, GROUPS)
    d, memory = take_floats(memory, BLOCKS)
    d_bits, memory = take_halfs(memory, BLOCKS)
    q, memory = take_bytes(memory, WEIGHTS)
    longs = as_longs(q)
    records = _halfs_17(out)
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
            d[b] = largest / _TOP
            inverse = ONE / d[b] if d[b] != ZERO else ZERO
            for g in range(4):
                groups[4 * b + g] = inverse
        halves(d, d_bits)
        for g in range(GROUPS):
            inverse = groups[g]
            for i in range(8):
                q[8 * g + i] = np.uint8(_round_away(tile[8 * g + i] * inverse))
        for b in range(count):
            record = records[first + b]
            record[0] = d_bits[b]
            for h in range(4):
                four = longs[4 * b + h]
                for i in range(4):
                    record[1 + 4 * h + i] = np.uint16(four >> np.uint64(16 * i))
    return -1
