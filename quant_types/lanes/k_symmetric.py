"""Q3_K and Q6_K as kernels: sub-blocks of 16 with a scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant_types.lanes import descent_search, symmetric_search
from quant_types.lanes.compile import (
    inner,
    peek,
    poke,
    take_bytes,
    take_floats,
    take_ints,
    take_zeros,
)
from quant_types.lanes.k_blocks import (
    LANES,
    TILE,
    halve,
    load_importance,
    make_leftovers,
    make_quants,
    mean_squares,
    pack_crumbs,
    put_half,
)
from quant_types.lanes.scalars import ONE, ZERO, clamped, load, nearest_int
from quant_types.lanes.vectors import make_columns
from quant_types.search import GROUP_MAX_EPS

_EPS = np.float32(GROUP_MAX_EPS)
_TWO = np.float32(2.0)
_L = symmetric_search.layout(LANES)  # of the workspace that searches sub-blocks
_S = symmetric_search.layout(TILE)  # of the one that searches the scales of a tile
_columns = make_columns(16, LANES)
_search_q6_k = symmetric_search.make_search(32, LANES, True)
_search_q3_k = symmetric_search.make_search(4, LANES, True)
_search_scales = symmetric_search.make_search(32, TILE, False)
_start_q3_k, _go_on_q3_k = descent_search.make_search(4)
_quants_32, _leftovers_32 = make_quants(16, -32, 31), make_leftovers(16, -32, 31)
_quants_4, _leftovers_4 = make_quants(16, -4, 3), make_leftovers(16, -4, 3)


class Tile(NamedTuple):
    """The arrays of a kernel, all flat; a super-block is a lane of those in `[.., TILE]`."""

    x: np.ndarray  # weights, [TILE, 256]
    importance: np.ndarray  # [TILE, 256]
    q: np.ndarray  # quants less the lowest, uint8 [TILE, 256]
    ws: np.ndarray  # workspace of the search
    scales_ws: np.ndarray  # workspace of the search for the scales
    sigma2: np.ndarray  # [TILE]
    values: np.ndarray  # scales: [16, TILE]
    inverse: np.ndarray  # what the search found: [16, TILE]
    codes: np.ndarray  # values in units of `unit`, int32
    largest: np.ndarray  # value of greatest magnitude, [TILE]
    unit: np.ndarray  # [TILE]
    bits: np.ndarray  # of the units as float16, int32 [TILE]
    d: np.ndarray  # scale as stored: [16, TILE]
    zeros: np.ndarray  # [16, TILE]
    levels: np.ndarray  # quants of the search, groups of [16, LANES]
    rest: np.ndarray  # workspace for sub-blocks that move on
    places: np.ndarray  # theirs, int32 [LANES]
    scratch: np.ndarray


@inner
def _new_tile(memory):
    x, memory = take_zeros(memory, TILE * 256)
    importance, memory = take_zeros(memory, TILE * 256)
    q, memory = take_bytes(memory, TILE * 256)
    ws, memory = take_floats(memory, max(_L.size, descent_search.SIZE))
    scales_ws, memory = take_floats(memory, _S.size)
    sigma2, memory = take_floats(memory, TILE)
    values, memory = take_zeros(memory, 16 * TILE)
    inverse, memory = take_floats(memory, 16 * TILE)
    codes, memory = take_ints(memory, 16 * TILE)
    largest, memory = take_floats(memory, TILE)
    unit, memory = take_floats(memory, TILE)
    bits, memory = take_ints(memory, TILE)
    d, memory = take_floats(memory, 16 * TILE)
    zeros, memory = take_zeros(memory, 16 * TILE)
    levels, memory = take_floats(memory, TILE * 256)
    rest, memory = take_zeros(memory, descent_search.SIZE)
    places, memory = take_ints(memory, LANES)
    scratch, memory = take_floats(memory, 512)
    return Tile(
        x, importance, q, ws, scales_ws, sigma2, values, inverse, codes, largest, unit, bits, d,
        zeros, levels, rest, places, scratch,
    )  # fmt: skip


@inner
def _keep(tile, first):
    """What the search found from sub-block `first`, a super-block a lane."""
    for block in range(LANES // 16):
        b = first // 16 + block
        for j in range(16):
            lane = block * 16 + j
            poke(tile.values, j * TILE + b, peek(tile.ws, _L.scale + lane))
            poke(tile.inverse, j * TILE + b, peek(tile.ws, _L.best_inverse + lane))


@inner
def _units(tile, top):
    """Codes that make the value of greatest magnitude `top`, which is negative; their unit."""
    largest, unit, inverse = tile.largest, tile.unit, tile.scratch
    values, codes = tile.values, tile.codes
    for b in range(TILE):
        largest[b] = ZERO
    for j in range(16):
        for b in range(TILE):
            v, most = values[j * TILE + b], largest[b]
            largest[b] = v if abs(v) > abs(most) else most
    for b in range(TILE):
        inverse[b] = top / largest[b]
        unit[b] = ONE / inverse[b]
    for j in range(16):
        for b in range(TILE):
            codes[j * TILE + b] = nearest_int(inverse[b] * values[j * TILE + b])


@inner
def _scale_sub_blocks(tile, low):
    """d of each sub-block: unit as stored, times code plus `low`."""
    unit, codes, d = tile.unit, tile.codes, tile.d
    halve(unit, tile.bits, unit)
    for j in range(16):
        for b in range(TILE):
            d[j * TILE + b] = unit[b] * np.float32(np.int32(codes[j * TILE + b] + low))


@inner
def _take_levels(tile, count):
    """Where a scale is zero, the quants that the descent left."""
    for b in range(count):
        for j in range(16):
            if tile.d[j * TILE + b] == ZERO:
                group, lane = (b * 16 + j) // LANES, (b * 16 + j) % LANES
                for i in range(16):
                    level = tile.levels[(group * 16 + i) * LANES + lane]
                    tile.q[b * 256 + j * 16 + i] = np.uint8(np.int32(level) + 4)


@inner
def _store_q6_k(tile, count, out):
    """Blocks of a tile whose values are known."""
    _units(tile, np.float32(-128.0))
    for k in range(16 * TILE):  # at most 127; an int8 wraps
        code = np.int8(min(tile.codes[k], np.int32(127)))
        tile.codes[k] = np.int32(code)
    _scale_sub_blocks(tile, np.int32(0))
    if _quants_32(tile.x, count, tile.d, tile.zeros, tile.q):
        _leftovers_32(tile.x, count, tile.d, tile.inverse, tile.zeros, tile.q, False)
    for b in range(count):
        block, q = out[b * 210 : b * 210 + 210], tile.q[b * 256 : b * 256 + 256]
        if abs(tile.largest[b]) < _EPS:
            block[:] = 0
            continue
        for h in range(2):
            for i in range(32):
                q0 = q[h * 128 + i]
                q1 = q[h * 128 + i + 32]
                q2 = q[h * 128 + i + 64]
                q3 = q[h * 128 + i + 96]
                block[h * 64 + i] = (q0 & 15) | ((q2 & 15) << 4)
                block[h * 64 + i + 32] = (q1 & 15) | ((q3 & 15) << 4)
                high = (q0 >> 4) | (q1 >> 4 << 2)
                block[128 + h * 32 + i] = high | (q2 >> 4 << 4) | (q3 >> 4 << 6)
        for j in range(16):
            block[192 + j] = np.uint8(tile.codes[j * TILE + b])
        put_half(block, 208, tile.bits[b])


@inner
def _store_q3_k(tile, count, out):
    """Blocks of a tile whose codes and quants are known."""
    for b in range(count):
        block, q = out[b * 110 : b * 110 + 110], tile.q[b * 256 : b * 256 + 256]
        for i in range(32):
            high = 0
            for j in range(8):
                high |= (q[j * 32 + i] >> 2) << j
            block[i] = high
        pack_crumbs(q, block[32:96])
        for j in range(8):
            low, upper = tile.codes[j * TILE + b], tile.codes[(j + 8) * TILE + b]
            block[96 + j] = (low & 15) | ((upper & 15) << 4)
        for j in range(4):
            high = 0
            for k in range(4):
                high |= (tile.codes[(4 * k + j) * TILE + b] >> 4) << (2 * k)
            block[104 + j] = high
        put_half(block, 108, tile.bits[b])


@inner
def q6_k(floats, words, kind, out, memory):
    """Blocks of `quant_types.q6_k`."""
    tile = _new_tile(memory)
    blocks = out.size // 210
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        for lane in range(0, count * 16, LANES):
            _columns(tile.x[lane * 16 :], tile.ws[_L.x :])
            for k in range(16 * LANES):
                tile.ws[_L.w + k] = tile.ws[_L.x + k] * tile.ws[_L.x + k]
            _search_q6_k(tile.ws)
            _keep(tile, lane)
        _store_q6_k(tile, count, out[first * 210 :])
    return -1


@inner
def q6_k_importance(floats, words, kind, table, rows, out, memory):
    """Blocks of `quant_types.q6_k`, by importance: that is the weight, as it is."""
    tile = _new_tile(memory)
    blocks = out.size // 210
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        load_importance(table, rows, first, count, tile.importance)
        for lane in range(0, count * 16, LANES):
            _columns(tile.x[lane * 16 :], tile.ws[_L.x :])
            _columns(tile.importance[lane * 16 :], tile.ws[_L.w :])
            _search_q6_k(tile.ws)
            _keep(tile, lane)
        _store_q6_k(tile, count, out[first * 210 :])
    return -1


@inner
def _descend_rest(tile, n):
    """The first n lanes of `rest`, to the end."""
    rest = tile.rest
    _go_on_q3_k(rest)
    for j in range(n):
        s = np.int64(peek(tile.places, j))
        poke(tile.values, (s & 15) * TILE + (s >> 4), peek(rest, descent_search.SCALE + j))
        at = (s // LANES) * (16 * LANES) + s % LANES
        for i in range(16):
            poke(tile.levels, at + i * LANES, peek(rest, descent_search.Q + i * LANES + j))


@inner
def _descend(tile, count):
    """Scales and quants of all sub-blocks; those that move on go on by themselves."""
    ws, rest, n = tile.ws, tile.rest, 0
    for lane in range(0, count * 16, LANES):
        _columns(tile.x[lane * 16 :], ws[descent_search.X :])
        _start_q3_k(ws)
        levels = tile.levels[lane * 16 :]
        for k in range(16 * LANES):
            levels[k] = ws[descent_search.Q + k]
        for j in range(LANES):
            s = lane + j
            poke(tile.values, (s & 15) * TILE + (s >> 4), peek(ws, descent_search.SCALE + j))
            if peek(ws, descent_search.MOVES + j) == ZERO:
                continue
            for k in range(0, 16 * LANES, LANES):
                poke(rest, descent_search.X + k + n, peek(ws, descent_search.X + k + j))
                poke(rest, descent_search.Q + k + n, peek(ws, descent_search.Q + k + j))
            poke(rest, descent_search.SUM_LX + n, peek(ws, descent_search.SUM_LX + j))
            poke(rest, descent_search.SUM_L2 + n, peek(ws, descent_search.SUM_L2 + j))
            poke(tile.places, n, np.int32(s))
            n += 1
            if n == LANES:
                _descend_rest(tile, n)
                n = 0
    if n > 0:
        _descend_rest(tile, n)


@inner
def q3_k(floats, words, kind, out, memory):
    """Blocks of `quant_types.q3_k`."""
    tile = _new_tile(memory)
    blocks = out.size // 110
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        _descend(tile, count)
        _units(tile, np.float32(-32.0))
        for j in range(16):
            for b in range(TILE):
                code = np.int32(np.int8(tile.codes[j * TILE + b]))  # an int8 wraps
                code = max(min(code, np.int32(31)), np.int32(-32)) + 32
                tile.codes[j * TILE + b] = code if tile.largest[b] != ZERO else 0
        for b in range(TILE):
            tile.unit[b] = tile.unit[b] if tile.largest[b] != ZERO else ZERO
        _scale_sub_blocks(tile, np.int32(-32))
        if _quants_4(tile.x, count, tile.d, tile.zeros, tile.q):
            _take_levels(tile, count)
        _store_q3_k(tile, count, out[first * 110 :])
    return -1


@inner
def q3_k_importance(floats, words, kind, table, rows, out, memory):
    """Blocks of `quant_types.q3_k`, by importance."""
    tile = _new_tile(memory)
    ws, scales = tile.ws, tile.scales_ws
    blocks = out.size // 110
    for first in range(0, blocks, TILE):
        count = min(TILE, blocks - first)
        if not load(floats, words, kind, first * 256, count * 256, tile.x):
            return first
        load_importance(table, rows, first, count, tile.importance)
        mean_squares(tile.x, _TWO, tile.sigma2, tile.levels)
        for lane in range(0, count * 16, LANES):
            _columns(tile.x[lane * 16 :], ws[_L.x :])
            _columns(tile.importance[lane * 16 :], ws[_L.w :])
            for j in range(LANES):
                ws[_L.best + j] = tile.sigma2[(lane + j) // 16]
                ws[_L.sum_l2 + j] = ZERO
            for i in range(16):
                for j in range(LANES):
                    x = ws[_L.x + i * LANES + j]
                    k = _L.w + i * LANES + j
                    ws[k] = ws[k] * np.sqrt(ws[_L.best + j] + x * x)
                    ws[_L.sum_l2 + j] += ws[k]
            for j in range(LANES):
                b, s = (lane + j) // 16, (lane + j) % 16
                scales[_S.w + s * TILE + b] = ws[_L.sum_l2 + j]
            _search_q3_k(ws)
            _keep(tile, lane)
        for k in range(16 * TILE):
            scales[_S.x + k] = tile.values[k]
        _search_scales(scales)
        for j in range(16):
            for b in range(TILE):
                v = scales[_S.best_inverse + b] * tile.values[j * TILE + b]
                code = clamped(v, np.int32(-32), np.int32(31)) + 32
                zero = abs(scales[_S.extreme + b]) < _EPS
                tile.codes[j * TILE + b] = 0 if zero else code
        for b in range(TILE):
            tile.unit[b] = scales[_S.scale + b]
        _scale_sub_blocks(tile, np.int32(-32))
        if _quants_4(tile.x, count, tile.d, tile.zeros, tile.q):
            _leftovers_4(tile.x, count, tile.d, tile.inverse, tile.zeros, tile.q, False)
        _store_q3_k(tile, count, out[first * 110 :])
    return -1
