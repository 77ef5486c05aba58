"""Q2_K, Q4_K and Q5_K as kernels: sub-blocks with a scale and a minimum."""

from __future__ import annotations

import numpy as np

from quant_types import q2_k as q2_k_format
from quant_types import q4_k as q4_k_format
from quant_types import q5_k as q5_k_format
from quant_types.k_quants import weighted_steps
from quant_types.lanes import min_search, positive_search
from quant_types.lanes.compile import as_longs, inner, put_long
from quant_types.lanes.k_blocks import (
    LANES,
    TILE,
    load_importance,
    make_leftovers,
    make_quants,
    pack_crumbs,
    put_half,
)
from quant_types.lanes.min_tiles import (
    BOTH,
    halve_units,
    magnitude_weights,
    make_plain,
    make_units,
    make_weighted,
    mean_weights,
    new_tile,
    store_scales_12,
)
from quant_types.lanes.scalars import load
from quant_types.lanes.vectors import make_columns

_LOW_BITS, _4 = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(4)
_columns_16, _columns_32 = make_columns(16, LANES), make_columns(32, LANES)
_quants_3, _leftovers_3 = make_quants(16, 0, 3), make_leftovers(16, 0, 3)
_quants_15, _leftovers_15 = make_quants(32, 0, 15), make_leftovers(32, 0, 15)
_quants_31, _leftovers_31 = make_quants(32, 0, 31), make_leftovers(32, 0, 31)
_units_15, _units_63 = make_units(16, 15), make_units(8, 63)
_positive_15, _positive_63 = positive_search.make_search(16, 15), positive_search.make_search(8, 63)

_search = min_search.make_search
_plain_q2_k = make_plain(16, _columns_16, _search(16, q2_k_format.STEPS, True), magnitude_weights)
_plain_q4_k = make_plain(32, _columns_32, _search(32, q4_k_format.STEPS, False), mean_weights)
_plain_q5_k = make_plain(32, _columns_32, _search(32, q5_k_format.STEPS, False), mean_weights)
_weighted_q2_k = make_weighted(16, _columns_16, _search(16, weighted_steps(3), False), 1)
_weighted_q4_k = make_weighted(32, _columns_32, _search(32, weighted_steps(15), False), 2)
_weighted_q5_k = make_weighted(32, _columns_32, _search(32, weighted_steps(31), False), 2)


@inner
def _store_q2_k(tile, count, clamps_first, out):
    """Blocks of a tile whose codes and units are known."""
    halve_units(tile)
    for b in range(count):
        block = out[b * 84 : b * 84 + 84]
        for j in range(16):
            ls = np.int64(tile.codes[j * BOTH + b])
            lm = np.int64(tile.codes[j * BOTH + TILE + b])
            code = (ls | (lm << 4)) & 255
            block[j] = code
            tile.d[j * TILE + b] = tile.unit[b] * np.float32(code & 15)
            tile.dm[j * TILE + b] = tile.unit[TILE + b] * np.float32(code >> 4)
        put_half(block, 80, tile.bits[b])
        put_half(block, 82, tile.bits[TILE + b])
    if _quants_3(tile.x, count, tile.d, tile.dm, tile.q):
        _leftovers_3(tile.x, count, tile.d, tile.inverse, tile.bottom, tile.q, clamps_first)
    for b in range(count):
        pack_crumbs(tile.q[b * 256 : b * 256 + 256], out[b * 84 + 16 : b * 84 + 80])


@inner
def _put_nibbles(q, b, out, at):
    """The low 4 bits of a super-block's quants in 128 bytes: of 64, the first 32 are low."""
    eights = as_longs(q)
    for j in range(4):
        for i in range(4):
            k = b * 32 + j * 8 + i
            low, high = eights[k] & _LOW_BITS, eights[k + 4] & _LOW_BITS
            put_long(out, at + j * 32 + i * 8, low | (high << _4))


