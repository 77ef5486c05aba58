"""IQ4_NL: 32 weights in 18 bytes, 4.5 bits a weight.

0  d   f16      weight = d * VALUES[q]
2  qs  u8[16]   q, from 0 to 15: byte j holds weights j and, above, j + 16
"""

from __future__ import annotations

import numpy as np

from quant_types.arrays import Array, field, join, namespace
from quant_types.blocks_32 import pack_nibbles, unpack_nibbles
from quant_types.format import BlockFormat
from quant_types.iq4 import error_weights, inverse_of, nearest, search, values_of
from quant_types.k_quants import columns

RECORD = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
assert RECORD.itemsize == 18


def dequantize(data: Array) -> Array:
    """uint8 `[blocks, 18]` -> float32 `[blocks, 32]`."""
    xp = namespace(data)
    d = xp.astype(field(data, RECORD, "d"), xp.float32)
    return d * values_of(unpack_nibbles(field(data, RECORD, "qs")))


def quantize(x: Array, importance: Array | None = None) -> Array:
    """float32 `[blocks, 32]` -> uint8 `[blocks, 18]` (ggml `quantize_iq4_nl`)."""
    d = search(columns(x, 32), error_weights(x, importance))[:, None]
    return join(RECORD, d=d, qs=pack_nibbles(nearest(x * inverse_of(d))))


FORMAT = BlockFormat("IQ4_NL", 20, 32, RECORD, quantize, dequantize, "iq4.iq4_nl")
