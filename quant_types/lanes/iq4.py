"""IQ4_NL and IQ4_XS as kernels."""

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
    take_ints,
    take_zeros,
)
from quant_types.lanes.groups import GROUPS, WEIGHTS, halves, pack_nibbles
from quant_types.lanes.iq4_search import SIDE, SIZE, W, X, index, search
from quant_types.lanes.k_blocks import LANES
from quant_types.lanes.scalars import ONE, ZERO, clamped, load
from quant_types.lanes.vectors import make_columns

_32 = np.float32(32.0)
_columns = make_columns(32, SIDE)


class Tile(NamedTuple):
    """What a kernel holds at once: a group of sub-blocks."""

    x: np.ndarray  # float32 [WEIGHTS]
    w: np.ndarray  # float32 [WEIGHTS]: importance, then the weight of each error
    ws: np.ndarray  # workspace of the search
    scales: np.ndarray  # float32 [LANES]: of the sub-blocks
    d: np.ndarray  # float32 [LANES]: scale of a block
    d_bits: np.ndarray  # uint16 [LANES]: as float16
    inverse: np.ndarray  # float32 [GROUPS]: of the scale of the group's sub-block
    codes: np.ndarray  # int32 [LANES]: scales of sub-blocks in IQ4_XS, plus 32
    q: np.ndarray  # uint8 [WEIGHTS]


@inner
def new_tile(memory):
    """A tile's arrays."""
    x, memory = take_zeros(memory, WEIGHTS)
    w, memory = take_zeros(memory, WEIGHTS)
    ws, memory = take_floats(memory, SIZE)
    scales, memory = take_floats(memory, LANES)
    d, memory = take_zeros(memory, LANES)
    d_bits, memory = take_halfs(memory, LANES)
    inverse, memory = take_floats(memory, GROUPS)
    codes, memory = take_ints(memory, LANES)
    q, memory = take_bytes(memory, WEIGHTS)
    return Tile(x, w, ws, scales, d, d_bits, inverse, codes, q)


@inner
def _plain_weights(tile):
    """w without importance: x squared."""
    for i in range(WEIGHTS):
        tile.w[i] = tile.x[i] * tile.x[i]


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


def _make_weights(size):
    """`weights(tile)`: importance becomes `importance * sqrt(sigma2 + x * x)`, blocks of `size`."""
    factor = np.float32(2 / size)

    @inner
    def weights(tile):
        for b in range(WEIGHTS // size):
            x, w = tile.x[b * size : b * size + size], tile.w[b * size : b * size + size]
            total = ZERO
            for i in range(x.size):
                total += x[i] * x[i]
            sigma2 = total * factor
            for i in range(x.size):
                w[i] = w[i] * np.sqrt(sigma2 + x[i] * x[i])

    return weights


_weights_32, _weights_256 = _make_weights(32), _make_weights(256)


@inner
def _search(tile):
    for first in range(0, LANES, SIDE):
        _columns(tile.x[32 * first :], tile.ws[X:])
        _columns(tile.w[32 * first :], tile.ws[W:])
        search(tile.ws, tile.scales[first:])


@inner
def _quants(tile):
    """q of all sub-blocks under their inverse scales."""
    for g in range(GROUPS):
        inverse = tile.inverse[g]
        for i in range(8):
            tile.q[8 * g + i] = np.uint8(index(tile.x[8 * g + i] * inverse))


@inner
def _store_nl(tile, first, count, records):
    """Blocks of IQ4_NL from a tile that has been searched; records uint16 [blocks, 9]."""
    for b in range(LANES):
        d = tile.scales[b]
        tile.d[b] = d
        inverse = ONE / d if d != ZERO else ZERO
        for g in range(4):
            tile.inverse[4 * b + g] = inverse
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
            sub_inverse = ONE / scale if scale != ZERO else ZERO
            for g in range(4):
                tile.inverse[32 * b + 4 * j + g] = sub_inverse
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


def _make_kernels(size, weights, store):
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
            _plain_weights(tile)
            _search(tile)
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
            weights(tile)
            _search(tile)
            store(tile, first, count, records)
        return -1

    return plain, weighted


iq4_nl, iq4_nl_importance = _make_kernels(32, _weights_32, _store_nl)
iq4_xs, iq4_xs_importance = _make_kernels(256, _weights_256, _store_xs)
