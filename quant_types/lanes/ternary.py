"""TQ1_0 and TQ2_0 as kernels."""

from __future__ import annotations

from typing import NamedTuple

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
from quant_types.lanes.groups import GROUPS, WEIGHTS, halves, magnitudes
from quant_types.lanes.scalars import ONE, ZERO, load

BLOCKS = WEIGHTS // 256  # in a tile
_GROUPS = GROUPS // BLOCKS  # in a block
_HALF = np.float32(0.5)
_INFINITE = np.float32(np.inf)
_bytes_54 = make_records(np.uint8, 54)
_halfs_27, _halfs_33 = make_records(np.uint16, 27), make_records(np.uint16, 33)


class Tile(NamedTuple):
    """What a kernel holds at once."""

    x: np.ndarray  # float32 [WEIGHTS]
    groups: np.ndarray  # float32 [GROUPS]: largest magnitude
    d: np.ndarray  # float32 [BLOCKS]: of the block
    d_bits: np.ndarray  # uint16 [BLOCKS]: as float16
    t: np.ndarray  # uint8 [WEIGHTS]: digits, 0 to 2


@inner
def new_tile(memory):
    """A tile's arrays."""
    x, memory = take_zeros(memory, WEIGHTS)
    groups, memory = take_floats(memory, GROUPS)
    d, memory = take_floats(memory, BLOCKS)
    d_bits, memory = take_halfs(memory, BLOCKS)
    t, memory = take_bytes(memory, WEIGHTS)
    return Tile(x, groups, d, d_bits, t)


@inner
def digits(tile):
    """Scales and digits of `quant_types.ternary.digits`."""
    magnitudes(tile.x, tile.groups)
    for b in range(BLOCKS):
        largest = ZERO
        for g in range(_GROUPS):
            v = tile.groups[b * _GROUPS + g]
            largest = v if v > largest else largest
        tile.d[b] = largest
        inverse = ONE / largest if largest != ZERO else ZERO
        inverse = inverse if inverse < _INFINITE else ZERO  # digits that are all 1, as on x86
        for i in range(256):
            v = tile.x[b * 256 + i] * inverse
            tile.t[b * 256 + i] = np.uint8(ONE + np.float32(v >= _HALF) - np.float32(v <= -_HALF))
    halves(tile.d, tile.d_bits)


@inner
def _fraction(t, at, stride, count):
    """`count` digits, the first at `at`, as a byte (`quant_types.tq1_0`)."""
    q = np.int32(0)
    for i in range(5):
        q = np.int32(q * 3 + (t[at + i * stride] if i < count else 0))
    return np.uint8((q * 256 + 242) // 243)


@inner
def tq1_0(floats, words, kind, out, memory):
    """Blocks of `quant_types.tq1_0`."""
    tile = new_tile(memory)
    records, halfs = _bytes_54(out), _halfs_27(out)
    for first in range(0, len(records), BLOCKS):
        count = min(BLOCKS, len(records) - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        digits(tile)
        for b in range(count):
            record = records[first + b]
            t = tile.t[b * 256 : b * 256 + 256]
            for j in range(32):
                record[j] = _fraction(t, j, 32, 5)
            for j in range(16):
                record[32 + j] = _fraction(t, 160 + j, 16, 5)
            for j in range(4):
                record[48 + j] = _fraction(t, 240 + j, 4, 4)
            halfs[first + b, 26] = tile.d_bits[b]
    return -1


@inner
def tq2_0(floats, words, kind, out, memory):
    """Blocks of `quant_types.tq2_0`."""
    tile = new_tile(memory)
    t = as_longs(tile.t)
    records = _halfs_33(out)
    for first in range(0, len(records), BLOCKS):
        count = min(BLOCKS, len(records) - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        digits(tile)
        for b in range(count):
            record = records[first + b]
            for h in range(2):
                for j in range(4):
                    at = b * 32 + h * 16 + j
                    low = t[at] | (t[at + 4] << np.uint64(2))
                    high = t[at + 8] | (t[at + 12] << np.uint64(2))
                    both = low | (high << np.uint64(4))
                    for i in range(4):
                        record[h * 16 + j * 4 + i] = np.uint16(both >> np.uint64(16 * i))
            record[32] = tile.d_bits[b]
    return -1
