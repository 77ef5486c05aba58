"""Hypothesis keeps looking: any finite bits, in blocks that it makes up, against ggml."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quant_types
from quant_types import BlockFormat
from tests import oracle
from tests.quant_types.test_bytes import assert_same_blocks

FORMATS = [pytest.param(fmt, id=fmt.name) for fmt in quant_types.FORMATS]
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
LOOK = settings(
    max_examples=40,
    deadline=None,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def blocks(draw: st.DrawFn) -> np.ndarray:
    """float32 `[k, 256]`: a few values, repeated, scaled and permuted by a seed."""
    palette = np.array(draw(st.lists(FINITE, min_size=1, max_size=12)), np.float32)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape = (draw(st.integers(1, 4)), 256)
    x = rng.choice(palette, shape)
    if draw(st.booleans()):  # between the values, too
        x = x * rng.uniform(-1, 1, shape).astype(np.float32)
    if draw(st.booleans()):
        x = x + rng.standard_normal(shape).astype(np.float32) * np.abs(rng.choice(palette))
    return np.where(np.isfinite(x), x, np.float32(0)).astype(np.float32)


@st.composite
def importances(draw: st.DrawFn) -> np.ndarray:
    """float32 `[256]`, some of it zero."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    scale = draw(st.sampled_from([1.0, 1e-20, 1e15]))
    used = rng.random(256) < draw(st.sampled_from([0.02, 0.5, 1.0]))
    return (rng.exponential(size=256) * used * scale).astype(np.float32)


def assert_as_ggml(fmt: BlockFormat, x: np.ndarray, importance: np.ndarray | None) -> None:
    """Both engines give ggml's bytes, or both say what it aborts on."""
    engines = ("lanes", "array")
    try:
        found = [quant_types.quantize(x, fmt, importance, engine) for engine in engines]
    except quant_types.OutOfRange:
        for engine in engines:
            with pytest.raises(quant_types.OutOfRange):
                quant_types.quantize(x, fmt, importance, engine)
        return
    wanted = oracle.quantize(x, fmt.name, importance)
    for engine, data in zip(engines, found, strict=True):
        assert_same_blocks(data, wanted, fmt, engine)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if not fmt.values[0].needs_importance])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@LOOK
@given(x=blocks())
def test_quantize(fmt: BlockFormat, x: np.ndarray) -> None:
    assert_as_ggml(fmt, x, None)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.values[0].takes_importance])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@LOOK
@given(x=blocks(), importance=importances())
def test_quantize_by_importance(fmt: BlockFormat, x: np.ndarray, importance: np.ndarray) -> None:
    assert_as_ggml(fmt, x, importance)
