"""What the K-quants share: super-blocks of 256 weights, seen as columns of sub-blocks."""

from __future__ import annotations

from typing import NamedTuple

from quant_types.arrays import (
    Array,
    clamp,
    contiguous,
    namespace,
    nearest_int,
    number,
    square_root,
    sum_rows,
)
from quant_types.search import MinSteps, search_min, search_positive

QK_K = 256  # weights in a super-block


def columns(x: Array, length: int) -> Array:
    """`[blocks, 256]` -> `[length, blocks * 256 / length]`: a sub-block a column."""
    xp = namespace(x)
    return contiguous(xp.permute_dims(xp.reshape(x, (-1, length)), (1, 0)))


def rows(a: Array) -> Array:
    """The inverse of `columns`."""
    xp = namespace(a)
    return xp.reshape(xp.permute_dims(a, (1, 0)), (-1, QK_K))


def half_and_float(v: Array) -> tuple[Array, Array]:
    """float32 -> the float16 that is stored, and the float32 that it stands for."""
    xp = namespace(v)
    half = xp.astype(v, xp.float16)
    return half, xp.astype(half, xp.float32)


def mean_weights(x: Array) -> Array:
    """Weights without an importance matrix, `[32, lanes]`: root mean square plus magnitude."""
    xp = namespace(x)
    return square_root(sum_rows(x * x) / 32) + xp.abs(x)


def importance_weights(x: Array, importance: Array, length: int, factor: int) -> Array:
    """Weights with an importance matrix: `importance * sqrt(sigma2 + x * x)`, in columns.

    Args:
        x, importance: float32 `[blocks, 256]`.
        length: weights in a sub-block.
        factor: sigma2 is the super-block's mean square times this.
    """
    xp = namespace(x)
    x = contiguous(xp.permute_dims(x, (1, 0)))
    sigma2 = factor * sum_rows(x * x) / QK_K
    weights = square_root(sigma2 + x * x) * xp.permute_dims(importance, (1, 0))
    return columns(xp.permute_dims(weights, (1, 0)), length)


def largest_as_unit(v: Array, top: int) -> tuple[Array, Array]:
    """`[blocks, n]` -> the unit that makes the largest `top`, and nearest_int in that unit."""
    xp = namespace(v)
    largest = clamp(xp.max(v, axis=1, keepdims=True), 0.0, None) + 0.0
    zero = xp.zeros_like(largest)
    inverse = xp.where(largest > 0, number(top, v) / largest, zero)
    return largest / number(top, v), nearest_int(inverse * v)


def quantize_again(
    x: Array, d: Array, dm: Array | float, low: int, top: int, quants: Array
) -> Array:
    """Quants under the stored scales; where the scale came out as zero, those of the search.

    Args:
        x: float32 `[n, lanes]`.
        d: float32 `[lanes]`; dm: float32 `[lanes]` or 0, weight = d * q - dm.
        low, top: range of the quants.
        quants: int32 `[n, lanes]`, what the search found.
    """
    xp = namespace(x)
    again = clamp(nearest_int((x + dm) / d), low, top)
    return xp.where(d == 0, quants, again)


def pack_scales(ls: Array, lm: Array) -> Array:
    """6-bit scales and minimums, int32 `[blocks, 8]` each -> int32 `[blocks, 12]`.

    Bytes 0-3 and 4-7: the first four scales and minimums, above them the high 2 bits of the last
    four; bytes 8-11: the low 4 bits of the last four, scale below minimum.
    """
    xp = namespace(ls)
    return xp.concat(
        [
            ls[:, :4] | (ls[:, 4:] >> 4 << 6),
            lm[:, :4] | (lm[:, 4:] >> 4 << 6),
            (ls[:, 4:] & 15) | ((lm[:, 4:] & 15) << 4),
        ],
        axis=1,
    )


def unpack_scales(packed: Array) -> tuple[Array, Array]:
    """`[blocks, 12]` -> scales and minimums `[blocks, 8]` (ggml `get_scale_min_k4`)."""
    xp = namespace(packed)
    a, b, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        xp.concat([a & 63, (low & 15) | (a >> 6 << 4)], axis=1),
        xp.concat([b & 63, (low >> 4) | (b >> 6 << 4)], axis=1),
    )


def weighted_steps(top: int) -> MinSteps:
    """What the search tries with an importance matrix, whatever the format."""
    return MinSteps(top, start=-0.9, delta=0.05, last=36, clamps_first=True)


