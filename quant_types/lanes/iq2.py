"""IQ2_XXS, IQ2_XS and IQ2_S as kernels."""

from __future__ import annotations

import numpy as np

from quant_types import iq2_s as s
from quant_types import iq2_xs as xs
from quant_types import iq2_xxs as xxs
from quant_types.lanes.compile import inner
from quant_types.lanes.grid_kernels import make_kernels, pack_signs, put_word
from quant_types.lanes.k_blocks import put_half


@inner
def _store_xxs(tile, b, record):
    put_half(record, 0, tile.d[b])
    for j in range(8):
        at = 2 + 8 * j
        for k in range(4):
            record[at + k] = np.uint8(tile.points[b * 32 + 4 * j + k])
        word = pack_signs(tile.signs, b * 32 + 4 * j)
        put_word(record, at + 4, np.int32(word | (tile.codes[b * 8 + j] << 28)))


@inner
def _put_codes(tile, b, record, at):
    for j in range(8):
        codes = tile.codes[b * 16 + 2 * j] | (tile.codes[b * 16 + 2 * j + 1] << 4)
        record[at + j] = np.uint8(codes)


@inner
def _store_xs(tile, b, record):
    put_half(record, 0, tile.d[b])
    for k in range(32):
        word = tile.points[b * 32 + k] | (tile.signs[b * 32 + k] << 9)
        record[2 + 2 * k] = np.uint8(word)
        record[3 + 2 * k] = np.uint8(word >> 8)
    _put_codes(tile, b, record, 66)


@inner
def _store_s(tile, b, record):
    put_half(record, 0, tile.d[b])
    for k in range(32):
        record[2 + k] = np.uint8(tile.points[b * 32 + k])
        record[34 + k] = np.uint8(tile.signs[b * 32 + k])
    for j in range(8):
        high = np.int32(0)
        for k in range(4):
            high |= np.int32(tile.points[b * 32 + 4 * j + k] >> 8) << (2 * k)
        record[66 + j] = np.uint8(high)
    _put_codes(tile, b, record, 74)


_, iq2_xxs_importance = make_kernels(xxs.NAME, xxs.SEARCH, xxs.RECORD.itemsize, _store_xxs)
_, iq2_xs_importance = make_kernels(xs.NAME, xs.SEARCH, xs.RECORD.itemsize, _store_xs)
iq2_s, iq2_s_importance = make_kernels(s.NAME, s.SEARCH, s.RECORD.itemsize, _store_s)
