"""IQ4_NL and IQ4_XS as kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.lanes.compile import (
    as_longs,
    behind,
    inner,
    make_records,
    peek,
    take_bytes,
    take_floats,
    take_halfs,
    take_ints,
    take_zeros,
)
from quant_types.lanes.groups import WEIGHTS, halves, pack_nibbles
from quant_types.lanes.iq4_search import BEST, SIDE, SIZE, W, X, search
from quant_types.lanes.iq4_vectors import put_indices
from quant_types.lanes.k_blocks import LANES
from quant_types.lanes.scalars import ONE, ZERO, clamped, load
from quant_types.lanes.vectors import make_columns

_32 = np.float32(32.0)
_STEP = 16  # weights of a lane in one loop that LLVM unrolls
_columns = make_columns(32, SIDE)


class Tile(NamedTuple):
    """What a kernel holds at once: a group of sub-blocks."""

    x: np.ndarray  # float32 [WEIGHTS]
    w: np.ndarray  # float32 [WEIGHTS]: importance
    ws: np.ndarray  # workspace of the search
    scales: np.ndarray  # float32 [LANES]: of the sub-blocks
    sigma2: np.ndarray  # float32 [LANES]: of the blocks
    d: np.ndarray  # float32 [LANES]: scale of a block
    d_bits: np.ndarray  # uint16 [LANES]: as float16
    inverse: np.ndarray  # float32 [LANES]: of the scales that quants are of
    codes: np.ndarray  # int32 [LANES]: scales of sub-blocks in IQ4_XS, plus 32
    q: np.ndarray  # uint8 [WEIGHTS]


@inner
def new_tile(memory):
    """A tile's arrays."""
    x, memory = take_zeros(memory, WEIGHTS)
    w, memory = take_zeros(memory, WEIGHTS)
    ws, memory = take_floats(memory, SIZE)
    scales, memory = take_floats(memory, LANES)
    sigma2, memory = take_floats(memory, LANES)
    d, memory = take_zeros(memory, LANES)
    d_bits, memory = take_halfs(memory, LANES)
    inverse, memory = take_floats(memory, LANES)
    codes, memory = take_ints(memory, LANES)
    q, memory = take_bytes(memory, WEIGHTS)
    return Tile(x, w, ws, scales, sigma2, d, d_bits, inverse, codes, q)


@inner
def _load_importance(tile, table, rows, start, count):
    """Importance of `count` weights from `start` into w."""
    n = table.shape[1]
    done = 0
    while done < count:
        row, at = (start + done) // n, (start + done) % n
        run = min(n - at, count - done)
        source, w = table[rows[row]][at : at + run], tile.w[done : done + run]
        for i in range(run):
            w[i] = source[i]
        done += run


@inner
def _columns_of(tile, first):
    """Weights of `SIDE` sub-blocks as columns."""
    _columns(tile.x[32 * first :], tile.ws[X:])


@inner
def _plain_search(tile):
    """The search with weights of errors x squared."""
    ws = tile.ws
    for first in range(0, LANES, SIDE):
        _columns_of(tile, first)
        for k in range(32 * SIDE):
            ws[W + k] = ws[X + k] * ws[X + k]
        search(ws, tile.scales[first:])


