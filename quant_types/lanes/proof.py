"""A kernel held against the array engine before it is used: compilers have miscompiled some."""

from __future__ import annotations

from importlib.metadata import version

import ml_dtypes
import numpy as np

import quant_types
from quant_types import kernels
from quant_types.engines import kernel_name


def check(name: str, code: bytes) -> None:
    """Run a kernel's object code in this process. Raises RuntimeError if its bytes are not those of
    the array engine."""
    kernels.use(name, code)
    weights = _sample()
    channels = np.square(np.random.default_rng(1).standard_normal(weights.shape[-1]))
    for fmt in quant_types.FORMATS:
        for importance in (None, channels.astype(np.float32)):
            if kernel_name(fmt, importance is not None) != name:
                continue
            if fmt.needs_importance and importance is None:
                continue
            for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
                x = weights.astype(dtype)
                ours, theirs = (
                    quant_types.quantize(x, fmt, importance, engine)
                    for engine in ("lanes", "array")
                )
                if not np.array_equal(ours, theirs):
                    raise RuntimeError(
                        f"numba {version('numba')} makes it wrong, install a newer one"
                    )


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
