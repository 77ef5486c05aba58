"""Q8_0 as a kernel: block after block, each weight touched once."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import PLAIN, inner, kernel
from quant_types.lanes.scalars import ONE, ZERO, load, store_half

_TILE = 32  # blocks
_TOP = np.float32(127.0)
_HALF = np.float32(0.5)


@inner
def _round_away(v):
    """C's `roundf` to int8: half away from zero; what is not finite gives 0."""
    whole = np.trunc(v)
    rest = abs(np.float32(v - whole))
    whole = whole + (np.copysign(ONE, v) if rest >= _HALF else ZERO)
    whole = whole if abs(whole) < np.float32(128.0) else ZERO
    return np.int8(np.int32(whole))


@kernel(PLAIN)
def q8_0(floats, words, kind, out):
    """Blocks of `quant_types.q8_0`."""
    tile = np.empty(_TILE * 32, np.float32)
    blocks = out.size // 34
    for first in range(0, blocks, _TILE):
        count = min(_TILE, blocks - first)
        if not load(floats, words, kind, first * 32, count * 32, tile):
            return first
        for b in range(count):
            largest = ZERO
            for i in range(32):
                a = abs(tile[b * 32 + i])
                largest = a if a > largest else largest
            d = largest / _TOP
            inverse = ONE / d if d != ZERO else ZERO
            at = (first + b) * 34
            store_half(out, at, d)
            for i in range(32):
                out[at + 2 + i] = np.uint8(_round_away(tile[b * 32 + i] * inverse))
    return -1
