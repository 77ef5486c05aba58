"""What the K-quants share: super-blocks of 256 weights, seen as columns of sub-blocks."""

from __future__ import annotations

from quant_types.arrays import Array, contiguous, namespace, nearest_int, sum_rows

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
    return xp.sqrt(sum_rows(x * x) / 32) + xp.abs(x)


def largest_as_unit(v: Array, top: int) -> tuple[Array, Array]:
    """`[blocks, n]` -> the unit that makes the largest value `top`, and nearest_int in that unit."""
    xp = namespace(v)
    largest = xp.max(xp.clip(v, 0.0, None), axis=1, keepdims=True)
    zero = xp.zeros_like(largest)
    inverse = xp.where(largest > 0, top / largest, zero)
    return largest / top, nearest_int(inverse * v)


def quantize_again(x: Array, d: Array, dm: Array | float, low: int, top: int, quants: Array) -> Array:
    """Quants under the stored scales; where the scale came out as zero, those of the search.

    Args:
        x: float32 `[n, lanes]`.
        d: float32 `[lanes]`; dm: float32 `[lanes]` or 0, weight = d * q - dm.
        low, top: range of the quants.
        quants: int32 `[n, lanes]`, what the search found.
    """
    xp = namespace(x)
    again = xp.clip(nearest_int((x + dm) / d), low, top)
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
