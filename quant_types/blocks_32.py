"""What Q4_0, Q4_1, Q5_0 and Q5_1 share: blocks of 32 weights, quants in nibbles and a fifth bit."""

from __future__ import annotations

from quant_types.arrays import Array, contiguous, lowest, namespace, number
from quant_types.search import MinSteps, search_min, search_symmetric


def pack_nibbles(q: Array) -> Array:
    """Low 4 bits of `[blocks, 32]` -> `[blocks, 16]`: byte j holds weights j and, above, j + 16."""
    return (q[:, :16] & 15) | ((q[:, 16:] & 15) << 4)


def unpack_nibbles(qs: Array) -> Array:
    """uint8 `[blocks, 16]` -> uint8 `[blocks, 32]`, the inverse of `pack_nibbles`."""
    return namespace(qs).concat([qs & 15, qs >> 4], axis=1)


def pack_fifth(q: Array) -> Array:
    """Bit 4 of int32 `[blocks, 32]` -> `[blocks, 4]`: bit i of byte j is weight 8 * j + i's."""
    xp = namespace(q)
    bit = xp.reshape(q >> 4 & 1, (-1, 4, 8))
    packed = bit[:, :, 0]
    for i in range(1, 8):
        packed = packed | (bit[:, :, i] << i)
    return packed


def unpack_fifth(qh: Array) -> Array:
    """uint8 `[blocks, 4]` -> uint8 `[blocks, 32]`, each 0 or 16."""
    xp = namespace(qh)
    return xp.reshape(xp.stack([(qh >> i & 1) << 4 for i in range(8)], axis=2), (-1, 32))


def weighted_steps(top: int) -> MinSteps:
    """What ggml tries for Q4_1 and Q5_1 with an importance matrix."""
    return MinSteps(top, start=-0.9, delta=0.05, last=36, clamps_first=True)


def _columns(a: Array) -> Array:
    """`[blocks, 32]` <-> `[32, blocks]`: a block a column."""
    return contiguous(namespace(a).permute_dims(a, (1, 0)))


def _truncated(v: Array, top: int) -> Array:
    """A C cast to int8, bounded by `top`; where it is not finite, the 0 that x86 leaves."""
    xp = namespace(v)
    v = xp.where(xp.isfinite(v), v, xp.zeros_like(v))
    return xp.clip(xp.astype(v, xp.int32), None, top)


def symmetric(x: Array, half: int) -> tuple[Array, Array]:
    """Quants around `half`, in units that make the weight of greatest magnitude -half.

    ggml `quantize_row_q4_0_ref` (half 8) and `quantize_row_q5_0_ref` (half 16).

    Args:
        x: float32 `[blocks, 32]`.
        half: half the number of levels.

    Returns:
        d float32 `[blocks, 1]` and quants int32 `[blocks, 32]`.
    """
    xp = namespace(x)
    first = xp.argmax(xp.abs(x), axis=1)[:, None]
    extreme = xp.take_along_axis(x, first, axis=1)
    extreme = xp.where(extreme == 0, xp.zeros_like(extreme), extreme)  # no negative zero
    d = extreme / -half
    inverse = xp.where(d != 0, number(1, x) / d, xp.zeros_like(d))
    return d, _truncated(x * inverse + (half + 0.5), 2 * half - 1)


def with_minimum(x: Array, top: int) -> tuple[Array, Array, Array]:
    """Quants from 0 to `top` over the range of the block.

    ggml `quantize_row_q4_1_ref` (top 15) and `quantize_row_q5_1_ref` (top 31).

    Args:
        x: float32 `[blocks, 32]`.
        top: the greatest quant.

    Returns:
        d and m float32 `[blocks, 1]`, quants int32 `[blocks, 32]`.
    """
    xp = namespace(x)
    m = lowest(x, axis=1)
    d = xp.abs(xp.max(x, axis=1, keepdims=True) - m) / number(top, x)  # abs: no negative zero
    inverse = xp.where(d != 0, number(1, x) / d, xp.zeros_like(d))
    return d, m, _truncated((x - m) * inverse + 0.5, top)


def symmetric_weighted(x: Array, weights: Array, half: int) -> tuple[Array, Array]:
    """`symmetric` by weighted error (ggml `quantize_row_q4_0_impl`, `quantize_row_q5_0_impl`).

    Args:
        x, weights: float32 `[blocks, 32]`.
        half: half the number of levels.
    """
    d, quants = search_symmetric(_columns(x), _columns(weights), half)
    return d[:, None], _columns(quants + half)


def minimum_weighted(x: Array, weights: Array, top: int) -> tuple[Array, Array, Array]:
    """`with_minimum` by weighted error (ggml `quantize_row_q4_1_impl`, `quantize_row_q5_1_impl`).

    Args:
        x, weights: float32 `[blocks, 32]`.
        top: the greatest quant.
    """
    d, minimum, quants = search_min(_columns(x), _columns(weights), weighted_steps(top))
    return d[:, None], -minimum[:, None], _columns(quants)
