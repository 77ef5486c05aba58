"""What the kernels of IQ2 and IQ3 make of a tile before they search, and how a group is moved.

A tile is `LANES` sub-blocks. Weights are seen in eights for their signs, and in columns for the
search: `[length, LANES]` arrays, flat.
"""

from __future__ import annotations

import numpy as np

from quant_types.grids import LIST
from quant_types.lanes.compile import inner
from quant_types.lanes.scalars import ZERO, bits

LANES = 32
LARGEST = np.float32(np.finfo(np.float32).max)
_LARGEST_BITS = np.int32(0x7F7FFFFF)
_FAR = np.int32(1 << 30)


def make_mean_squares(factor: int):
    """`mean_squares(x, sigma2, blocks)`: `factor * sum(x * x) / 256` of each block of 256."""
    factor_float = np.float32(factor)
    whole = np.float32(256.0)

    @inner
    def mean_squares(x, sigma2, blocks):
        for b in range(blocks):
            sigma2[b] = ZERO
        for i in range(0, 256, 8):
            for b in range(blocks):
                total = sigma2[b]
                for j in range(8):
                    v = x[b * 256 + i + j]
                    total += v * v
                sigma2[b] = total
        for b in range(blocks):
            sigma2[b] = factor_float * sigma2[b] / whole

    return mean_squares


@inner
def weigh(x, w, sigma2, blocks):
    """Importance becomes the weight of each error."""
    for b in range(blocks):
        for i in range(256):
            k = b * 256 + i
            w[k] = w[k] * np.sqrt(sigma2[b] + x[k] * x[k])


def make_unweighted(floor: float):
    """`unweighted(x, w, sigma2, blocks)`: the weight of each error without importance."""
    floor_float = np.float32(floor)

    @inner
    def unweighted(x, w, sigma2, blocks):
        for b in range(blocks):
            low = floor_float * sigma2[b] if floor else ZERO
            for i in range(256):
                k = b * 256 + i
                w[k] = low + x[k] * x[k]

    return unweighted


def make_magnitudes(parity: bool):
    """`magnitudes(x, w, signs)`: weights become magnitudes, their signs a byte of each eight.

    With parity, of an eight with an odd number of negative ones the first of least weight is turned.
    """

    @inner
    def magnitudes(x, w, signs):
        for g in range(signs.size):
            sign, turned, least = np.int32(0), np.int32(1), ZERO
            for i in range(8):
                v = x[8 * g + i]
                bit = np.int32(1 << i)
                sign |= bit if v < ZERO else np.int32(0)
                if parity:
                    weight = w[8 * g + i] * v * v
                    if i == 0:
                        least = weight
                    less = weight < least
                    least = weight if less else least
                    turned = bit if less else turned
            if parity:
                odd = np.int32(sign ^ (sign >> 4))
                odd = np.int32(odd ^ (odd >> 2))
                odd = np.int32(odd ^ (odd >> 1))
                turned = turned if (odd & 1) == 1 else np.int32(0)
                sign = np.int32(sign ^ turned)
                for i in range(8):
                    v = abs(x[8 * g + i])
                    x[8 * g + i] = -v if (turned >> i) & 1 == 1 else v
            signs[g] = sign
        if not parity:
            for k in range(x.size):
                x[k] = abs(x[k])

    return magnitudes


def make_columns(length: int):
    """`columns(part, column)`: `[LANES, length]` to `[length, LANES]`."""

    @inner
    def columns(part, column):
        for j in range(LANES):
            for i in range(length):
                column[i * LANES + j] = part[j * length + i]

    return columns


def make_nearest(dim: int):
    """`nearest(x, w, at, scale, near, first, count, least, chunk)`: the place in a list of the
    candidate of least weighted error, the first of equals; negative if all errors overflow.

    Args of `nearest`:
        x, w: columns, the group's weights at `at`, `at + LANES` and so on.
        near, first, count: the grid's, and the list's first chunk and number of chunks.
        least, chunk: float32 and int32 scratch of `LIST`.
    """

    @inner
    def nearest(x, w, at, scale, near, first, count, least, chunk):
        x0, x1, x2, x3 = x[at], x[at + LANES], x[at + 2 * LANES], x[at + 3 * LANES]
        w0, w1, w2, w3 = w[at], w[at + LANES], w[at + 2 * LANES], w[at + 3 * LANES]
        if dim == 8:
            high = at + 4 * LANES
            x4, x5, x6, x7 = x[high], x[high + LANES], x[high + 2 * LANES], x[high + 3 * LANES]
            w4, w5, w6, w7 = w[high], w[high + LANES], w[high + 2 * LANES], w[high + 3 * LANES]
        for t in range(LIST):
            least[t] = LARGEST
            chunk[t] = 0
        for c in range(count):
            start = (first + c) * (dim * LIST)
            q = near[start : start + dim * LIST]
            for t in range(LIST):
                d = scale * np.float32(q[t]) - x0
                error = w0 * d * d
                d = scale * np.float32(q[LIST + t]) - x1
                error += w1 * d * d
                d = scale * np.float32(q[2 * LIST + t]) - x2
                error += w2 * d * d
                d = scale * np.float32(q[3 * LIST + t]) - x3
                error += w3 * d * d
                if dim == 8:
                    d = scale * np.float32(q[4 * LIST + t]) - x4
                    error += w4 * d * d
                    d = scale * np.float32(q[5 * LIST + t]) - x5
                    error += w5 * d * d
                    d = scale * np.float32(q[6 * LIST + t]) - x6
                    error += w6 * d * d
                    d = scale * np.float32(q[7 * LIST + t]) - x7
                    error += w7 * d * d
                closer = error < least[t]
                least[t] = error if closer else least[t]
                chunk[t] = np.int32(c) if closer else chunk[t]
        best = _LARGEST_BITS
        for t in range(LIST):
            b = bits(least[t])
            best = b if b < best else best
        if best == _LARGEST_BITS:
            return np.int32(-1)
        place = _FAR
        for t in range(LIST):
            here = np.int32(np.int32(chunk[t] * LIST) + np.int32(t))
            here = here if bits(least[t]) == best else _FAR
            place = here if here < place else place
        return place

    return nearest
