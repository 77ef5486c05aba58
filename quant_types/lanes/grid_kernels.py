"""How a kernel of IQ2 or IQ3 goes over its weights: tiles of 8 blocks, searched and stored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types import grids
from quant_types.iq_search import Search
from quant_types.kernels import OVERFLOW
from quant_types.lanes import positive_search
from quant_types.lanes.compile import (
    behind,
    inner,
    make_records,
    start_of,
    take_floats,
    take_ints,
)
from quant_types.lanes.grid_search import make_queue, make_search
from quant_types.lanes.grid_tile import (
    make_magnitudes,
    make_mean_squares,
    make_take_over,
    make_unweighted,
    weigh,
)
from quant_types.lanes.grid_work import BLOCKS, LANES, make_points, make_work
from quant_types.lanes.k_blocks import load_importance
from quant_types.lanes.scalars import ONE, ZERO, clamped, half_bits, load
from quant_types.lanes.vectors import make_columns

_31 = np.float32(31.0)
_HALF = np.float32(0.5)


class Tile(NamedTuple):
    """Blocks of 256 weights before and after the search, `n` sub-blocks a block."""

    x: np.ndarray  # float32 [weights]
    w: np.ndarray  # float32 [weights]: importance, then the weight of each error
    sigma2: np.ndarray  # float32 [blocks]
    signs: np.ndarray  # int32 [weights / 8]: a byte of each eight
    d: np.ndarray  # int32 [blocks]: bits of the float16
    codes: np.ndarray  # int32 [blocks, n]
    used: np.ndarray  # int32 [blocks, n]: 0 for sub-blocks that count as zero
    scale: np.ndarray  # float32 [blocks, n]
    points: np.ndarray  # int32 [blocks, 256 / dim]
    columns: np.ndarray  # float32 [length, sub-blocks]: magnitudes
    column_w: np.ndarray  # float32 [length, sub-blocks]
    first: np.ndarray  # float32 [sub-blocks]: scales before the search
    scratch: np.ndarray  # float32 [length + 6, sub-blocks]


def make_kernels(name: str, how: Search, type_size: int, store):
    """Bodies of the kernels without and with importance.

    Args:
        store: `(tile, b, record)`: block b of a tile into uint8 [type_size].
    """
    dim, length = grids.grid(name).dim, how.length
    groups = length // dim
    blocks = BLOCKS
    weights = 256 * blocks
    per_block = 256 // length
    sub_blocks = blocks * per_block
    per_lane = length // 8
    fudge = np.float32(how.fudge)
    parity, least_squares = how.parity, how.least_squares
    sign_bits = 127 if parity else 255
    records_of = make_records(np.uint8, type_size)
    points_of, search = make_points(name), make_search(name, how)
    work_of = make_work(name, how, make_queue(name, how))
    mean_squares, unweighted = make_mean_squares(how.factor), make_unweighted(how.floor)
    magnitudes = make_magnitudes(parity, length, sub_blocks)
    take_over = make_take_over(per_lane, groups, sub_blocks, sign_bits)
    columns = make_columns(length, sub_blocks)
    if how.least_squares:
        first_scale = positive_search.make_search(length, grids.grid(name).base + 1, sub_blocks)

    @inner
    def new_tile(memory):
        x, memory = take_floats(memory, weights)
        w, memory = take_floats(memory, weights)
        sigma2, memory = take_floats(memory, blocks)
        signs, memory = take_ints(memory, weights // 8)
        d, memory = take_ints(memory, blocks)
        codes, memory = take_ints(memory, sub_blocks)
        used, memory = take_ints(memory, sub_blocks)
        scale, memory = take_floats(memory, sub_blocks)
        points, memory = take_ints(memory, sub_blocks * groups)
        column_x, memory = take_floats(memory, weights)
        column_w, memory = take_floats(memory, weights)
        first, memory = take_floats(memory, sub_blocks)
        scratch, memory = take_floats(memory, weights + 6 * sub_blocks if least_squares else 1)
        tile = Tile(
            x, w, sigma2, signs, d, codes, used, scale, points, column_x, column_w, first, scratch
        )
        return tile, memory

    @inner
    def clear(tile, count):
        """Zeros behind the tile's first `count` blocks."""
        for i in range(count * 256, weights):
            tile.x[i] = ZERO
            tile.w[i] = ZERO

    @inner
    def round_scales(tile):
        """Codes and d of the tile's blocks."""
        for b in range(blocks):
            largest = ZERO
            for j in range(per_block):
                v = tile.scale[b * per_block + j]
                largest = v if v > largest else largest
            d = largest / _31
            tile.d[b] = half_bits(d * fudge)
            inverse = ONE / d
            for j in range(b * per_block, b * per_block + per_block):
                code = clamped(_HALF * (inverse * tile.scale[j] - ONE), np.int32(0), np.int32(15))
                tile.codes[j] = code if largest > ZERO else np.int32(0)
            if parity and largest == ZERO:
                for i in range(b * 32, b * 32 + 32):
                    tile.signs[i] = 0
                for i in range(b * 256 // dim, (b + 1) * 256 // dim):
                    tile.points[i] = 0

    @inner
    def run(tile, ws, points, records, first, count):
        """Search and store what is weighed; False if errors overflow."""
        columns(tile.x, tile.columns)
        columns(tile.w, tile.column_w)
        magnitudes(tile.columns, tile.column_w, ws.signs)
        if least_squares:
            first_scale(
                tile.columns, tile.column_w, tile.scratch, tile.first, tile.scratch[weights:]
            )
        for j in range(0, count * per_block, LANES):
            for i in range(length):
                for lane in range(LANES):
                    ws.x[i * LANES + lane] = tile.columns[i * sub_blocks + j + lane]
                    ws.w[i * LANES + lane] = tile.column_w[i * sub_blocks + j + lane]
            for lane in range(LANES):
                ws.scale[lane] = tile.first[j + lane]
            if not search(ws, points):
                return False
            take_over(
                start_of(ws.scale), start_of(ws.empty), behind(ws.signs, j), start_of(ws.best_cell),
                behind(tile.scale, j), behind(tile.used, j), behind(tile.signs, j * per_lane),
                behind(tile.points, j * groups),
            )  # fmt: skip
        round_scales(tile)
        for b in range(count):
            store(tile, b, records[first + b])
        return True

    @inner
    def plain(floats, words, kind, out, memory, grid):
        tile, memory = new_tile(memory)
        ws, memory = work_of(memory)
        points = points_of(grid)
        records = records_of(out)
        for first in range(0, len(records), blocks):
            count = min(blocks, len(records) - first)
            if not load(floats, words, kind, first * 256, count * 256, tile.x):
                return first
            clear(tile, count)
            mean_squares(tile.x, tile.sigma2)
            unweighted(tile.x, tile.w, tile.sigma2)
            if not run(tile, ws, points, records, first, count):
                return OVERFLOW
        return -1

    @inner
    def weighted(floats, words, kind, table, rows, out, memory, grid):
        tile, memory = new_tile(memory)
        ws, memory = work_of(memory)
        points = points_of(grid)
        records = records_of(out)
        for first in range(0, len(records), blocks):
            count = min(blocks, len(records) - first)
            if not load(floats, words, kind, first * 256, count * 256, tile.x):
                return first
            load_importance(table, rows, first, count, tile.w)
            clear(tile, count)
            mean_squares(tile.x, tile.sigma2)
            weigh(tile.x, tile.w, tile.sigma2)
            if not run(tile, ws, points, records, first, count):
                return OVERFLOW
        return -1

    return plain, weighted


@inner
def pack_signs(signs, first):
    """Signs of four eights from `first`, in 7 bits each (`quant_types.iq_search.pack_signs`)."""
    low = np.int32(signs[first] | (signs[first + 1] << 7))
    return np.int32(low | (signs[first + 2] << 14) | (signs[first + 3] << 21))


@inner
def put_word(record, at, word):
    """Four bytes, the lowest first."""
    for i in range(4):
        record[at + i] = np.uint8(word >> (8 * i))
