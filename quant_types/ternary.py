"""What TQ1_0 and TQ2_0 share: weights as -d, 0 and d."""

from __future__ import annotations

from quant_types.arrays import Array, namespace, number


def digits(x: Array) -> tuple[Array, Array]:
    """Weights in units of the block's greatest magnitude, rounded, plus 1.

    ggml `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`.

    Args:
        x: float32 `[blocks, 256]`.

    Returns:
        d float32 `[blocks, 1]` and digits int32 `[blocks, 256]`, 0 to 2.
    """
    xp = namespace(x)
    d = xp.max(xp.abs(x), axis=1, keepdims=True)
    inverse = xp.where(d != 0, number(1, x) / d, xp.zeros_like(d))
    v = x * inverse
    # C's lroundf: half away from zero; the digit of what is not finite comes out as 1.
    v = xp.where(xp.isfinite(v), v, xp.zeros_like(v))
    return d, 1 + xp.astype(v >= 0.5, xp.int32) - xp.astype(v <= -0.5, xp.int32)
