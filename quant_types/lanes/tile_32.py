"""A tile of blocks of 32: its arrays, and the quants of Q4_0, Q4_1, Q5_0 and Q5_1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.blocks_32 import weighted_steps
from quant_types.lanes import min_search, symmetric_search
from quant_types.lanes.compile import inner, take_bytes, take_floats, take_halfs, take_zeros
from quant_types.lanes.groups import GROUPS, WEIGHTS, extremes, halves, ranges, to_int8
from quant_types.lanes.k_blocks import LANES
from quant_types.lanes.scalars import ONE, ZERO, clamped, load, nearest_int
from quant_types.lanes.vectors import make_columns

BLOCKS = WEIGHTS // 32  # in a tile, a lane each in the searches
assert BLOCKS == LANES
ROWS = 8  # whose mean squares are taken at once
_HALF = np.float32(0.5)
_L = symmetric_search.layout(LANES, 32)
_columns = make_columns(32, LANES)


class Tile(NamedTuple):
    """What a kernel holds at once."""

    x: np.ndarray  # float32 [WEIGHTS]
    low: np.ndarray  # float32 [GROUPS]: of a group
    high: np.ndarray
    d: np.ndarray  # float32 [BLOCKS]: the block's scale
    m: np.ndarray  # float32 [BLOCKS]: its minimum
    inverse: np.ndarray  # float32 [GROUPS]: of the scale of the group's block
    d_bits: np.ndarray  # uint16 [BLOCKS]: d and m as float16
    m_bits: np.ndarray
    q: np.ndarray  # uint8 [WEIGHTS]
    w: np.ndarray  # float32 [WEIGHTS]: the weight of each error, under importance
    means: np.ndarray  # float32 [ROWS]: mean squares of the rows at hand
    part: np.ndarray  # float32 [WEIGHTS]: of these rows, while means are taken
    ws: np.ndarray  # workspace of the searches


@inner
def new_tile(memory):
    """A tile's arrays."""
    x, memory = take_zeros(memory, WEIGHTS)
    low, memory = take_floats(memory, GROUPS)
    high, memory = take_floats(memory, GROUPS)
    d, memory = take_floats(memory, BLOCKS)
    m, memory = take_floats(memory, BLOCKS)
    inverse, memory = take_floats(memory, GROUPS)
    d_bits, memory = take_halfs(memory, BLOCKS)
    m_bits, memory = take_halfs(memory, BLOCKS)
    q, memory = take_bytes(memory, WEIGHTS)
    w, memory = take_zeros(memory, WEIGHTS)
    means, memory = take_floats(memory, ROWS)
    part, memory = take_zeros(memory, WEIGHTS)
    ws, memory = take_floats(memory, max(min_search.SIZE, _L.size))
    return Tile(x, low, high, d, m, inverse, d_bits, m_bits, q, w, means, part, ws)


@inner
def symmetric(tile, half):
    """Quants of `quant_types.blocks_32.symmetric`."""
    extremes(tile.x, tile.low)
    for b in range(BLOCKS):
        extreme = tile.low[4 * b]
        for g in range(1, 4):
            v = tile.low[4 * b + g]
            extreme = v if abs(v) > abs(extreme) else extreme
        d = extreme / -half
        tile.d[b] = d
        inverse = ONE / d if d != ZERO else ZERO
        for g in range(4):
            tile.inverse[4 * b + g] = inverse
    halves(tile.d, tile.d_bits)
    add = half + _HALF
    top = np.int32(half + half - ONE)
    for g in range(GROUPS):
        inverse = tile.inverse[g]
        for i in range(8):
            q = to_int8(tile.x[8 * g + i] * inverse + add)
            tile.q[8 * g + i] = np.uint8(q if q < top else top)


@inner
def with_minimum(tile, top):
    """Quants of `quant_types.blocks_32.with_minimum`."""
    ranges(tile.x, tile.low, tile.high)
    for b in range(BLOCKS):
        low = tile.low[4 * b]
        high = tile.high[4 * b]
        for g in range(1, 4):
            v = tile.low[4 * b + g]
            low = v if v < low else low
            v = tile.high[4 * b + g]
            high = v if v > high else high
        d = (high - low) / top
        tile.d[b] = d
        tile.m[b] = low
        inverse = ONE / d if d != ZERO else ZERO
        for g in range(4):
            tile.inverse[4 * b + g] = inverse
            tile.low[4 * b + g] = low
    halves(tile.d, tile.d_bits)
    halves(tile.m, tile.m_bits)
    top = np.int32(top)
    for g in range(GROUPS):
        inverse = tile.inverse[g]
        low = tile.low[g]
        for i in range(8):
            q = to_int8((tile.x[8 * g + i] - low) * inverse + _HALF)
            tile.q[8 * g + i] = np.uint8(q if q < top else top)