@inner
def _store_q4_k(tile, count, limit, clamps_first, out):
    """Blocks of a tile whose codes and units are known."""
    halve_units(tile)
    for b in range(count):
        block = out[b * 144 : b * 144 + 16]
        put_half(block, 0, tile.bits[b])
        put_half(block, 2, tile.bits[TILE + b])
        store_scales_12(tile, b, limit, block[4:])
    if _quants_15(tile.x, count, tile.d, tile.dm, tile.q):
        _leftovers_15(tile.x, count, tile.d, tile.inverse, tile.bottom, tile.q, clamps_first)
    for b in range(count):
        _put_nibbles(tile.q, b, out, b * 144 + 16)


@inner
def _store_q5_k(tile, count, clamps_first, out):
    """Blocks of a tile whose codes and units are known."""
    halve_units(tile)
    for b in range(count):
        block = out[b * 176 : b * 176 + 16]
        put_half(block, 0, tile.bits[b])
        put_half(block, 2, tile.bits[TILE + b])
        store_scales_12(tile, b, 63, block[4:])
    if _quants_31(tile.x, count, tile.d, tile.dm, tile.q):
        _leftovers_31(tile.x, count, tile.d, tile.inverse, tile.bottom, tile.q, clamps_first)
    for b in range(count):
        q, block = tile.q[b * 256 : b * 256 + 256], out[b * 176 : b * 176 + 176]
        _put_nibbles(tile.q, b, block, 48)
        for i in range(32):
            high = 0
            for j in range(8):
                high |= (q[j * 32 + i] >> 4) << j
            block[16 + i] = high


@inner
def q2_k(floats, words, kind, out, memory):
    """Blocks of `quant_types.q2_k`."""
    tile = new_tile(memory)
    blocks = out.size // 84
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        _plain_q2_k(tile, count)
        _units_15(tile)
        _store_q2_k(tile, count, False, out[first * 84 :])
    return -1


@inner
def q2_k_importance(floats, words, kind, table, rows, out, memory):
    """Blocks of `quant_types.q2_k`, by importance."""
    tile = new_tile(memory)
    blocks = out.size // 84
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        load_importance(table, rows, first, count, tile.importance)
        _weighted_q2_k(tile, count)
        _positive_15(tile.values, tile.sums, tile.codes, tile.unit, tile.scratch)
        _store_q2_k(tile, count, True, out[first * 84 :])
    return -1


@inner
def q4_k(floats, words, kind, out, memory):
    """Blocks of `quant_types.q4_k`."""
    tile = new_tile(memory)
    blocks = out.size // 144
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        _plain_q4_k(tile, count)
        _units_63(tile)
        _store_q4_k(tile, count, 63, False, out[first * 144 :])
    return -1


@inner
def q4_k_importance(floats, words, kind, table, rows, out, memory):
    """Blocks of `quant_types.q4_k`, by importance."""
    tile = new_tile(memory)
    blocks = out.size // 144
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        load_importance(table, rows, first, count, tile.importance)
        _weighted_q4_k(tile, count)
        _positive_63(tile.values, tile.sums, tile.codes, tile.unit, tile.scratch)
        _store_q4_k(tile, count, 255, True, out[first * 144 :])
    return -1


@inner
def q5_k(floats, words, kind, out, memory):
    """Blocks of `quant_types.q5_k`."""
    tile = new_tile(memory)
    blocks = out.size // 176
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        _plain_q5_k(tile, count)
        _units_63(tile)
        _store_q5_k(tile, count, False, out[first * 176 :])
    return -1


@inner
def q5_k_importance(floats, words, kind, table, rows, out, memory):
    """Blocks of `quant_types.q5_k`, by importance."""
    tile = new_tile(memory)
    blocks = out.size // 176
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        load_importance(table, rows, first, count, tile.importance)
        _weighted_q5_k(tile, count)
        _positive_63(tile.values, tile.sums, tile.codes, tile.unit, tile.scratch)
        _store_q5_k(tile, count, True, out[first * 176 :])
    return -1
