"""Blocks that are infinite or NaN, as ggml finds them; and none is made without a word."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import quant_types
from quant_types.validity import _FLOATS, _HALFS, invalid_block
from quantkit.gguf.types import GGMLType, type_by_name
from tests import oracle

KINDS = sorted(_HALFS.keys() | _FLOATS.keys() | {"F64", "MXFP4", "IQ1_M", "NVFP4", "I8", "I32"})
HALFS = [f for f in quant_types.FORMATS if f.name in _HALFS]


def is_valid(kind: GGMLType, data: np.ndarray) -> bool:
    """ggml's own word."""
    lib = oracle.library()
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return bool(lib.ggml_validate_row_data(kind.id, data.ctypes.data, data.nbytes))


@pytest.mark.parametrize("name", [k for k in KINDS if k != "Q8_1"])  # ggml has no check for that
def test_the_blocks_that_ggml_finds(name: str) -> None:
    """Random blocks, in which every two bytes in turn are NaN or infinity."""
    kind = type_by_name(name)
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 60, (64, kind.type_size), np.uint8)
    assert invalid_block(whole, name) == -1
    assert is_valid(kind, whole)
    found = 0
    patterns = [(0x00, 0x7C), (0x00, 0xFC), (0x01, 0x7E), (0xFF, 0xFF), (0x80, 0x7F), (0xFF, 0x7B)]
    for at in range(kind.type_size):
        for low, high in patterns:
            blocks = whole.copy()
            row = blocks[(7 * at) % 64]
            row[at] = low
            if at + 1 < len(row):
                row[at + 1] = high
            if name in ("F64", "IQ1_M"):  # where more than two bytes count
                row[max(at - 4, 0) : at + 8] = high
            expected = -1 if is_valid(kind, blocks) else (7 * at) % 64
            assert invalid_block(blocks, name) == expected
            found += expected >= 0
    assert (found > 0) == (name not in ("NVFP4", "I8", "I32"))


@pytest.mark.parametrize("fmt", HALFS, ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_past_the_range_of_float16(fmt: quant_types.BlockFormat, dtype: str) -> None:
    """They are said, and the blocks are ggml's, whether or not a scale becomes infinite."""
    import ml_dtypes

    rng = np.random.default_rng(1)
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    x = (rng.standard_normal((3, 512)) * 0.05).astype(kind)
    out = np.empty((3, fmt.row_bytes(512)), np.uint8)
    importance = np.ones(512, np.float32) if fmt.needs_importance else None
    assert not quant_types.quantize_into(x, [(fmt, out)], importance)
    assert invalid_block(out.reshape(-1, fmt.type_size), fmt.name) == -1
    for value in (65504, 70000, 1e10):
        x[1, 300] = -value
        large = abs(float(x[1, 300])) >= 65520
        assert bool(quant_types.quantize_into(x, [(fmt, out)], importance)) == large
        blocks = out.reshape(-1, fmt.type_size)
        bad = invalid_block(blocks, fmt.name)
        assert (bad < 0) == is_valid(type_by_name(fmt.name), out)
        assert large or bad < 0
        assert bad < 0 or bad * fmt.block_size // 512 == 1
        if fmt.name != "F16":
            theirs = oracle.quantize(np.asarray(x, np.float32), fmt.name, importance)
            assert out.tobytes() == np.asarray(theirs).tobytes()


def test_bfloat16_holds_them() -> None:
    x = np.full((1, 256), 1e30, np.float32)
    out = np.empty((1, 512), np.uint8)
    assert quant_types.quantize_into(x, [("BF16", out)]) is True
    assert invalid_block(out.reshape(-1, 2), "BF16") == -1