def _make_weighted_search(size):
    """The search with weights of errors `importance * sqrt(sigma2 + x * x)`, blocks of `size`;
    sigma2 is twice the mean of x squared."""
    factor = np.float32(2 / size)
    blocks = WEIGHTS // size
    columns = make_columns(size, blocks)
    shift = (size // 32).bit_length() - 1

    @inner
    def weighted_search(tile):
        ws, sigma2 = tile.ws, tile.sigma2
        columns(tile.x, ws)
        for b in range(blocks):
            sigma2[b] = ZERO
        for r in range(0, size, _STEP):
            for b in range(blocks):
                total = sigma2[b]
                for i in range(_STEP):
                    x = ws[(r + i) * blocks + b]
                    total += x * x
                sigma2[b] = total
        for b in range(blocks):
            sigma2[b] *= factor
        for first in range(0, LANES, SIDE):
            _columns_of(tile, first)
            _columns(tile.w[32 * first :], ws[W:])
            for j in range(SIDE):
                ws[BEST + j] = sigma2[(first + j) >> shift]
            for r in range(0, 32, _STEP):
                for j in range(SIDE):
                    mean = ws[BEST + j]
                    for i in range(_STEP):
                        k = (r + i) * SIDE + j
                        x = ws[X + k]
                        ws[W + k] = ws[W + k] * np.sqrt(mean + x * x)
            search(ws, tile.scales[first:])

    return weighted_search


_weighted_search_32, _weighted_search_256 = _make_weighted_search(32), _make_weighted_search(256)


@inner
def _quants(tile):
    """q of all sub-blocks under their inverse scales."""
    for s in range(LANES):
        put_indices(behind(tile.x, 32 * s), peek(tile.inverse, s), behind(tile.q, 32 * s))


@inner
def _store_nl(tile, first, count, records):
    """Blocks of IQ4_NL from a tile that has been searched; records uint16 [blocks, 9]."""
    for b in range(LANES):
        d = tile.scales[b]
        tile.d[b] = d
        tile.inverse[b] = ONE / d if d != ZERO else ZERO
    halves(tile.d, tile.d_bits)
    _quants(tile)
    q = as_longs(tile.q)
    for b in range(count):
        record = records[first + b]
        record[0] = tile.d_bits[b]
        pack_nibbles(q, b, record[1:])


@inner
def _store_xs(tile, first, count, records):
    """Blocks of IQ4_XS from a tile that has been searched; records uint16 [blocks, 68]."""
    for b in range(LANES // 8):
        largest = ZERO
        for j in range(8):
            v = tile.scales[8 * b + j]
            largest = v if abs(v) > abs(largest) else largest
        d = -largest / _32
        tile.d[b] = d
        inverse = ONE / d if d != ZERO else ZERO
        for j in range(8):
            code = clamped(inverse * tile.scales[8 * b + j], np.int32(-32), np.int32(31))
            tile.codes[8 * b + j] = code + 32
            scale = d * np.float32(code)
            tile.inverse[8 * b + j] = ONE / scale if scale != ZERO else ZERO
    halves(tile.d, tile.d_bits)
    _quants(tile)
    q = as_longs(tile.q)
    for b in range(count):
        record = records[first + b]
        record[0] = tile.d_bits[b]
        low, high = np.uint64(0), np.uint64(0)
        for j in range(8):
            code = np.uint64(tile.codes[8 * b + j])
            low |= (code & np.uint64(15)) << np.uint64(4 * j)
            high |= (code >> np.uint64(4)) << np.uint64(2 * j)
        record[1] = np.uint16(high)
        record[2] = np.uint16(low)
        record[3] = np.uint16(low >> np.uint64(16))
        for j in range(8):
            pack_nibbles(q, 8 * b + j, record[4 + 8 * j : 12 + 8 * j])


def _make_kernels(size, weighted_search, store):
    """Bodies of the kernels without and with importance, for blocks of `size` weights."""
    blocks = WEIGHTS // size
    records_of = make_records(np.uint16, size // 4 + (1 if size == 32 else 4))

    @inner
    def plain(floats, words, kind, out, memory):
        tile = new_tile(memory)
        records = records_of(out)
        for first in range(0, len(records), blocks):
            count = min(blocks, len(records) - first)
            if not load(floats, words, kind, first * size, count * size, tile.x):
                return first
            _plain_search(tile)
            store(tile, first, count, records)
        return -1

    @inner
    def weighted(floats, words, kind, table, rows, out, memory):
        tile = new_tile(memory)
        records = records_of(out)
        for first in range(0, len(records), blocks):
            count = min(blocks, len(records) - first)
            if not load(floats, words, kind, first * size, count * size, tile.x):
                return first
            _load_importance(tile, table, rows, first * size, count * size)
            weighted_search(tile)
            store(tile, first, count, records)
        return -1

    return plain, weighted


iq4_nl, iq4_nl_importance = _make_kernels(32, _weighted_search_32, _store_nl)
iq4_xs, iq4_xs_importance = _make_kernels(256, _weighted_search_256, _store_xs)
