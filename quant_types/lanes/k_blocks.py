"""What the kernels of K-quants share, a tile of super-blocks at a time.

Sub-blocks are searched in groups of `LANES`; the scales that they give are then worked on with one
super-block a lane: `[sub_blocks, TILE]` arrays, flat.
"""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import either, fill, inner
from quant_types.lanes.scalars import ZERO, clamped, from_half, half_bits

TILE = 16  # super-blocks
LANES = 64  # sub-blocks in a group
_256 = np.float32(256.0)


@inner
def load_importance(table, rows, first, count, tile):
    """Importance of super-blocks `first` to `first + count` into the flat tile."""
    per_row = table.shape[1] // 256
    for b in range(count):
        block = first + b
        part = table[rows[block // per_row]]
        at = block % per_row * 256
        source = part[at : at + 256]
        for i in range(256):
            tile[b * 256 + i] = source[i]


@inner
def mean_squares(tile, factor, sigma2):
    """`factor * sum(x * x) / 256` of each super-block, its weights added in order."""
    for b in range(TILE):
        sigma2[b] = ZERO
    for i in range(256):
        for b in range(TILE):
            x = tile[b * 256 + i]
            sigma2[b] += x * x
    for b in range(TILE):
        sigma2[b] = factor * sigma2[b] / _256


@inner
def halve(units, bits, values):
    """float32 units of the super-blocks -> float16 bits (int32), and the float32 they stand for."""
    for b in range(TILE):
        h = half_bits(units[b])
        bits[b] = h
        values[b] = from_half(h)


@inner
def put_half(block, at, bits):
    """Write float16 bits at byte `at`."""
    block[at] = np.uint8(bits & 255)
    block[at + 1] = np.uint8(bits >> 8)


def make_quants(length: int, low: int, high: int):
    """Second pass: `quants(x, count, d, dm, q, scratch)`, under the stored scales, less `low`.

    Where a scale came out as zero, `q` stays as it is. d, dm: `[sub_blocks, TILE]`.
    """
    sub_blocks = 256 // length
    low_int, high_int, shift = np.int32(low), np.int32(high), np.int32(-low)

    @inner
    def quants(x, count, d, dm, q, scratch):
        scales, minimums = scratch[:256], scratch[256:512]
        for b in range(count):
            for j in range(sub_blocks):
                fill(scales, j * length, d[j * TILE + b], length)
                fill(minimums, j * length, dm[j * TILE + b], length)
            for k in range(256):
                at = b * 256 + k
                v = (x[at] + minimums[k]) / scales[k]
                code = np.int32(clamped(v, low_int, high_int) + shift)
                q[at] = np.uint8(either(scales[k] != ZERO, code, np.int32(q[at])))

    return quants


def make_leftovers(length: int, low: int, high: int):
    """`leftovers(x, count, d, inverse, bottom, q, clamps_first)`: the search's quants.

    They stay where a scale came out as zero, and are zeros where the search found nothing
    (inverse 0), as ggml leaves them.
    """
    sub_blocks = 256 // length
    low_int, high_int, shift = np.int32(low), np.int32(high), np.int32(-low)
    high_float = np.float32(high)

    @inner
    def leftovers(x, count, d, inverse, bottom, q, clamps_first):
        for b in range(count):
            for j in range(sub_blocks):
                s = j * TILE + b
                if d[s] == ZERO:
                    base = shift if inverse[s] != ZERO else np.int32(0)
                    at = b * 256 + j * length
                    for i in range(length):
                        v = inverse[s] * (x[at + i] - bottom[s])
                        if clamps_first:
                            v = v if v > ZERO else ZERO
                            v = v if v < high_float else high_float
                        q[at + i] = np.uint8(clamped(v, low_int, high_int) + base)

    return leftovers


@inner
def pack_crumbs(q, qs):
    """2-bit quants of a super-block into 64 bytes (`quant_types.k_quants.pack_crumbs`)."""
    for h in range(2):
        for i in range(32):
            k = h * 128 + i
            low = (q[k] & 3) | ((q[k + 32] & 3) << 2)
            qs[h * 32 + i] = low | ((q[k + 64] & 3) << 4) | ((q[k + 96] & 3) << 6)
