"""A tile of super-blocks with scales and minimums: its arrays, searches and scale codes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.lanes import min_search
from quant_types.lanes.compile import (
    inner,
    peek,
    poke,
    take_bytes,
    take_floats,
    take_ints,
    take_zeros,
)
from quant_types.lanes.k_blocks import LANES, TILE, halve, mean_squares
from quant_types.lanes.min_search import BEST_INVERSE, BEST_LOW, ERROR, LOW, SCALE, SUM_W, W, X
from quant_types.lanes.scalars import ZERO, nearest_int

BOTH = 2 * TILE  # lanes of scales and, behind them, minimums
_32 = np.float32(32.0)


class Tile(NamedTuple):
    """The arrays of a kernel, all flat; a super-block is a lane of those in `[.., TILE]`."""

    x: np.ndarray  # weights, [TILE, 256]
    importance: np.ndarray  # [TILE, 256]
    q: np.ndarray  # quants, uint8 [TILE, 256]
    ws: np.ndarray  # workspace of the search
    sigma2: np.ndarray  # [TILE]
    values: np.ndarray  # scales, then minimums: [sub_blocks, BOTH]
    sums: np.ndarray  # of weights, as values
    codes: np.ndarray  # values in units of `unit`, as float32
    unit: np.ndarray  # [BOTH]
    bits: np.ndarray  # of the units as float16, int32 [BOTH]
    inverse: np.ndarray  # what the search found: [sub_blocks, TILE]
    bottom: np.ndarray
    d: np.ndarray  # scale and minimum as stored: [sub_blocks, TILE]
    dm: np.ndarray
    scratch: np.ndarray


@inner
def new_tile(memory):
    """A tile's arrays."""
    x, memory = take_zeros(memory, TILE * 256)
    importance, memory = take_zeros(memory, TILE * 256)
    q, memory = take_bytes(memory, TILE * 256)
    ws, memory = take_floats(memory, min_search.SIZE)
    sigma2, memory = take_floats(memory, TILE)
    values, memory = take_zeros(memory, 16 * BOTH)
    sums, memory = take_zeros(memory, 16 * BOTH)
    codes, memory = take_floats(memory, 16 * BOTH)
    unit, memory = take_floats(memory, BOTH)
    bits, memory = take_ints(memory, BOTH)
    inverse, memory = take_floats(memory, 16 * TILE)
    bottom, memory = take_floats(memory, 16 * TILE)
    d, memory = take_floats(memory, 16 * TILE)
    dm, memory = take_floats(memory, 16 * TILE)
    scratch, memory = take_floats(memory, 512)
    return Tile(
        x, importance, q, ws, sigma2, values, sums, codes, unit, bits, inverse, bottom, d, dm,
        scratch,
    )  # fmt: skip


@inner
def mean_weights(ws):
    """W of sub-blocks of 32 without importance: root mean square plus magnitude."""
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
def magnitude_weights(ws):
    """W of sub-blocks of 16 without importance: the magnitude."""
    for k in range(16 * LANES):
        ws[W + k] = abs(ws[X + k])


