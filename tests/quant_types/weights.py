"""Weights to quantize: 2**20 of each kind, the easy ones and those on which searches differ."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from quant_types import BlockFormat

ROWS, N = 256, 4096
CHECKPOINT = Path(__file__).parents[1] / "data/frankenmoe-mergekit/model.safetensors"


def _trained() -> np.ndarray:
    """The matrices of a small trained mixture of experts, in rows of 256."""
    raw = CHECKPOINT.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    parts = []
    for name, info in json.loads(raw[8 : 8 + length]).items():
        if name == "__metadata__" or info["shape"][-1] % 256:
            continue
        assert info["dtype"] == "BF16"
        start, end = (8 + length + offset for offset in info["data_offsets"])
        values = np.frombuffer(raw[start:end], ml_dtypes.bfloat16)
        parts.append(values.astype(np.float32).reshape(-1, 256))
    return np.concatenate(parts)


def _heavy_tailed(rng: np.random.Generator, size: int) -> np.ndarray:
    x = rng.standard_t(2, size)
    x[::97] *= 50
    return x


def _one_huge(rng: np.random.Generator, size: int) -> np.ndarray:
    x = rng.standard_normal(size)
    x[np.arange(0, size, 256) + rng.integers(0, 256, size // 256)] = rng.choice(
        [1e5, -1e5, 1e8, -1e30], size // 256
    )
    return x


def _alternating(rng: np.random.Generator, size: int) -> np.ndarray:
    x = np.abs(rng.standard_normal(size))
    x[1::2] *= -1
    x[size // 2 :] = np.where(np.arange(size // 2) % 2, 1.0, -1.0) * 0.25
    return x


def _bit_patterns(rng: np.random.Generator, size: int) -> np.ndarray:
    """Any finite float32 there is: sums overflow, scales are infinite or NaN."""
    x = rng.integers(0, 1 << 32, size, np.uint32).view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(-0.0))


def _magnitudes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Another power of ten every 32 weights."""
    return rng.standard_normal(size) * np.repeat(10.0 ** rng.integers(-30, 30, size // 32), 32)


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, size: rng.standard_normal(size) * 0.02,
    "laplace": lambda rng, size: rng.laplace(size=size),
    "heavy_tailed": _heavy_tailed,
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "positive": lambda rng, size: rng.uniform(0.5, 1, size),
    "constant": lambda rng, size: np.repeat(rng.standard_normal(size // 256), 256),
    "zero": lambda rng, size: np.where(rng.random(size) < 0.5, -0.0, 0.0),
    "sparse": lambda rng, size: rng.standard_normal(size) * (rng.random(size) < 0.2),
    "integers": lambda rng, size: rng.integers(-8, 9, size),
    "alternating": _alternating,
    "denormal": lambda rng, size: rng.standard_normal(size) * 1e-39,
    "almost_denormal": lambda rng, size: rng.standard_normal(size) * 1e-36,
    "past_float16": lambda rng, size: rng.standard_normal(size) * 1e7,
    "one_huge": _one_huge,
    "magnitudes": _magnitudes,
    "any_magnitude": lambda rng, size: (
        rng.standard_normal(size) * 10.0 ** rng.uniform(-38, 5, size)
    ),
    "bit_patterns": _bit_patterns,
}


@functools.lru_cache(maxsize=2)
def weights(kind: str) -> np.ndarray:
    """float32 `[rows, n]`, at least 2**20 of them, read-only; "trained" are real ones."""
    if kind == "trained":
        x = _trained()
        assert x.size >= ROWS * N
    else:
        rng = np.random.default_rng(list(kind.encode()))
        x = np.asarray(KINDS[kind](rng, ROWS * N), np.float32).reshape(ROWS, N)
    x.flags.writeable = False
    return x


def weights_for(fmt: BlockFormat, kind: str) -> np.ndarray:
    """`weights(kind)`, less what ggml aborts on: weights past 1e9 in a format with a grid."""
    x = weights(kind)
    return x if fmt.grid is None else np.clip(x, -1e9, 1e9)


def needed(fmt: BlockFormat, n: int) -> np.ndarray | None:
    """Importance of `n` channels where the format cannot be made without."""
    return np.ones(n, np.float32) if fmt.needs_importance else None


def importance(n: int) -> np.ndarray:
    """float32 `[n]`, a mean square an input channel: some dominate, some are never used."""
    rng = np.random.default_rng(n)
    values = np.square(rng.standard_normal(n) * np.exp(rng.standard_normal(n)))
    values[rng.random(n) < 0.1] = 0
    return values.astype(np.float32)
