"""What the kernels of K-quants share, a tile of super-blocks at a time.

Sub-blocks are searched in groups of `LANES`; the scales that they give are then worked on with one
super-block a lane: `[sub_blocks, TILE]` arrays, flat.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from quant_types.lanes.compile import behind, inner, peek, splat
from quant_types.lanes.scalars import ROUND, ZERO, clamped, from_half, half_bits
from quant_types.lanes.vectors import make_columns

TILE = 16  # super-blocks
LANES = 64  # sub-blocks in a group
_STEP = 16  # weights of a lane in one loop that LLVM unrolls
_I32, _F32 = ir.IntType(32), ir.FloatType()
_256 = np.float32(256.0)
_columns = make_columns(256, TILE)


@inner
def load_importance(table, rows, first, count, tile):
    """Importance of super-blocks `first` to `first + count` into the flat tile."""
    per_row = table.shape[1] // 256
    for b in range(count):
        block = first + b
        part = table[rows[block // per_row]]
        at = block % per_row * 256
        source = part[at : at + 256]
        for i in range(256):
            tile[b * 256 + i] = source[i]


@inner
def mean_squares(tile, factor, sigma2, scratch):
    """`factor * sum(x * x) / 256` of each super-block, its weights added in order; scratch float32
    [256 * TILE]."""
    _columns(tile, scratch)
    for b in range(TILE):
        sigma2[b] = ZERO
    for r in range(0, 256, _STEP):
        for b in range(TILE):
            total = sigma2[b]
            for i in range(_STEP):
                x = scratch[(r + i) * TILE + b]
                total += x * x
            sigma2[b] = total
    for b in range(TILE):
        sigma2[b] = factor * sigma2[b] / _256


@inner
def halve(units, bits, values):
    """float32 units of the super-blocks -> float16 bits (int32), and the float32 they stand for."""
    for b in range(TILE):
        h = half_bits(units[b])
        bits[b] = h
        values[b] = from_half(h)


@inner
def put_half(block, at, bits):
    """Write float16 bits at byte `at`."""
    block[at] = np.uint8(bits & 255)
    block[at + 1] = np.uint8(bits >> 8)


def make_round(length: int, low: int, high: int):
    """`round_all(x, at, minimum, scale, q)`: codes of `length` weights from a place on,
    `clamped((x + minimum) / scale, low, high) - low`, as bytes of q there. Of a loop of 16 LLVM
    makes scalar code."""
    floats, ints = ir.VectorType(_F32, length), ir.VectorType(_I32, length)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def wide(value: Any) -> Any:
            return splat(builder, value, length)

        def same(value: int) -> Any:
            return ir.Constant(ints, [value] * length)

        x, minimum, scale, q = arguments
        v = builder.load(builder.bitcast(x, floats.as_pointer()), align=4)
        v = builder.fdiv(builder.fadd(v, wide(minimum)), wide(scale))
        v = builder.bitcast(builder.fadd(v, ir.Constant(floats, [float(ROUND)] * length)), ints)
        i = builder.sub(builder.and_(v, same(0x7FFFFF)), same(0x400000))  # as `nearest_int`
        for sign, end in (("<", high), (">", low)):
            i = builder.select(builder.icmp_signed(sign, i, same(end)), i, same(end))
        found = builder.trunc(builder.sub(i, same(low)), ir.VectorType(ir.IntType(8), length))
        builder.store(found, builder.bitcast(q, found.type.as_pointer()), align=1)
        return context.get_dummy_value()

    @intrinsic
    def round_all(typing, x, minimum, scale, q):
        return types.void(types.voidptr, types.float32, types.float32, types.voidptr), code

    return round_all


def make_quants(length: int, low: int, high: int):
    """Second pass: `quants(x, count, d, dm, q)`, under the stored scales, less `low`.

    Where a scale came out as zero, `q` stays as it is, and True is returned. d, dm:
    `[sub_blocks, TILE]`.
    """
    sub_blocks = 256 // length
    round_all = make_round(length, low, high)

    @inner
    def quants(x, count, d, dm, q):
        left = False
        for b in range(count):
            for j in range(sub_blocks):
                s, at = j * TILE + b, b * 256 + j * length
                scale = peek(d, s)
                if scale == ZERO:
                    left = True
                else:
                    round_all(behind(x, at), peek(dm, s), scale, behind(q, at))
        return left

    return quants


def make_leftovers(length: int, low: int, high: int):
    """`leftovers(x, count, d, inverse, bottom, q, clamps_first)`: the search's quants.

    They stay where a scale came out as zero, and are zeros where the search found nothing
    (inverse 0), as ggml leaves them.
    """
    sub_blocks = 256 // length
    low_int, high_int, shift = np.int32(low), np.int32(high), np.int32(-low)
    high_float = np.float32(high)

    @inner
    def leftovers(x, count, d, inverse, bottom, q, clamps_first):
        for b in range(count):
            for j in range(sub_blocks):
                s = j * TILE + b
                if d[s] == ZERO:
                    base = shift if inverse[s] != ZERO else np.int32(0)
                    at = b * 256 + j * length
                    for i in range(length):
                        v = inverse[s] * (x[at + i] - bottom[s])
                        if clamps_first:
                            v = v if v > ZERO else ZERO
                            v = v if v < high_float else high_float
                        q[at + i] = np.uint8(clamped(v, low_int, high_int) + base)

    return leftovers


@inner
def pack_crumbs(q, qs):
    """2-bit quants of a super-block into 64 bytes (`quant_types.k_quants.pack_crumbs`)."""
    for h in range(2):
        for i in range(32):
            k = h * 128 + i
            low = (q[k] & 3) | ((q[k + 32] & 3) << 2)
            qs[h * 32 + i] = low | ((q[k + 64] & 3) << 4) | ((q[k + 96] & 3) << 6)
