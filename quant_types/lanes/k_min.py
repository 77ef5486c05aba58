"""Q2_K, Q4_K and Q5_K as kernels: sub-blocks with a scale and a minimum."""

from __future__ import annotations

import numpy as np

from quant_types import q4_k as q4_k_format
from quant_types.lanes.compile import PLAIN, inner, kernel
from quant_types.lanes.min_search import (
    BEST_INVERSE,
    BEST_LOW,
    ERROR,
    LANES,
    LOW,
    SCALE,
    SIZE,
    W,
    X,
    make_search,
)
from quant_types.lanes.scalars import ZERO, clamped, load, nearest_int, store_half

TILE = 16  # super-blocks
_32 = np.float32(32.0)
_63 = np.float32(63.0)


@inner
def columns_32(tile, first, ws):
    """Sub-blocks of 32 from weight `first` of the tile into X: `[32, LANES]`."""
    for j in range(LANES):
        for i in range(32):
            ws[X + i * LANES + j] = tile[first + j * 32 + i]


@inner
def mean_weights(ws):
    """W without importance: the sub-block's root mean square plus the magnitude."""
    for j in range(LANES):
        ws[ERROR + j] = ZERO
    for r in range(4):
        for j in range(LANES):
            total = ws[ERROR + j]
            for i in range(8):
                x = ws[X + (r * 8 + i) * LANES + j]
                total += x * x
            ws[ERROR + j] = total
    for j in range(LANES):
        ws[ERROR + j] = np.sqrt(ws[ERROR + j] / _32)
    for i in range(32):
        for j in range(LANES):
            ws[W + i * LANES + j] = ws[ERROR + j] + abs(ws[X + i * LANES + j])


@inner
def keep(ws, first, count, found):
    """What the search found for the group's lanes, as rows of `found[4, sub_blocks]`."""
    for j in range(count):
        found[0, first + j] = ws[SCALE + j]
        found[1, first + j] = -ws[LOW + j]
        found[2, first + j] = ws[BEST_INVERSE + j]
        found[3, first + j] = ws[BEST_LOW + j]


@inner
def largest_as_63(values, at, codes):
    """Eight values from `at` in units that make the largest 63; return that unit."""
    largest = ZERO
    for j in range(8):
        v = values[at + j]
        largest = v if v > largest else largest
    inverse = _63 / largest if largest > ZERO else ZERO
    for j in range(8):
        code = np.uint8(nearest_int(inverse * values[at + j]))
        codes[j] = min(code, np.uint8(63))
    return largest / _63


@inner
def store_scales(out, at, ls, lm):
    """Twelve bytes of 6-bit scales and minimums (`quant_types.k_quants.pack_scales`)."""
    for j in range(4):
        out[at + j] = ls[j] | (ls[j + 4] >> 4 << 6)
        out[at + 4 + j] = lm[j] | (lm[j + 4] >> 4 << 6)
        out[at + 8 + j] = (ls[j + 4] & 15) | ((lm[j + 4] & 15) << 4)


@inner
def load_scales(out, at, ls, lm):
    """The scales and minimums that those bytes stand for (ggml `get_scale_min_k4`)."""
    for j in range(4):
        ls[j] = out[at + j] & 63
        lm[j] = out[at + 4 + j] & 63
        ls[j + 4] = (out[at + 8 + j] & 15) | (out[at + j] >> 6 << 4)
        lm[j + 4] = (out[at + 8 + j] >> 4) | (out[at + 4 + j] >> 6 << 4)


def make_quants(length: int, top: int):  # type: ignore[no-untyped-def]
    """Second pass over one sub-block: quants under the stored scale, else those of the search."""
    low, high = np.int32(0), np.int32(top)

    @inner
    def quants(tile, first, d, dm, inverse, bottom, q):
        if d != ZERO:
            for i in range(length):
                q[i] = np.uint8(clamped((tile[first + i] + dm) / d, low, high))
        else:
            for i in range(length):
                q[i] = np.uint8(clamped(inverse * (tile[first + i] - bottom), low, high))

    return quants


_search_q4_k = make_search(32, q4_k_format.STEPS, False)
_quants_32_15 = make_quants(32, 15)


@inner
def _store_q4_k(tile, found, b, d, dmin, ls, lm, out, at, q):
    """Super-block `b` of the tile, from byte `at`."""
    d = store_half(out, at, d)
    dmin = store_half(out, at + 2, dmin)
    store_scales(out, at + 4, ls, lm)
    load_scales(out, at + 4, ls, lm)
    for j in range(8):
        s = b * 8 + j
        _quants_32_15(
            tile,
            s * 32,
            d * np.float32(ls[j]),
            dmin * np.float32(lm[j]),
            found[2, s],
            found[3, s],
            q[j],
        )
    for j in range(4):
        for i in range(32):
            out[at + 16 + j * 32 + i] = q[2 * j, i] | (q[2 * j + 1, i] << 4)


@kernel(PLAIN)
def q4_k(floats, words, kind, out):
    """Blocks of `quant_types.q4_k`."""
    tile = np.zeros(TILE * 256, np.float32)
    ws = np.empty(SIZE, np.float32)
    found = np.empty((4, TILE * 8), np.float32)
    ls = np.empty(8, np.uint8)
    lm = np.empty(8, np.uint8)
    q = np.empty((8, 32), np.uint8)
    blocks = out.size // 144
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile):
            return first
        for lane in range(0, count * 8, LANES):
            columns_32(tile, lane * 32, ws)
            mean_weights(ws)
            _search_q4_k(ws)
            keep(ws, lane, LANES, found)
        for b in range(count):
            d = largest_as_63(found[0], b * 8, ls)
            dmin = largest_as_63(found[1], b * 8, lm)
            _store_q4_k(tile, found, b, d, dmin, ls, lm, out, (first + b) * 144, q)
    return -1
