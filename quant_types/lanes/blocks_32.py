"""Q4_0, Q4_1, Q5_0 and Q5_1 as kernels."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import as_longs, inner, make_records
from quant_types.lanes.groups import pack_fifth, pack_nibbles
from quant_types.lanes.scalars import load
from quant_types.lanes.tile_32 import (
    BLOCKS,
    make_minimum,
    make_symmetric,
    new_tile,
    symmetric,
    weigh,
    with_minimum,
)


@inner
def store_q4_0(tile, records, first, count):
    """The tile's first `count` blocks as records from `first`, uint16 [9] each."""
    q = as_longs(tile.q)
    for b in range(count):
        record = records[first + b]
        record[0] = tile.d_bits[b]
        pack_nibbles(q, b, record[1:])


@inner
def store_q4_1(tile, records, first, count):
    """As `store_q4_0`, uint16 [10]."""
    q = as_longs(tile.q)
    for b in range(count):
        record = records[first + b]
        record[0] = tile.d_bits[b]
        record[1] = tile.m_bits[b]
        pack_nibbles(q, b, record[2:])


@inner
def store_q5_0(tile, records, first, count):
    """As `store_q4_0`, uint16 [11]."""
    q = as_longs(tile.q)
    for b in range(count):
        record = records[first + b]
        record[0] = tile.d_bits[b]
        pack_fifth(q, b, record[1:])
        pack_nibbles(q, b, record[3:])


@inner
def store_q5_1(tile, records, first, count):
    """As `store_q4_0`, uint16 [12]."""
    q = as_longs(tile.q)
    for b in range(count):
        record = records[first + b]
        record[0] = tile.d_bits[b]
        record[1] = tile.m_bits[b]
        pack_fifth(q, b, record[2:])
        pack_nibbles(q, b, record[4:])


def make_plain(quantize, levels, store, words_each):
    """The body of a kernel without importance; a record is uint16 [words_each]."""

    levels_float = np.float32(levels)
    records_of = make_records(np.uint16, words_each)

    @inner
    def plain(floats, words, kind, out, memory):
        tile = new_tile(memory)
        records = records_of(out)
        for first in range(0, len(records), BLOCKS):
            count = min(BLOCKS, len(records) - first)
            if not load(floats, words, kind, first * 32, count * 32, tile.x):
                return first
            quantize(tile, levels_float)
            store(tile, records, first, count)
        return -1

    return plain


def make_weighted(quantize, store, words_each):
    """The body of a kernel with importance; a record is uint16 [words_each]."""
    records_of = make_records(np.uint16, words_each)

    @inner
    def weighted(floats, words, kind, table, rows, out, memory):
        tile = new_tile(memory)
        records = records_of(out)
        for first in range(0, len(records), BLOCKS):
            count = min(BLOCKS, len(records) - first)
            if not load(floats, words, kind, first * 32, count * 32, tile.x):
                return first
            weigh(tile, floats, words, kind, table, rows, first * 32, count * 32)
            quantize(tile)
            store(tile, records, first, count)
        return -1

    return weighted


q4_0 = make_plain(symmetric, 8, store_q4_0, 9)
q4_0_importance = make_weighted(make_symmetric(8), store_q4_0, 9)
q4_1 = make_plain(with_minimum, 15, store_q4_1, 10)
q4_1_importance = make_weighted(make_minimum(15), store_q4_1, 10)
q5_0 = make_plain(symmetric, 16, store_q5_0, 11)
q5_0_importance = make_weighted(make_symmetric(16), store_q5_0, 11)
q5_1 = make_plain(with_minimum, 31, store_q5_1, 12)
q5_1_importance = make_weighted(make_minimum(31), store_q5_1, 12)
