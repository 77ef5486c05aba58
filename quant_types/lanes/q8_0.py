"""Q8_0 as a kernel."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import PLAIN, inner, kernel
from quant_types.lanes.groups import GROUPS, WEIGHTS, halves, magnitudes, to_int8
from quant_types.lanes.scalars import ONE, ZERO, load

BLOCKS = WEIGHTS // 32  # in a tile
_TOP = np.float32(127.0)
_BELOW_HALF = np.float32(0.49999997)  # the float32 before 0.5


@inner
def _round_away(v):
    """C's `roundf` of float32, then a cast to int8."""
    return to_int8(v + np.copysign(_BELOW_HALF, v))


@kernel(PLAIN)
def q8_0(floats, words, kind, out):
    """Blocks of `quant_types.q8_0`."""
    tile = np.zeros(WEIGHTS, np.float32)
    groups = np.empty(GROUPS, np.float32)
    d = np.empty(BLOCKS, np.float32)
    d_bits = np.empty(BLOCKS, np.uint16)
    q = np.empty(WEIGHTS, np.uint8)
    pairs = q.view(np.uint16)
    records = out.view(np.uint16).reshape(-1, 17)
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
            for i in range(16):
                record[1 + i] = pairs[16 * b + i]
    return -1
