"""Functions of float32 with the last bit that torch gives, where that is not the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np

Rows = np.ndarray[Any, Any]


def torch_exp(x: Rows) -> Rows:
    """float32 to float32, with the last bit that `torch.exp` has, where that is not the nearest.

    torch leaves it to a vector library, which takes 2^(j/128) from a table, in two parts, and
    corrects it with a polynomial of degree two, all in single precision; every operation and its
    order decide the bits.
    """
    f32 = np.float32
    step = np.log(2) / 128
    high = f32(round(step * 2**16) / 2**16)  # short enough for k * high to be exact
    k = np.rint(x * f32(1 / step))
    y = x - k * high - k * f32(step - float(high))
    powers = np.exp2(np.arange(128) / 128)
    table = powers.astype(f32)
    tails = (powers - table).astype(f32)
    with np.errstate(invalid="ignore"):  # NaN is found later, and named
        octave, place = np.divmod(k.astype(np.int32), 128)
    base = table[place]
    with np.errstate(over="ignore"):  # and so is infinity
        out: Rows = np.ldexp(base + (base * (y + y * y * f32(0.5)) + tails[place]), octave)
    return out


def _fma(a: Rows, b: Any, c: Any) -> Rows:
    """`a * b + c` in float32, rounded once."""
    out: Rows = (a.astype(np.float64) * np.float64(b) + np.float64(c)).astype(np.float32)
    return out


def torch_softplus(x: Rows) -> Rows:
    """float32 to float32, with the bits of `torch.nn.functional.softplus`: log(1 + exp(x)), each
    function with the polynomial, the order and the fused operations of the vector library SLEEF
    (`expf` and `log1pf` to one unit in the last place)."""
    f32 = np.float32
    q = np.rint(x * f32(1.442695040888963))
    s = _fma(q, -f32(1.428606765330187e-06), _fma(q, -f32(0.693145751953125), x))
    u = np.full_like(s, f32(0.00019852761761285365))
    for c in (0.0013930435525253415, 0.00833336077630520, 0.0416664853692054750,
              0.166666671633720400, 0.5):  # fmt: skip
        u = _fma(u, s, f32(c))
    e = np.ldexp(_fma(s * s, u, s) + f32(1), q.astype(np.int32)).astype(f32)
    octave = np.frexp((e + f32(1)) * f32(1 / 0.75))[1] - 1
    t = np.ldexp(f32(1), -octave).astype(f32)
    m = _fma(e, t, t - f32(1))
    ratio = m / np.float64(2 + m.astype(np.float64))
    rough = m * (f32(1) / (f32(2) + m))
    square = rough * rough
    p = _fma(np.full_like(m, f32(0.3027294874)), square, f32(0.3996108174))
    p = _fma(p, square, f32(0.6666694880))
    ln2 = np.float64(f32(0.6931471824645996)) + np.float64(f32(-1.904654323148236e-09))
    out = (ln2 * octave + 2 * ratio + (square * rough * p).astype(np.float64)).astype(f32)
    return np.where(x > 20, x, out)


def _torch_sine(x: Rows, quarter: float) -> Rows:
    """The sine of float32 `x`, or with a `quarter` of 0.5 its cosine, with the bits of `torch.sin`
    and `torch.cos` where Intel's library computes what it does on every processor: in double
    precision, by an odd polynomial of degree nine over half a turn, rounded once."""
    wide = x.astype(np.float64)
    turns = np.rint(wide / np.pi + quarter) - quarter
    high = float(np.float32(np.pi))
    middle = float(np.float32(np.pi - high))
    low = np.pi - high - middle + 1.2246467991473532e-16  # what pi is more than a double
    r = wide - turns * high - turns * middle - turns * low
    r = np.where((turns + quarter) % 2 == 0, r, -r)
    q = r * r
    p = -0.16666659550425678 + q * (
        0.00833306624603964 + q * (-0.00019809602899149807 + q * 2.6057806321733908e-06)
    )
    return (r + r * q * p).astype(np.float32)


def sinusoids(length: int, channels: int) -> Rows:
    """float32 `[length, channels]`: the table of positions of Whisper and its kin, sines and then
    cosines of angles whose speeds go from 1 to 1/10,000 a moment."""
    half = channels // 2
    step = np.log(10000) / (half - 1)
    speeds = torch_exp(np.arange(half, dtype=np.float32) * np.float32(-step))
    angles = np.arange(length, dtype=np.float32)[:, None] * speeds
    return np.concatenate([_torch_sine(angles, 0.0), _torch_sine(angles, 0.5)], axis=1)
