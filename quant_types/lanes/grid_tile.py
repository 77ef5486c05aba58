"""What the kernels of IQ2 and IQ3 make of a tile before they search.

Weights are seen in blocks of 256, in eights for their signs, and in columns for the search.
"""

from __future__ import annotations

import numpy as np

from quant_types.lanes.compile import inner
from quant_types.lanes.grid_work import BLOCKS
from quant_types.lanes.scalars import ZERO


def make_mean_squares(factor: int):
    """`mean_squares(x, sigma2)`: `factor * sum(x * x) / 256` of each block of 256."""
    factor_float = np.float32(factor)
    whole = np.float32(256.0)

    @inner
    def mean_squares(x, sigma2):
        for b in range(BLOCKS):
            sigma2[b] = ZERO
        for i in range(0, 256, 8):
            for b in range(BLOCKS):
                total = sigma2[b]
                for j in range(8):
                    v = x[b * 256 + i + j]
                    total += v * v
                sigma2[b] = total
        for b in range(BLOCKS):
            sigma2[b] = factor_float * sigma2[b] / whole

    return mean_squares


@inner
def weigh(x, w, sigma2):
    """Importance becomes the weight of each error."""
    for b in range(BLOCKS):
        for i in range(256):
            k = b * 256 + i
            w[k] = w[k] * np.sqrt(sigma2[b] + x[k] * x[k])


def make_unweighted(floor: float):
    """`unweighted(x, w, sigma2)`: the weight of each error without importance."""
    floor_float = np.float32(floor)

    @inner
    def unweighted(x, w, sigma2):
        for b in range(BLOCKS):
            low = floor_float * sigma2[b] if floor else ZERO
            for i in range(256):
                k = b * 256 + i
                w[k] = low + x[k] * x[k]

    return unweighted


def make_magnitudes(parity: bool, length: int, lanes: int):
    """`magnitudes(x, w, signs)`, of columns `[length, lanes]`: weights become magnitudes, their
    signs a byte of each eight, int32 `[length / 8, lanes]`.

    With parity, where an odd number of the eight is negative, the first of least weight is turned.
    """

    @inner
    def magnitudes(x, w, signs):
        for g in range(length // 8):
            for j in range(lanes):
                sign, turned, least = np.int32(0), np.int32(1), ZERO
                for i in range(8):
                    k = (8 * g + i) * lanes + j
                    v = x[k]
                    bit = np.int32(1 << i)
                    sign = np.int32(sign | (bit if v < ZERO else np.int32(0)))
                    if parity:
                        weight = w[k] * v * v
                        if i == 0:
                            least = weight
                        less = weight < least
                        least = weight if less else least
                        turned = bit if less else turned
                if parity:
                    odd = np.int32(sign ^ np.int32(sign >> np.int32(4)))
                    odd = np.int32(odd ^ np.int32(odd >> np.int32(2)))
                    odd = np.int32(np.int32(odd ^ np.int32(odd >> np.int32(1))) & np.int32(1))
                    turned = turned if odd == np.int32(1) else np.int32(0)
                    sign = np.int32(sign ^ turned)
                signs[g * lanes + j] = sign
                for i in range(8):
                    k = (8 * g + i) * lanes + j
                    v = abs(x[k])
                    if parity:
                        v = -v if np.int32(turned & np.int32(1 << i)) != np.int32(0) else v
                    x[k] = v

    return magnitudes