@inner
def row_means(tile, floats, words, kind, first, count, n):
    """Mean squares of `count` rows from `first`, each added in order, into means.

    The sums are chains of additions: rows side by side let them overlap.
    """
    size = WEIGHTS // ROWS
    for r in range(ROWS):
        tile.means[r] = ZERO
    for at in range(0, n, size):
        width = min(size, n - at)
        for r in range(count):
            load(floats, words, kind, (first + r) * n + at, width, tile.part[r * size :])
        for i in range(width):
            for r in range(ROWS):
                x = tile.part[r * size + i]
                tile.means[r] += x * x
    for r in range(ROWS):
        tile.means[r] /= np.float32(n)


@inner
def weigh(tile, floats, words, kind, table, rows, start, count):
    """The tile's w: `importance * sqrt(mean + x * x)`, for `count` weights from `start`.

    mean is the mean square of the row; means has those of `ROWS` rows since the last call.
    """
    n = table.shape[1]
    done = 0
    while done < count:
        row, at = (start + done) // n, (start + done) % n
        if at == 0 and row % ROWS == 0:
            row_means(tile, floats, words, kind, row, min(ROWS, rows.size - row), n)
        mean = tile.means[row % ROWS]
        run = min(n - at, count - done)
        importance = table[rows[row]][at : at + run]
        x, w = tile.x[done : done + run], tile.w[done : done + run]
        for i in range(run):
            w[i] = importance[i] * np.sqrt(mean + x[i] * x[i])
        done += run


def make_symmetric(half):
    """`symmetric_weighted(tile)`: quants of `quant_types.blocks_32.symmetric_weighted`."""
    search = symmetric_search.make_search(half, LANES, True, 32)
    low, high = np.int32(-half), np.int32(half - 1)

    @inner
    def symmetric_weighted(tile):
        ws = tile.ws
        _columns(tile.x, ws[_L.x :])
        _columns(tile.w, ws[_L.w :])
        search(ws)
        for b in range(BLOCKS):
            tile.d[b] = ws[_L.scale + b]
            for g in range(4):
                tile.inverse[4 * b + g] = ws[_L.best_inverse + b]
        halves(tile.d, tile.d_bits)
        for g in range(GROUPS):
            inverse = tile.inverse[g]
            shift = np.int32(half) if inverse != ZERO else np.int32(0)  # zeros stay raw zeros
            for i in range(8):
                q = clamped(inverse * tile.x[8 * g + i], low, high)
                tile.q[8 * g + i] = np.uint8(q + shift)

    return symmetric_weighted


def make_minimum(top):
    """`minimum_weighted(tile)`: quants of `quant_types.blocks_32.minimum_weighted`."""
    search = min_search.make_search(32, weighted_steps(top), False)
    top_float = np.float32(top)

    @inner
    def minimum_weighted(tile):
        ws = tile.ws
        _columns(tile.x, ws[min_search.X :])
        _columns(tile.w, ws[min_search.W :])
        search(ws)
        for b in range(BLOCKS):
            tile.d[b] = ws[min_search.SCALE + b]
            tile.m[b] = ws[min_search.LOW + b]
            for g in range(4):
                tile.inverse[4 * b + g] = ws[min_search.BEST_INVERSE + b]
                tile.low[4 * b + g] = ws[min_search.BEST_LOW + b]
        halves(tile.d, tile.d_bits)
        halves(tile.m, tile.m_bits)
        for g in range(GROUPS):
            inverse = tile.inverse[g]
            bottom = tile.low[g]
            for i in range(8):
                v = inverse * (tile.x[8 * g + i] - bottom)
                v = v if v > ZERO else ZERO
                v = v if v < top_float else top_float
                tile.q[8 * g + i] = np.uint8(nearest_int(v))

    return minimum_weighted
