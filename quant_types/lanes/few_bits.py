"""Q1_0, Q2_0 and NVFP4 as kernels."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import (
    as_longs,
    inner,
    make_records,
    take_bytes,
    take_floats,
    take_halfs,
    take_ints,
    take_zeros,
)
from quant_types.lanes.groups import GROUPS, WEIGHTS, halves, magnitudes
from quant_types.lanes.scalars import ONE, ZERO, bits, load
from quant_types.mxfp4 import VALUES

_HALF = np.float32(0.5)
_INFINITE = np.float32(np.inf)
_ONES = np.uint64(0x0101010101010101)
_GATHER = np.uint64(0x0102040810204080)
_128 = np.float32(128.0)
_SIX = np.float32(6.0)
_LARGEST = np.float32(448.0)
_NORMAL = np.float32(2.0**-6)
_512 = np.float32(512.0)
_TEN_BITS_LESS = np.float32(2.0**-10)
_VALUES = tuple(np.float32(value) for value in VALUES[1:])
_halfs_9 = make_records(np.uint16, 9)
_bytes_36 = make_records(np.uint8, 36)


@inner
def q1_0(floats, words, kind, out, memory):
    """Blocks of `quant_types.q1_0`."""
    blocks = WEIGHTS // 128
    tile, memory = take_zeros(memory, WEIGHTS)
    d, memory = take_floats(memory, blocks)
    d_bits, memory = take_halfs(memory, blocks)
    q, memory = take_bytes(memory, WEIGHTS)
    longs = as_longs(q)
    records = _halfs_9(out)
    for first in range(0, len(records), blocks):
        count = min(blocks, len(records) - first)
        if not load(floats, words, kind, first * 128, count * 128, tile):
            return first
        for b in range(blocks):
            d[b] = ZERO
        for i in range(0, 128, 8):
            for b in range(blocks):
                total = d[b]
                for j in range(8):
                    total += abs(tile[b * 128 + i + j])
                d[b] = total
        for b in range(blocks):
            d[b] = d[b] / _128
        halves(d, d_bits)
        for i in range(WEIGHTS):
            q[i] = np.uint8(tile[i] >= ZERO)
        for b in range(count):
            record = records[first + b]
            record[0] = d_bits[b]
            for j in range(8):
                low = ((longs[16 * b + 2 * j] & _ONES) * _GATHER) >> np.uint64(56)
                high = ((longs[16 * b + 2 * j + 1] & _ONES) * _GATHER) >> np.uint64(56)
                record[1 + j] = np.uint16(low | (high << np.uint64(8)))
    return -1


@inner
def _crumbs(eight):
    """Eight bytes of 2 bits, the first in the lowest, as uint16."""
    v = (eight | (eight >> np.uint64(6))) & np.uint64(0x000F000F000F000F)
    v = (v | (v >> np.uint64(12))) & np.uint64(0x000000FF000000FF)
    return np.uint16(v | (v >> np.uint64(24)))


@inner
def q2_0(floats, words, kind, out, memory):
    """Blocks of `quant_types.q2_0`."""
    blocks = WEIGHTS // 64
    tile, memory = take_zeros(memory, WEIGHTS)
    groups, memory = take_floats(memory, GROUPS)
    d, memory = take_floats(memory, blocks)
    d_bits, memory = take_halfs(memory, blocks)
    q, memory = take_bytes(memory, WEIGHTS)
    longs = as_longs(q)
    records = _halfs_9(out)
    for first in range(0, len(records), blocks):
        count = min(blocks, len(records) - first)
        if not load(floats, words, kind, first * 64, count * 64, tile):
            return first
        magnitudes(tile, groups)
        for b in range(blocks):
            largest = ZERO
            for g in range(8):
                v = groups[8 * b + g]
                largest = v if v > largest else largest
            d[b] = largest
            inverse = ONE / largest if largest > ZERO else ZERO
            middle = ONE if inverse < _INFINITE else ZERO  # of an infinite one all digits are 0
            inverse = inverse if inverse < _INFINITE else ZERO
            for i in range(64):
                v = tile[b * 64 + i] * inverse
                digit = middle + np.float32(v >= _HALF) - np.float32(v <= -_HALF)
                q[b * 64 + i] = np.uint8(digit)
        halves(d, d_bits)
        for b in range(count):
            record = records[first + b]
            record[0] = d_bits[b]
            for j in range(8):
                record[1 + j] = _crumbs(longs[8 * b + j])
    return -1


@inner
def _nearest_scale(v):
    """`quant_types.nvfp4`'s code of a scale, int32."""
    v = v if v < _LARGEST else _LARGEST
    subnormal = np.int32(v * _512 + _HALF)
    subnormal = subnormal if subnormal < 7 else np.int32(7)
    normal = np.int32((np.int32(bits(v) + np.int32(1 << 19)) >> np.int32(20)) - np.int32(960))
    normal = normal if normal < np.int32(120) else np.int32(0x7E)
    return subnormal if v < _NORMAL else normal


@inner
def _scale(e):
    """The float32 that a scale's code stands for, halved."""
    mantissa = np.float32(e & np.int32(7))
    normal = np.int32(np.int32(e + np.int32(119 << 3)) << np.int32(20)).view(np.float32)
    return mantissa * _TEN_BITS_LESS if e < np.int32(8) else normal


@inner
def nvfp4(floats, words, kind, out, memory):
    """Blocks of `quant_types.nvfp4`."""
    blocks = WEIGHTS // 64
    tile, memory = take_zeros(memory, WEIGHTS)
    groups, memory = take_floats(memory, GROUPS)
    e, memory = take_ints(memory, WEIGHTS // 16)
    q, memory = take_bytes(memory, WEIGHTS)
    longs = as_longs(q)
    records = _bytes_36(out)
    for first in range(0, len(records), blocks):
        count = min(blocks, len(records) - first)
        if not load(floats, words, kind, first * 64, count * 64, tile):
            return first
        magnitudes(tile, groups)
        for s in range(WEIGHTS // 16):
            low, high = groups[2 * s], groups[2 * s + 1]
            code = _nearest_scale((high if high > low else low) / _SIX)
            e[s] = code
            groups[2 * s] = _scale(code)
            groups[2 * s + 1] = groups[2 * s]
        for g in range(GROUPS):
            d = groups[g]
            for i in range(8):
                x = tile[8 * g + i]
                a = abs(x)
                least, level = a, ZERO
                for k in range(7):
                    error = abs(_VALUES[k] * d - a)
                    closer = error < least
                    level = np.float32(k + 1) if closer else level
                    least = error if closer else least
                sign = np.int32(8) if x < ZERO else np.int32(0)
                sign = sign if level > ZERO else np.int32(0)
                q[8 * g + i] = np.uint8(np.int32(level) | sign)
        for b in range(count):
            record = records[first + b]
            for s in range(4):
                record[s] = np.uint8(e[4 * b + s])
                both = longs[8 * b + 2 * s] | (longs[8 * b + 2 * s + 1] << np.uint64(4))
                for i in range(8):
                    record[4 + 8 * s + i] = np.uint8(both >> np.uint64(8 * i))
    return -1
