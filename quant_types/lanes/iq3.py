"""IQ3_XXS and IQ3_S as kernels."""

from __future__ import annotations

import numpy as np

from quant_types import iq3_s as s
from quant_types import iq3_xxs as xxs
from quant_types.lanes.compile import inner
from quant_types.lanes.grid_kernels import make_kernels, pack_signs, put_word
from quant_types.lanes.k_blocks import put_half


@inner
def _store_xxs(tile, b, record):
    put_half(record, 0, tile.d[b])
    for k in range(64):
        record[2 + k] = np.uint8(tile.points[b * 64 + k])
    for j in range(8):
        word = pack_signs(tile.signs, b * 32 + 4 * j)
        put_word(record, 66 + 4 * j, np.int32(word | (tile.codes[b * 8 + j] << 28)))


@inner
def _store_s(tile, b, record):
    put_half(record, 0, tile.d[b])
    for k in range(2, 110):
        record[k] = np.uint8(0)
    at = 0  # the sub-block's place: behind an empty one ggml does not move on
    for j in range(8):
        if tile.used[b * 8 + j] != 0:
            high = np.int32(0)
            for k in range(8):
                point = tile.points[b * 64 + j * 8 + k]
                record[2 + at * 8 + k] = np.uint8(point)
                high |= np.int32(point >> 8) << k
            record[66 + j] = np.uint8(high)
            for i in range(4):
                record[74 + at * 4 + i] = np.uint8(tile.signs[b * 32 + j * 4 + i])
            at += 1
    for j in range(4):
        codes = tile.codes[b * 8 + 2 * j] | (tile.codes[b * 8 + 2 * j + 1] << 4)
        record[106 + j] = np.uint8(codes)


iq3_xxs, iq3_xxs_importance = make_kernels(xxs.NAME, xxs.SEARCH, xxs.RECORD.itemsize, _store_xxs)
iq3_s, iq3_s_importance = make_kernels(s.NAME, s.SEARCH, s.RECORD.itemsize, _store_s)
