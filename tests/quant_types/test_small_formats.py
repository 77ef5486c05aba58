"""Edges of the smaller formats that random weights seldom touch, against ggml."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import quant_types
from quant_types.iq4 import BORDERS, TRIES, VALUES
from tests import oracle

SMALL = (
    "Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
    "IQ4_NL", "IQ4_XS",
)  # fmt: skip
ENGINES = ("lanes", "array")


def _same(x: np.ndarray, name: str, engine: str) -> None:
    np.testing.assert_array_equal(
        quant_types.quantize(x, name, engine=engine), oracle.quantize(x, name)
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
def test_zeros_of_either_sign(name: str, engine: str) -> None:
    """The sign of a zero reaches the stored scale or minimum: the first zero of equals decides."""
    rng = np.random.default_rng(0)
    zeros = np.where(rng.random((256, 256)) < 0.5, np.float32(-0.0), np.float32(0.0))
    _same(zeros, name, engine)
    _same(np.where(rng.random((256, 256)) < 0.9, zeros, np.float32(1.0)), name, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
def test_every_magnitude(name: str, engine: str) -> None:
    """Blocks at every power of two: scales whose inverse is infinite, scales past float16."""
    rng = np.random.default_rng(1)
    powers = np.exp2(np.repeat(np.arange(-149, 128), 8)).astype(np.float32)[:, None]
    x = rng.uniform(-1, 1, (len(powers), 256)).astype(np.float32)
    _same(x * powers, name, engine)
    x.reshape(-1, 32)[:, 5] = 1.0  # the greatest is a power of two
    _same(x * powers, name, engine)
    _same(np.nextafter(x * powers, np.float32(0)), name, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_mxfp4_exponents(engine: str) -> None:
    """C's `log2f` rounds up to a power of two that a weight is just below."""
    powers = np.exp2(np.arange(-149, 128)).astype(np.float32)
    powers = np.append(powers, np.finfo(np.float32).max)[:, None]
    below = powers.view(np.int32) - np.arange(64, dtype=np.int32)
    x = np.zeros((below.size, 32), np.float32)
    x[:, 3] = np.maximum(below, 1).view(np.float32).reshape(-1)
    x[:, 4:] = x[:, 3:4] * np.linspace(-1, 1, 28, dtype=np.float32)
    _same(x, "MXFP4", engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
def test_ties(name: str, engine: str) -> None:
    """Small integers and their halves: weights on the border between two quants, equal extremes."""
    rng = np.random.default_rng(2)
    x = rng.integers(-8, 9, (512, 256)).astype(np.float32)
    _same(x, name, engine)
    _same(x * np.float32(0.5), name, engine)
    _same(np.sign(x) * np.exp2(np.abs(x)), name, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("blocks", [1, 2, 31, 32, 33, 100])
def test_any_number_of_blocks(name: str, engine: str, blocks: int) -> None:
    """Tiles that are not full, in one row and in several."""
    n = quant_types.get_format(name).block_size * blocks
    x = np.random.default_rng(blocks).standard_normal((3, n)).astype(np.float32)
    _same(x, name, engine)
    _same(x[0], name, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("blocks", [1, 3, 63, 65, 130])
def test_importance_of_rows(name: str, engine: str, blocks: int) -> None:
    """Weights that hang on a whole row's mean square, rows that tiles cut, a matrix an expert."""
    n = quant_types.get_format(name).block_size * blocks
    rng = np.random.default_rng(blocks)
    x = rng.standard_normal((2, 3, n)).astype(np.float32)
    importance = rng.random((2, 1, n)).astype(np.float32)
    importance[0, 0, ::5] = 0
    found = quant_types.quantize(x, name, importance=importance, engine=engine)
    for expert in range(2):
        wanted = oracle.quantize(x[expert], name, importance[expert, 0])
        np.testing.assert_array_equal(found[expert], wanted)


def test_a_weight_of_iq4_passes_one_border_at_most_from_try_to_try():
    """What the search of the kernels rests on: the next border, away from 0, is farther than the
    tries reach."""
    reach = (TRIES - VALUES[0]) / (-TRIES - VALUES[0])
    positive = [b for b in BORDERS if b > 0]
    negative = [-b for b in reversed(BORDERS) if b < 0]
    for borders in (positive, negative):
        for near, far in pairwise(borders):
            assert far / near > reach * (1 + 2**-20)  # products are rounded