def search_min_weighted(
    x: Array, importance: Array, length: int, factor: int, top: int, scale_top: int
) -> tuple[Array, Array, Array, Array, Array]:
    """The search with an importance matrix, for sub-blocks and then for their scales.

    Args:
        x, importance: float32 `[blocks, 256]`.
        length: weights in a sub-block; `n` below is 256 / length.
        factor: as for `importance_weights`.
        top, scale_top: the greatest quant, and the greatest scale and minimum.

    Returns:
        d, dmin: float32 `[blocks, 1]`; scales, mins: int32 `[blocks, n]`, wrapped as in a uint8;
        quants: int32 `[length, lanes]`.
    """
    xp = namespace(x)
    w = importance_weights(x, importance, length, factor)
    scale, minimum, quants = search_min(columns(x, length), w, weighted_steps(top))
    n = QK_K // length
    sums = xp.reshape(sum_rows(w), (-1, n))
    both = xp.concat([xp.reshape(scale, (-1, n)), xp.reshape(minimum, (-1, n))], axis=0)
    d, codes = search_positive(
        contiguous(xp.permute_dims(both, (1, 0))),
        contiguous(xp.permute_dims(xp.concat([sums, sums], axis=0), (1, 0))),
        scale_top,
    )
    d = xp.reshape(d, (-1, 1))
    codes = xp.permute_dims(codes, (1, 0))
    blocks = x.shape[0]
    return d[:blocks], d[blocks:], codes[:blocks], codes[blocks:], quants


class MinBlocks(NamedTuple):
    """Q4_K and Q5_K before their quants are packed."""

    d: Array  # float16 [blocks, 1]
    dmin: Array  # float16 [blocks, 1]
    scales: Array  # int32 [blocks, 12]
    quants: Array  # int32 [blocks, 256]


def quantize_min_32(x: Array, importance: Array | None, steps: MinSteps) -> MinBlocks:
    """Scales, minimums and quants of Q4_K and Q5_K (ggml `quantize_row_q4_K_ref`, `_impl`)."""
    xp = namespace(x)
    lanes = columns(x, 32)
    if importance is None:
        scale, minimum, quants = search_min(lanes, mean_weights(lanes), steps)
        d, ls = largest_as_unit(xp.reshape(scale, (-1, 8)), 63)
        dmin, lm = largest_as_unit(xp.reshape(minimum, (-1, 8)), 63)
        ls, lm = clamp(ls & 255, 0, 63), clamp(lm & 255, 0, 63)
    else:
        d, dmin, ls, lm, quants = search_min_weighted(x, importance, 32, 2, steps.top, 63)
        if steps.top == 31:  # Q5_K bounds them once more: a wrapped one is 63
            ls, lm = clamp(ls, 0, 63), clamp(lm, 0, 63)
    d, d_float = half_and_float(d)
    dmin, dmin_float = half_and_float(dmin)
    packed = pack_scales(ls, lm) & 255
    sc, m = unpack_scales(packed)
    quants = quantize_again(
        lanes,
        xp.reshape(d_float * xp.astype(sc, xp.float32), (-1,)),
        xp.reshape(dmin_float * xp.astype(m, xp.float32), (-1,)),
        0,
        steps.top,
        quants,
    )
    return MinBlocks(d, dmin, packed, rows(quants))


def dequantize_min_32(d: Array, dmin: Array, scales: Array, q: Array) -> Array:
    """Weights of Q4_K and Q5_K: float16 `[blocks, 1]`, uint8 `[blocks, 12]`, q `[blocks, 256]`.

    Returns:
        float32 `[blocks, 256]`.
    """
    xp = namespace(q)
    sc, m = unpack_scales(scales)
    d = xp.astype(d, xp.float32) * xp.astype(sc, xp.float32)
    dm = xp.astype(dmin, xp.float32) * xp.astype(m, xp.float32)
    x = xp.reshape(xp.astype(q, xp.float32), (-1, 8, 32)) * d[:, :, None] - dm[:, :, None]
    return xp.reshape(x, (-1, QK_K))


def pack_crumbs(q: Array) -> Array:
    """2-bit quants, int32 `[blocks, 256]` -> `[blocks, 64]`, as Q2_K and Q3_K hold them.

    Byte 32 * h + j holds weights 128 * h + j + 0, 32, 64 and 96, from low to high.
    """
    xp = namespace(q)
    q = xp.reshape(q, (-1, 2, 4, 32))
    packed = q[:, :, 0] | (q[:, :, 1] << 2) | (q[:, :, 2] << 4) | (q[:, :, 3] << 6)
    return xp.reshape(packed, (-1, 64))


def unpack_crumbs(qs: Array) -> Array:
    """uint8 `[blocks, 64]` -> uint8 `[blocks, 256]`, the inverse of `pack_crumbs`."""
    xp = namespace(qs)
    qs = xp.reshape(qs, (-1, 2, 1, 32))
    q = xp.concat([qs & 3, qs >> 2 & 3, qs >> 4 & 3, qs >> 6], axis=2)
    return xp.reshape(q, (-1, QK_K))
