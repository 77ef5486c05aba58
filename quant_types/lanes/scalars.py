"""Bits and rounding of single values, and the tile loader: what every kernel is made of."""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import inner

F32, BF16, F16 = 0, 1, 2  # kinds of source

ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds half to even
ZERO = np.float32(0.0)
ONE = np.float32(1.0)
_INFINITE = np.int32(0x7F800000)
_LARGE = np.int32(0x477FF000)  # 65520.0, which rounds to a float16 that is infinite
_TWO_112 = np.float32(2.0**112)
_HALF = np.float32(0.5)


@inner
def bits(v):
    """float32 -> its bits, int32."""
    return np.float32(v).view(np.int32)


@inner
def from_bits(i):
    """int32 -> the float32 of these bits."""
    return np.int32(i).view(np.float32)


@inner
def nearest_int(v):
    """ggml `nearest_int`, int32: half to even; out of range or NaN, what its bits give."""
    return np.int32(np.int32(bits(v + ROUND) & np.int32(0x7FFFFF)) - np.int32(0x400000))


@inner
def clamped(v, low, high):
    """`nearest_int(v)` within int32 `low` to `high`."""
    i = nearest_int(v)
    i = i if i < high else high
    return i if i > low else low


@inner
def half_bits(v):
    """float32 -> bits of the nearest float16, int32: half to even, past the range infinity."""
    b = bits(v)
    sign = np.int32(np.int32(b >> np.int32(16)) & np.int32(0x8000))
    a = np.int32(b & np.int32(0x7FFFFFFF))
    # Normal: rebias the exponent, add half of what is cut off, less one where that is even.
    odd = np.int32(np.int32(a >> np.int32(13)) & np.int32(1))
    normal = np.int32(np.int32(a + odd + np.int32(0xFFF - (112 << 23))) >> np.int32(13))
    # Denormal: the addition of 0.5 rounds at the place of float16's last bit.
    tiny = np.int32(bits(from_bits(a) + _HALF) - np.int32(0x3F000000))
    h = normal if a >= np.int32(0x38800000) else tiny
    h = h if a < np.int32(0x477FF000) else np.int32(0x7C00)
    h = h if a <= _INFINITE else np.int32(0x7E00)
    return np.int32(h | sign)


@inner
def from_half(h):
    """Bits of a float16 (int32) -> float32."""
    a = np.int32(np.int32(h & np.int32(0x7FFF)) << np.int32(13))
    v = bits(from_bits(a) * _TWO_112)
    v = v if a < np.int32(0x0F800000) else np.int32(a | _INFINITE)
    return from_bits(np.int32(v | np.int32(np.int32(h & np.int32(0x8000)) << np.int32(16))))


@inner
def load(floats, words, kind, start, count, tile):
    """Decode `count` weights from `start` into float32 `tile`; False if one is not finite, or so
    large that a float16 made of it may not be."""
    worst = np.int32(0)
    # Slices: an index that cannot be negative is one that LLVM turns into SIMD loads.
    if kind == F32:
        floats = floats[start : start + count]
        for i in range(floats.size):
            v = floats[i]
            tile[i] = v
            a = np.int32(bits(v) & np.int32(0x7FFFFFFF))
            worst = a if a > worst else worst
        return worst < _LARGE
    words = words[start : start + count]
    if kind == BF16:
        for i in range(words.size):
            b = np.int32(np.int32(words[i]) << np.int32(16))
            tile[i] = from_bits(b)
            a = np.int32(b & np.int32(0x7FFFFFFF))
            worst = a if a > worst else worst
        return worst < _LARGE
    for i in range(words.size):
        h = np.int32(words[i])
        tile[i] = from_half(h)
        a = np.int32(h & np.int32(0x7FFF))
        worst = a if a > worst else worst
    return worst < np.int32(0x7C00)
