"""What IQ2 and IQ3 share: magnitudes times a scale, each group moved to a point of a grid.

ggml's loops over sub-blocks in `quantize_row_iq2_xxs_impl`, `..._iq2_xs_...`, `..._iq2_s_...`,
`..._iq3_xxs_...` and `..._iq3_s_...`, sub-blocks side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
from quant_types.errors import OutOfRange
from quant_types.grids import LIST, Grid
from quant_types.k_quants import QK_K
from quant_types.search import search_positive

LARGEST = float(np.finfo(np.float32).max)
_PIECE = 1 << 14  # candidates that are compared at once


class Search(NamedTuple):
    """How a format searches.

    Attributes:
        length: weights in a sub-block.
        tries: scales that are tried on either side of the first.
        step: between their inverses, in levels.
        epsilon: a sub-block whose largest magnitude is below it counts as zero.
        factor: of the mean square in the weight of an error.
        fudge: what ggml multiplies the stored scale by.
        floor: without importance an error's weight is this times the mean square, plus x squared.
        parity: signs have an even sum: where they have not, that of least weight is turned.
        least_squares: the first scale is that of `make_qp_quants`.
        again: which groups are rounded once more under the best scale: all of them, all of a
            sub-block of which one was "off" the grid, or "those" that were off it.
    """

    length: int
    tries: int
    step: float
    epsilon: float
    factor: int
    fudge: float
    parity: bool
    floor: float = 0.0
    least_squares: bool = False
    again: str = "those"

    def numerators(self, base: int) -> list[float]:
        """The inverse scales that are tried, times the largest magnitude."""
        top, step = np.float32(2 * base - 1), np.float32(self.step)
        return [float(top + np.float32(k) * step) for k in range(-self.tries, self.tries + 1)]


class SubBlocks(NamedTuple):
    """Sub-blocks, as they are stored: `n` of them in a block of 256 weights."""

    d: Array  # float32 [blocks, 1]
    codes: Array  # int32 [blocks, n]: scales, from 0 to 15
    points: Array  # int32 [blocks, 256 / dim]
    signs: Array  # int32 [blocks, 32]: bit i is set where weight i of eight is negative
    empty: Array  # bool [blocks, n]: sub-blocks that count as zero


def table(values: np.ndarray, like: Array) -> Array:
    """A table as an array of the kind of `like`."""
    if isinstance(like, np.ndarray):
        return values
    return namespace(like).asarray(values.copy(), device=like.device)


def quantize_sub_blocks(x: Array, importance: Array | None, grid: Grid, how: Search) -> SubBlocks:
    """Scales, points and signs of whole blocks.

    Args:
        x, importance: float32 `[blocks, 256]`.
        grid: the format's.
        how: likewise.

    Raises:
        OutOfRange: an error of a sub-block is not a number, which stops ggml too.
    """
    xp = namespace(x)
    n = QK_K // how.length
    columns = contiguous(xp.permute_dims(x, (1, 0)))
    sigma2 = (how.factor * sum_rows(columns * columns) / QK_K)[:, None]
    square = x * x
    if importance is None:
        w = how.floor * sigma2 + square if how.floor else square
    else:
        w = importance * square_root(sigma2 + square)
    negative = x < 0
    values = xp.abs(x) + 0.0
    if how.parity:
        values, negative = _even_signs(values, negative, w * x * x)
    eights = xp.reshape(xp.astype(negative, xp.int32), (-1, 32, 8))
    signs = eights[:, :, 0]
    for i in range(1, 8):
        signs = signs | (eights[:, :, i] << i)
    values, w = (xp.reshape(a, (-1, how.length)) for a in (values, w))
    largest = values[:, 0]
    for i in range(1, how.length):
        largest = xp.where(largest > values[:, i], largest, values[:, i])
    empty = largest < how.epsilon if how.epsilon else largest == 0
    scale = xp.zeros_like(largest)
    points = xp.zeros((values.shape[0], how.length // grid.dim), dtype=xp.int32, device=x.device)
    used = xp.nonzero(~empty)[0]
    if used.shape[0]:
        lanes, lane_w = (contiguous(xp.permute_dims(a[used], (1, 0))) for a in (values, w))
        found, moved, none = _search(lanes, lane_w, largest[used], grid, how)
        scale[used], points[used], empty[used] = found, moved, none
    scale, empty = xp.reshape(scale, (-1, n)), xp.reshape(empty, (-1, n))
    points = xp.reshape(points, (x.shape[0], -1))
    signs = xp.where(_per_eight(scale < 0, how.length), ~signs, signs)
    signs = xp.where(_per_eight(empty, how.length), xp.zeros_like(signs), signs)
    scale = xp.abs(scale)
    largest = xp.max(scale, axis=1, keepdims=True)
    if how.parity:
        points, signs = (xp.where(largest == 0, xp.zeros_like(a), a) for a in (points, signs))
    d = largest / number(31, x)
    inverse = number(1, x) / d
    codes = clamp(nearest_int(0.5 * (inverse * scale - 1)), 0, 15)
    codes = xp.where(largest == 0, xp.zeros_like(codes), codes)
    fudge = float(np.float32(how.fudge))
    return SubBlocks(d * fudge, codes, points, signs & (127 if how.parity else 255), empty)


def _per_eight(a: Array, length: int) -> Array:
    """`[blocks, n]` -> `[blocks, 32]`: a sub-block's value for each of its eights."""
    xp = namespace(a)
    return xp.concat([a[:, 8 * k // length][:, None] for k in range(32)], axis=1)


def _even_signs(values: Array, negative: Array, weights: Array) -> tuple[Array, Array]:
    """Of eight weights with an odd number of negative ones, the one of least weight turned."""
    xp = namespace(values)
    values, negative, weights = (xp.reshape(a, (-1, 8)) for a in (values, negative, weights))
    least, first = weights[:, 0], xp.zeros_like(weights[:, 0], dtype=xp.int32)
    for i in range(1, 8):
        less = weights[:, i] < least
        least = xp.where(less, weights[:, i], least)
        first = xp.where(less, xp.full_like(first, i), first)
    odd = xp.sum(xp.astype(negative, xp.int32), axis=1) % 2 == 1
    turned = odd[:, None] & (first[:, None] == xp.arange(8, device=values.device))
    values, negative = xp.where(turned, -values, values), negative ^ turned
    return xp.reshape(values, (-1, QK_K)), xp.reshape(negative, (-1, QK_K))


def _search(
    x: Array, w: Array, largest: Array, grid: Grid, how: Search
) -> tuple[Array, Array, Array]:
    """The scale of each sub-block, the points of its groups, and whether there is none.

    Args:
        x, w: float32 `[length, lanes]`; largest: float32 `[lanes]`.

    Returns:
        float32 `[lanes]`, int32 `[lanes, groups]`, bool `[lanes]`.
    """
    xp = namespace(x)
    groups = how.length // grid.dim
    root = square_root(w)
    wx = w * x

    def grouped(a: Array) -> Array:
        return contiguous(xp.permute_dims(xp.reshape(a, (groups, grid.dim, -1)), (1, 0, 2)))

    x_groups, root_groups = grouped(x), grouped(root)
    odd = table(grid.odd, x)

    def move(inverse: Array, scale: Array, wanted: Array) -> tuple[Array, Array]:
        """Points `[groups, lanes]` under a scale, and whether they were rounded to."""
        level = clamp(nearest_int(0.5 * (inverse * x_groups - 1)), 0, grid.base - 1)
        code = level[0]
        for i in range(1, grid.dim):
            code = code + level[i] * grid.base**i
        scales = xp.broadcast_to(scale, code.shape)
        return nearest_points(grid, code, x_groups, root_groups, scales, wanted)

    def sums(point: Array) -> tuple[Array, Array]:
        q = xp.permute_dims(odd[point], (0, 2, 1))  # [groups, dim, lanes]
        q = xp.astype(xp.reshape(q, (how.length, -1)), xp.float32)
        return sum_rows(wx * q), sum_rows(w * q * q)

    one = number(1, x)
    shape = (groups, x.shape[1])
    everywhere = xp.ones(shape, dtype=xp.bool, device=x.device)
    if how.least_squares:
        scale, _ = search_positive(x, w, grid.base + 1)
        divisor = scale * float(grid.base)
    else:
        scale = largest / number(2 * grid.base - 1, x)
        divisor = largest
    found = ~(divisor <= 0)
    points = xp.zeros(shape, dtype=xp.int32, device=x.device)
    on_grid = everywhere if how.again == "those" else ~everywhere
    best = xp.zeros_like(scale)
    for numerator in how.numerators(grid.base):
        inverse = number(numerator, x) / divisor
        point, on = move(inverse, one / inverse, everywhere & found)
        sum_qx, sum_q2 = sums(point)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2) & found
        new_scale = sum_qx / sum_q2
        scale = xp.where(better, new_scale, scale)
        best = xp.where(better, new_scale * sum_qx, best)
        points = xp.where(better, point, points)
        on_grid = xp.where(better, on, on_grid)
    if how.again == "all":
        on_grid = ~everywhere
    redone = ~on_grid & (scale > 0) & found
    if how.again == "off":
        redone = xp.any(redone, axis=0) & everywhere
    point, _ = move(one / scale, scale, redone)
    points = xp.where(redone, point, points)
    sum_qx, sum_q2 = sums(points)
    refit = xp.any(redone, axis=0) & (sum_q2 > 0)
    scale = xp.where(refit, sum_qx / sum_q2, scale)
    scale = xp.where(found, scale, xp.zeros_like(scale))
    if not bool(xp.all(xp.abs(scale) >= 0)):
        raise OutOfRange
    return scale, xp.permute_dims(points, (1, 0)), ~found


def nearest_points(
    grid: Grid,
    code: Array,
    x: Array,
    w: Array,
    scale: Array,
    wanted: Array,
    shift: Array | None = None,
) -> tuple[Array, Array]:
    """Points of groups: those that they are, or the nearest of those near them.

    ggml `iq2_find_best_neighbour`, `iq3_find_best_neighbour`, `iq1_find_best_neighbour2`: the first
    of least weighted error.

    Args:
        code: int32 `[groups, lanes]`.
        x, w: float32 `[dim, groups, lanes]`, weights and the weight of each error.
        scale: float32 `[groups, lanes]`.
        shift: float32 `[groups, lanes]`: values are level - 1 + shift, and 2 * level + 1 without.
        wanted: bool `[groups, lanes]`; of the others a point is given, but any.

    Returns:
        int32 points and bool, whether they are those of the code, `[groups, lanes]` each.
    """
    xp = namespace(x)
    place = table(grid.place, x)[code]
    on_grid = place >= 0
    point = xp.where(on_grid, place, xp.zeros_like(place))
    group, lane = xp.nonzero(~on_grid & wanted)
    if not group.shape[0]:
        return point, on_grid
    near, candidates = table(grid.near, x), table(grid.points.view(np.int16), x)
    chunks = (table(grid.sizes, x)[code[group, lane]] + (LIST - 1)) // LIST
    for count in range(1, int(xp.max(chunks)) + 1):
        of_size = xp.nonzero(chunks == count)[0]
        step = max(1, _PIECE // (count * LIST))
        for start in range(0, of_size.shape[0], step):
            part = of_size[start : start + step]
            g, lanes = group[part], lane[part]
            first = -1 - place[g, lanes]
            at = first[:, None] + xp.arange(count, dtype=first.dtype, device=x.device)
            q = xp.astype(near[at], xp.float32)  # [part, count, dim, LIST]
            if shift is not None:
                q = q * 0.5 - 1.5 + shift[g, lanes][:, None, None, None]
            s = scale[g, lanes][:, None, None]
            error = xp.zeros_like(q[:, :, 0])
            for i in range(grid.dim):
                apart = s * q[:, :, i] - x[i, g, lanes][:, None, None]
                error = error + w[i, g, lanes][:, None, None] * apart * apart
            error = xp.reshape(error, (-1, count * LIST))
            finite = error < LARGEST
            error = xp.where(finite, error, xp.full_like(error, LARGEST))
            if not bool(xp.all(xp.any(finite, axis=1))):
                raise OutOfRange
            least = xp.min(error, axis=1, keepdims=True)
            chosen = xp.argmax(xp.astype(error == least, xp.int8), axis=1)[:, None]
            listed = xp.reshape(candidates[at], (-1, count * LIST))
            nearest = xp.take_along_axis(listed, chosen, axis=1)[:, 0]
            point[g, lanes] = xp.astype(nearest, xp.int32)
    return point, on_grid


def pack_signs(signs: Array) -> Array:
    """Signs of four eights in 7 bits each, int32 `[blocks, 32]` -> `[blocks, 8]`."""
    xp = namespace(signs)
    signs = xp.reshape(signs, (-1, 8, 4))
    return signs[:, :, 0] | (signs[:, :, 1] << 7) | (signs[:, :, 2] << 14) | (signs[:, :, 3] << 21)


def unpack_signs(packed: Array) -> Array:
    """The inverse of `pack_signs`; the sign that is not stored makes the sum of eight even."""
    xp = namespace(packed)
    return even(xp.reshape(xp.stack([packed >> 7 * k & 127 for k in range(4)], axis=2), (-1, 32)))


def even(signs: Array) -> Array:
    """Seven signs -> eight, an even number of which are set."""
    odd = signs
    for i in (4, 2, 1):
        odd = odd ^ (odd >> i)
    return signs | ((odd & 1) << 7)


def magnitudes(grid: Grid, values: tuple[float, ...], points: Array, signs: Array) -> Array:
    """Weights before their scale, float32 `[blocks, 256]`.

    Args:
        values: what the levels stand for.
        points: `[blocks, 256 / dim]`; signs: `[blocks, 32]`, as in `SubBlocks`.
    """
    xp = namespace(points)
    floats = np.array(values, np.float32)[grid.odd >> 1]
    x = xp.reshape(table(floats, points)[xp.astype(points, xp.int32)], (-1, QK_K))
    negative = xp.stack([signs >> i & 1 for i in range(8)], axis=2)
    return xp.where(xp.reshape(negative, (-1, QK_K)) == 1, -x, x)


def scaled(x: Array, scales: Array) -> Array:
    """`[blocks, 256]` times the scales of its sub-blocks, `[blocks, n]`."""
    xp = namespace(x)
    return xp.reshape(xp.reshape(x, (*scales.shape, -1)) * scales[:, :, None], (-1, QK_K))


def pack_codes(codes: Array) -> Array:
    """4-bit scales, int32 `[blocks, 2 * n]` -> `[blocks, n]`, the first of two below the second."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def low_and_high(codes: Array) -> Array:
    """uint8 `[blocks, n]` -> float32 `[blocks, 2 * n]`: what `pack_codes` made of them."""
    xp = namespace(codes)
    both = xp.stack([codes & 15, codes >> 4], axis=2)
    return xp.astype(xp.reshape(both, (codes.shape[0], -1)), xp.float32)
