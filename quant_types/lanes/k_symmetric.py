"""Q3_K and Q6_K as kernels: sub-blocks of 16 with a scale."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import PLAIN, inner, kernel
from quant_types.lanes.scalars import ONE, ZERO, clamped, load, nearest_int, store_half
from quant_types.lanes.symmetric_search import (
    BEST_INVERSE,
    LANES,
    LENGTH,
    SCALE,
    SIZE,
    W,
    X,
    make_search,
)
from quant_types.search import GROUP_MAX_EPS

TILE = 16  # super-blocks
_EPS = np.float32(GROUP_MAX_EPS)
_128 = np.float32(-128.0)


@inner
def columns_16(tile, first, ws, at):
    """Sub-blocks of 16 from weight `first` of the tile into `[16, LANES]` at `at`."""
    for j in range(LANES):
        for i in range(LENGTH):
            ws[at + i * LANES + j] = tile[first + j * LENGTH + i]


@inner
def square_weights(ws):
    """W without importance: x squared."""
    for i in range(LENGTH * LANES):
        ws[W + i] = ws[X + i] * ws[X + i]


@inner
def keep(ws, first, found):
    """What the search found for the group's lanes, as rows of `found[2, sub_blocks]`."""
    for j in range(LANES):
        found[0, first + j] = ws[SCALE + j]
        found[1, first + j] = ws[BEST_INVERSE + j]


@inner
def quants(tile, first, d, inverse, top, q):
    """Second pass over one sub-block: quants + top under the stored scale, or those of the search.

    A sub-block of zeros (inverse 0) holds raw zeros, as ggml leaves them.
    """
    low, high = np.int32(-top), np.int32(top - 1)
    if d != ZERO:
        for i in range(LENGTH):
            q[i] = np.uint8(clamped(tile[first + i] / d, low, high) + top)
    elif inverse != ZERO:
        for i in range(LENGTH):
            q[i] = np.uint8(clamped(inverse * tile[first + i], low, high) + top)
    else:
        for i in range(LENGTH):
            q[i] = np.uint8(0)


_search_q6_k = make_search(32)


@inner
def _store_q6_k(tile, found, b, out, at, scales, q):
    """Super-block `b` of the tile, from byte `at`."""
    largest = ZERO
    for j in range(16):
        v = found[0, b * 16 + j]
        largest = v if abs(v) > abs(largest) else largest
    if abs(largest) < _EPS:
        for i in range(210):
            out[at + i] = np.uint8(0)
        return
    inverse = _128 / largest
    d = store_half(out, at + 208, ONE / inverse)
    for j in range(16):
        s = b * 16 + j
        scales[j] = np.int8(min(nearest_int(inverse * found[0, s]), np.int32(127)))
        out[at + 192 + j] = np.uint8(scales[j])
        quants(tile, s * 16, d * np.float32(scales[j]), found[1, s], 32, q[s % 16 * 16 :])
    for h in range(2):
        for j in range(32):
            q0 = q[h * 128 + j]
            q1 = q[h * 128 + j + 32]
            q2 = q[h * 128 + j + 64]
            q3 = q[h * 128 + j + 96]
            out[at + h * 64 + j] = (q0 & 15) | ((q2 & 15) << 4)
            out[at + h * 64 + j + 32] = (q1 & 15) | ((q3 & 15) << 4)
            high = (q0 >> 4) | (q1 >> 4 << 2) | (q2 >> 4 << 4) | (q3 >> 4 << 6)
            out[at + 128 + h * 32 + j] = np.uint8(high)


@kernel(PLAIN)
def q6_k(floats, words, kind, out):
    """Blocks of `quant_types.q6_k`."""
    tile = np.zeros(TILE * 256, np.float32)
    ws = np.empty(SIZE, np.float32)
    found = np.empty((2, TILE * 16), np.float32)
    scales = np.empty(16, np.int8)
    q = np.empty(256, np.uint8)
    blocks = out.size // 210
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile):
            return first
        for lane in range(0, count * 16, LANES):
            columns_16(tile, lane * 16, ws, X)
            square_weights(ws)
            _search_q6_k(ws)
            keep(ws, lane, found)
        for b in range(count):
            _store_q6_k(tile, found, b, out, (first + b) * 210, scales, q)
    return -1
