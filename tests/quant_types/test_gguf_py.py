"""The checks of gguf-py's `test_quants.py` as assertions, and our functions against gguf-py's.

That script compares gguf-py with ggml over normal weights with a zero row, over ggml's own blocks,
and over blocks of random float16 bits, and logs a mismatch; here a mismatch fails.
"""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

import quant_types
from quant_types import BlockFormat
from tests import oracle
from tests.quant_types.weights import needed

KNOWN = [fmt for fmt in quant_types.FORMATS if fmt.name in GGMLQuantizationType.__members__]
FORMATS = [pytest.param(fmt, id=fmt.name) for fmt in KNOWN]
# what gguf-py does not quantize beside the IQ formats, and what it does not dequantize either
QUANTIZED_BY_GGML_ALONE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q1_0", "NVFP4")
READ_BY_GGML_ALONE = ("Q1_0",)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    x = np.random.default_rng(7).standard_normal((8, 128, 1024)).astype(np.float32)
    x[0, 0, :] = 0
    return x


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("fmt", FORMATS)
def test_quantize(fmt: BlockFormat, weights: np.ndarray) -> None:
    given = needed(fmt, weights.shape[-1])
    ours = quant_types.quantize(weights, fmt, given)
    assert same_bits(ours, oracle.quantize(weights, fmt.name, given))
    try:
        theirs = gguf.quantize(weights, GGMLQuantizationType[fmt.name])
    except NotImplementedError:
        assert fmt.name.startswith("IQ") or fmt.name in QUANTIZED_BY_GGML_ALONE
        return
    assert same_bits(ours, theirs)


@pytest.mark.parametrize("fmt", FORMATS)
def test_dequantize_blocks(fmt: BlockFormat, weights: np.ndarray) -> None:
    data = oracle.quantize(weights, fmt.name, needed(fmt, weights.shape[-1]))
    ours = quant_types.dequantize(data, fmt)
    assert same_bits(ours, oracle.dequantize(data, fmt.name))
    if fmt.name in READ_BY_GGML_ALONE:
        return
    theirs = gguf.dequantize(
        data.view(np.float16 if fmt.name == "F16" else np.uint8), GGMLQuantizationType[fmt.name]
    )
    assert np.array_equal(ours, theirs.view(np.float32))


@pytest.mark.parametrize("fmt", FORMATS)
def test_dequantize_random_float16_bits(fmt: BlockFormat) -> None:
    halves = np.random.default_rng(8).random((8, 64, fmt.row_bytes(1024) // 2))
    data = halves.astype(np.float16).view(np.uint8)
    assert same_bits(quant_types.dequantize(data, fmt), oracle.dequantize(data, fmt.name))