def make_keep(length: int):
    """`keep(tile, first)`: what the search found from sub-block `first`, a super-block a lane."""
    sub_blocks = 256 // length

    @inner
    def keep(tile, first):
        for block in range(LANES // sub_blocks):
            b = first // sub_blocks + block
            for j in range(sub_blocks):
                lane, both, one = block * sub_blocks + j, j * BOTH + b, j * TILE + b
                poke(tile.values, both, peek(tile.ws, SCALE + lane))
                poke(tile.values, both + TILE, -peek(tile.ws, LOW + lane))
                poke(tile.sums, both, peek(tile.ws, SUM_W + lane))
                poke(tile.sums, both + TILE, peek(tile.ws, SUM_W + lane))
                poke(tile.inverse, one, peek(tile.ws, BEST_INVERSE + lane))
                poke(tile.bottom, one, peek(tile.ws, BEST_LOW + lane))

    return keep


def make_plain(length: int, columns, search, weights):
    """`plain(tile, count)`: the search of all sub-blocks without importance."""
    sub_blocks = 256 // length
    keep = make_keep(length)

    @inner
    def plain(tile, count):
        for first in range(0, count * sub_blocks, LANES):
            columns(tile.x[first * length :], tile.ws[X:])
            weights(tile.ws)
            search(tile.ws)
            keep(tile, first)

    return plain


def make_weighted(length: int, columns, search, factor: float):
    """`weighted(tile, count)`: the search with weights `importance * sqrt(sigma2 + x * x)`.

    sigma2 is the super-block's mean square times `factor`.
    """
    sub_blocks = 256 // length
    keep = make_keep(length)
    factor32 = np.float32(factor)

    @inner
    def weighted(tile, count):
        mean_squares(tile.x, factor32, tile.sigma2, tile.ws)
        ws = tile.ws
        for first in range(0, count * sub_blocks, LANES):
            columns(tile.x[first * length :], ws[X:])
            columns(tile.importance[first * length :], ws[W:])
            for j in range(LANES):
                ws[ERROR + j] = tile.sigma2[(first + j) // sub_blocks]
            for i in range(length):
                for j in range(LANES):
                    x = ws[X + i * LANES + j]
                    k = W + i * LANES + j
                    ws[k] = ws[k] * np.sqrt(ws[ERROR + j] + x * x)
            search(ws)
            keep(tile, first)

    return weighted


def make_units(n: int, top: int):
    """`units(tile)`: codes of `n` values a lane, the largest `top`, wrapped as in a uint8."""
    top_float = np.float32(top)

    @inner
    def units(tile):
        values, codes, unit, inverse = tile.values, tile.codes, tile.unit, tile.scratch
        for b in range(BOTH):
            unit[b] = ZERO
        for j in range(n):
            for b in range(BOTH):
                v = values[j * BOTH + b]
                largest = unit[b]
                unit[b] = v if v > largest else largest
        for b in range(BOTH):
            largest = unit[b]
            ratio = top_float / largest
            inverse[b] = ratio if largest > ZERO else ZERO
            unit[b] = largest / top_float
        for j in range(n):
            for b in range(BOTH):
                code = nearest_int(inverse[b] * values[j * BOTH + b])
                codes[j * BOTH + b] = np.float32(np.int32(code & np.int32(255)))

    return units


@inner
def halve_units(tile):
    """Units to float16: bits, and in place the float32 that they stand for."""
    halve(tile.unit[:TILE], tile.bits[:TILE], tile.unit[:TILE])
    halve(tile.unit[TILE:], tile.bits[TILE:], tile.unit[TILE:])


@inner
def store_scales_12(tile, b, limit, block):
    """Eight scales and minimums of super-block `b` as 12 bytes, and what they stand for in d, dm.

    Codes are at most `limit`. See `quant_types.k_quants.pack_scales` and `unpack_scales`.
    """
    codes, d, dm = tile.codes, tile.d, tile.dm
    unit, unit_min = tile.unit[b], tile.unit[TILE + b]
    for j in range(4):
        ls = min(np.int64(codes[j * BOTH + b]), limit)
        lm = min(np.int64(codes[j * BOTH + TILE + b]), limit)
        high_ls = min(np.int64(codes[(j + 4) * BOTH + b]), limit)
        high_lm = min(np.int64(codes[(j + 4) * BOTH + TILE + b]), limit)
        first = (ls | (high_ls >> 4 << 6)) & 255
        second = (lm | (high_lm >> 4 << 6)) & 255
        third = (high_ls & 15) | ((high_lm & 15) << 4)
        block[j] = first
        block[4 + j] = second
        block[8 + j] = third
        d[j * TILE + b] = unit * np.float32(first & 63)
        dm[j * TILE + b] = unit_min * np.float32(second & 63)
        d[(j + 4) * TILE + b] = unit * np.float32((third & 15) | (first >> 6 << 4))
        dm[(j + 4) * TILE + b] = unit_min * np.float32((third >> 4) | (second >> 6 << 4))
