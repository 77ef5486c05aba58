"""A kernel held against the array engine before it is used: compilers have miscompiled some."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np

import quant_types
from quant_types import shipped
from quant_types.engines import kernel_name


def check(name: str) -> None:
    """Run the kernel that `kernels.load` gives this thread. Raises RuntimeError: its bytes are not
    those of the array engine."""
    wanted = shipped.expected(name) or made(name, "array")
    if made(name, "lanes") != wanted:
        raise RuntimeError("its bytes are not those of the array engine")


def made(name: str, engine: str) -> str:
    """SHA-256 of what an engine makes, in every format and of every dtype that the kernel of that
    name is for, of weights that are normal and of some that are not."""
    weights = _sample()
    channels = np.square(np.random.default_rng(1).standard_normal(weights.shape[-1]))
    digest = hashlib.sha256()
    for fmt in quant_types.FORMATS:
        for importance in (None, channels.astype(np.float32)):
            if importance is None and fmt.needs_importance:
                continue
            if kernel_name(fmt, importance is not None) != name:
                continue
            for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
                digest.update(
                    quant_types.quantize(weights.astype(dtype), fmt, importance, engine).tobytes()
                )
    return digest.hexdigest()


def _sample() -> np.ndarray:
    """float32 `[37, 768]`, so that the last tile is not whole: normal, and what normal is not."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((37, 768)) * 0.02).astype(np.float32)
    x[30] = 0
    x[31, ::2] = 0
    x[32] = -0.0
    x[33] = 0.01
    x[34, 100] = 50
    x[35] = np.abs(x[35])
    x[36] = rng.integers(-2, 3, 768) * 0.25
    return x
