"""Every format, by both engines, with and without importance: ggml's bytes, all of them."""

from __future__ import annotations

import numpy as np
import pytest

import quant_types
from quant_types import BlockFormat
from tests import oracle
from tests.quant_types.weights import KINDS, importance, weights, weights_for
from tests.sampling import one_in

FORMATS = [pytest.param(fmt, id=fmt.name) for fmt in quant_types.FORMATS]
WITHOUT = [fmt for fmt in FORMATS if not fmt.values[0].needs_importance]
IMPORTANT = one_in(3, [fmt for fmt in quant_types.FORMATS if fmt.takes_importance])
KIND_NAMES = [*KINDS, "trained"]
# some rows of what there is, and, slow, all of them: a million weights
STEPS = [pytest.param(16, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
SLOW_ROWS = 16  # of the formats with a grid the array engine, slower than ggml, gets each so many


def assert_same_blocks(found: np.ndarray, wanted: np.ndarray, fmt: BlockFormat, what: str) -> None:
    """Not one byte differs; else how many blocks do, and the first of them by field."""
    if np.array_equal(found, wanted):
        return
    a, b = (data.reshape(-1, fmt.type_size) for data in (found, wanted))
    bad = np.flatnonzero((a != b).any(axis=1))
    fields = [
        f"{name}: {a[bad[0]].view(fmt.record)[0][name]} for {b[bad[0]].view(fmt.record)[0][name]}"
        for name in fmt.record.names or ()
    ]
    pytest.fail(
        f"{fmt.name}, {what}: {len(bad)} of {len(a)} blocks differ from {oracle.stamp()}, "
        f"first {bad[0]}\n" + "\n".join(fields)
    )


def assert_quantizes(fmt: BlockFormat, kind: str, values: np.ndarray | None, step: int) -> None:
    """Both engines write what ggml does."""
    x = weights_for(fmt, kind)[::step]
    wanted = oracle.quantize(x, fmt.name, values)
    for engine in ("lanes", "array"):
        some = slice(None, None, SLOW_ROWS if fmt.grid and engine == "array" else 1)
        found = quant_types.quantize(x[some], fmt, values, engine)
        assert_same_blocks(found, wanted[some], fmt, f"{engine}, {kind}")


@pytest.mark.parametrize("fmt", WITHOUT)
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_quantize(fmt: BlockFormat, kind: str, step: int) -> None:
    assert_quantizes(fmt, kind, None, step)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_quantize_by_importance(fmt: BlockFormat, kind: str, step: int) -> None:
    assert_quantizes(fmt, kind, importance(weights(kind).shape[-1]), step)


@pytest.mark.parametrize("values", ["zero", "one", "huge", "tiny", "spike"])
@pytest.mark.parametrize("fmt", IMPORTANT)
def test_unusual_importance(fmt: BlockFormat, values: str) -> None:
    """Weights that underflow, overflow or leave one channel alone."""
    x = weights("normal")[:32]
    n = x.shape[-1]
    table = {
        "zero": np.zeros(n),
        "one": np.ones(n),
        "huge": importance(n) * 1e30,
        "tiny": importance(n) * 1e-38,
        "spike": np.where(np.arange(n) % 32 == 7, 1e10, 1e-10),
    }
    given = table[values].astype(np.float32)
    wanted = oracle.quantize(x, fmt.name, given)
    for engine in ("lanes", "array"):
        found = quant_types.quantize(x, fmt, importance=given, engine=engine)
        assert_same_blocks(found, wanted, fmt, f"{engine}, importance {values}")


@pytest.mark.parametrize("fmt", IMPORTANT)
def test_importance_that_leaves_outliers_out(fmt: BlockFormat) -> None:
    """The search fits the few channels that count, and the others are far out of range."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        palette = rng.standard_normal(6) * 10.0 ** rng.integers(-20, 20, 6)
        palette[: seed % 4] = (-6.1785402e16, 0.0, 1.0)[: seed % 4]
        x = rng.choice(palette, (8, 256)).astype(np.float32)
        x = x if fmt.grid is None else np.clip(x, -1e9, 1e9)
        used = rng.random(256) < (0.02, 0.3, 1.0)[seed % 3]
        given = rng.exponential(size=256) * used * (1, 1e-20, 1e15)[seed // 3 % 3]
        given = given.astype(np.float32)
        wanted = oracle.quantize(x, fmt.name, given)
        for engine in ("lanes", "array"):
            found = quant_types.quantize(x, fmt, importance=given, engine=engine)
            assert_same_blocks(found, wanted, fmt, f"{engine}, seed {seed}")


@pytest.mark.parametrize("fmt", FORMATS)
def test_dequantize(fmt: BlockFormat) -> None:
    """Bit for bit `to_float`, of real blocks and of any bytes (a NaN's bits aside)."""
    rng = np.random.default_rng(3)
    blocks = (1 << 20) // fmt.block_size
    x = weights("heavy_tailed")
    data = oracle.quantize(x, fmt.name, importance(x.shape[-1]))
    noise = rng.integers(0, 256, (blocks, fmt.type_size), np.uint8)
    for name, given in (("blocks", data), ("bytes", noise)):
        found, wanted = quant_types.dequantize(given, fmt), oracle.dequantize(given, fmt.name)
        nan = np.isnan(wanted)
        assert np.array_equal(np.isnan(found), nan), name
        assert np.array_equal(found[~nan].view(np.uint32), wanted[~nan].view(np.uint32)), name


@pytest.mark.parametrize("fmt", FORMATS)
def test_sizes(fmt: BlockFormat) -> None:
    for blocks in (1, 3):
        n = blocks * fmt.block_size
        assert fmt.row_bytes(n) == oracle.row_bytes(fmt.name, n) == blocks * fmt.type_size
