"""IQ1_S and IQ1_M as kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types import iq1_m, iq1_s
from quant_types.iq1 import GRID
from quant_types.kernels import OVERFLOW
from quant_types.lanes.compile import inner, make_records, start_of, take_floats, take_ints
from quant_types.lanes.grid_tile import (
    make_mean_squares,
    make_unweighted,
    weigh,
)
from quant_types.lanes.grid_work import BLOCKS, LANES, make_points
from quant_types.lanes.iq1_search import make_search
from quant_types.lanes.iq1_terms import make_terms
from quant_types.lanes.k_blocks import load_importance, put_half
from quant_types.lanes.scalars import ONE, ZERO, clamped, half_bits, load
from quant_types.lanes.vectors import make_columns

WEIGHTS = 256 * BLOCKS
_15, _HALF = np.float32(15.0), np.float32(0.5)
_FUDGE_S, _FUDGE_M = np.float32(iq1_s.FUDGE), np.float32(iq1_m.FUDGE)
_points = make_points(GRID)
_add_terms = make_terms(WEIGHTS)
_mean_squares, _unweighted = make_mean_squares(2), make_unweighted(0.0)


class Tile(NamedTuple):
    """Blocks of 256 weights before and after the search, `n` sub-blocks a block."""

    x: np.ndarray  # float32 [weights]
    w: np.ndarray  # float32 [weights]: importance, then the weight of each error
    terms: np.ndarray  # float32 [2, weights]: what each adds to the sums of w * q * x and w * q * q
    sigma2: np.ndarray  # float32 [blocks]
    d: np.ndarray  # float32 [blocks]
    largest: np.ndarray  # float32 [blocks]: scale
    codes: np.ndarray  # int32 [blocks, n]
    shifts: np.ndarray  # int32 [blocks, n]: as in `iq1_search.Work`
    scale: np.ndarray  # float32 [blocks, n]
    cells: np.ndarray  # int32 [blocks, 32]: points as `Grid.packed` has them


@inner
def _new_tile(memory):
    x, memory = take_floats(memory, WEIGHTS)
    w, memory = take_floats(memory, WEIGHTS)
    terms, memory = take_floats(memory, 2 * WEIGHTS)
    sigma2, memory = take_floats(memory, BLOCKS)
    d, memory = take_floats(memory, BLOCKS)
    largest, memory = take_floats(memory, BLOCKS)
    codes, memory = take_ints(memory, WEIGHTS // 16)
    shifts, memory = take_ints(memory, WEIGHTS // 16)
    scale, memory = take_floats(memory, WEIGHTS // 16)
    cells, memory = take_ints(memory, WEIGHTS // 8)
    return Tile(x, w, terms, sigma2, d, largest, codes, shifts, scale, cells), memory


@inner
def _store_s(tile, count, records, first):
    """Blocks of IQ1_S from a tile that has been searched."""
    for b in range(count):
        record = records[first + b]
        put_half(record, 0, half_bits(tile.d[b] * _FUDGE_S))
        for k in range(32):
            record[2 + k] = np.uint8(tile.cells[b * 32 + k])
        for j in range(8):
            word = tile.codes[b * 8 + j] << 12
            word |= (tile.shifts[b * 8 + j] << 15) if tile.largest[b] > ZERO else 0
            for k in range(4):
                word |= ((tile.cells[b * 32 + 4 * j + k] >> 8) & 7) << (3 * k)
            record[34 + 2 * j] = np.uint8(word)
            record[35 + 2 * j] = np.uint8(word >> 8)


@inner
def _sum_terms(terms, sums):
    for b in range(BLOCKS):
        sums[b] = ZERO
    for i in range(0, 256, 8):
        for b in range(BLOCKS):
            total = sums[b]
            for k in range(8):
                total += terms[b * 256 + i + k]
            sums[b] = total


@inner
def _store_m(tile, count, records, first):
    """Blocks of IQ1_M from a tile that has been searched."""
    for s in range(WEIGHTS // 16):
        tile.shifts[s] = tile.shifts[s] if tile.largest[s // 16] > ZERO else np.int32(0)
    _add_terms(
        start_of(tile.x), start_of(tile.w), start_of(tile.cells), start_of(tile.codes),
        start_of(tile.shifts), start_of(tile.terms),
    )  # fmt: skip
    _sum_terms(tile.terms, tile.sigma2)
    _sum_terms(tile.terms[WEIGHTS:], tile.scale)
    for b in range(count):
        record = records[first + b]
        d, sum_qx, sum_q2 = tile.d[b], tile.sigma2[b], tile.scale[b]
        best = sum_qx / sum_q2 if sum_q2 > ZERO else d
        bits = half_bits(best * _FUDGE_M) if tile.largest[b] > ZERO else np.int32(0)
        for k in range(32):
            record[k] = np.uint8(tile.cells[b * 32 + k])
        for s in range(16):
            high = (tile.cells[b * 32 + 2 * s] >> 8) & 7
            high |= ((tile.cells[b * 32 + 2 * s + 1] >> 8) & 7) << 4
            shifts = tile.shifts[b * 16 + s]
            record[32 + s] = np.uint8(high | ((shifts >> 1) << 3) | ((shifts & 1) << 7))
        for k in range(4):
            word = ((bits >> (4 * k)) & 15) << 12
            for i in range(4):
                word |= tile.codes[b * 16 + 4 * k + i] << (3 * i)
            record[48 + 2 * k] = np.uint8(word)
            record[49 + 2 * k] = np.uint8(word >> 8)


def _make_kernels(length: int, halves: int, epsilon: float, type_size: int, store):
    """Bodies of the kernels without and with importance."""
    groups, per_block = length // 8, 256 // length
    work_of, search = make_search(length, halves, epsilon)
    columns = make_columns(length, LANES)
    records_of = make_records(np.uint8, type_size)

    @inner
    def clear(tile, count):
        for i in range(count * 256, WEIGHTS):
            tile.x[i] = ZERO
            tile.w[i] = ZERO

    @inner
    def run(tile, ws, points, records, first, count):
        """Search and store what is weighed; False if errors overflow."""
        for s in range(0, BLOCKS * per_block, LANES):
            columns(tile.x[s * length :], ws.x)
            columns(tile.w[s * length :], ws.w)
            if not search(ws, points):
                return False
            for j in range(LANES):
                tile.scale[s + j] = ws.scale[j]
                tile.shifts[s + j] = ws.shifts[j]
                for g in range(groups):
                    tile.cells[(s + j) * groups + g] = ws.cell[g * LANES + j]
        for b in range(BLOCKS):
            largest = ZERO
            for j in range(per_block):
                v = tile.scale[b * per_block + j]
                largest = v if v > largest else largest
            d = largest / _15
            tile.d[b], tile.largest[b] = d, largest
            inverse = ONE / d
            for j in range(b * per_block, b * per_block + per_block):
                code = clamped(_HALF * (inverse * tile.scale[j] - ONE), np.int32(0), np.int32(7))
                tile.codes[j] = code if largest > ZERO else np.int32(0)
        store(tile, count, records, first)
        return True

    @inner
    def plain(floats, words, kind, out, memory, grid):
        tile, memory = _new_tile(memory)
        ws, memory = work_of(memory)
        points, records = _points(grid), records_of(out)
        for first in range(0, len(records), BLOCKS):
            count = min(BLOCKS, len(records) - first)
            if not load(floats, words, kind, first * 256, count * 256, tile.x):
                return first
            clear(tile, count)
            _unweighted(tile.x, tile.w, tile.sigma2)
            if not run(tile, ws, points, records, first, count):
                return OVERFLOW
        return -1

    @inner
    def weighted(floats, words, kind, table, rows, out, memory, grid):
        tile, memory = _new_tile(memory)
        ws, memory = work_of(memory)
        points, records = _points(grid), records_of(out)
        for first in range(0, len(records), BLOCKS):
            count = min(BLOCKS, len(records) - first)
            if not load(floats, words, kind, first * 256, count * 256, tile.x):
                return first
            load_importance(table, rows, first, count, tile.w)
            clear(tile, count)
            _mean_squares(tile.x, tile.sigma2)
            weigh(tile.x, tile.w, tile.sigma2)
            if not run(tile, ws, points, records, first, count):
                return OVERFLOW
        return -1

    return plain, weighted


_, iq1_s_importance = _make_kernels(32, 1, iq1_s.EPSILON, iq1_s.RECORD.itemsize, _store_s)
iq1_m, iq1_m_importance = _make_kernels(16, 2, iq1_m.EPSILON, iq1_m.RECORD.itemsize, _store_m)
