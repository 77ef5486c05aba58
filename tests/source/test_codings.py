"""Weights kept in 8 and 4 bits: any rectangle of them is a part of the whole, and the whole is what
the scheme's own definition says. (Whole models, as llama.cpp converts them, are in
test_architectures.py.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.source.checkpoint import read_weights
from quantkit.source.codings import decoded, read, read_settings
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage import os_files
from tests.checkpoints import write_safetensors

GROUP = 64
ROWS, COLUMNS = 96, 256
Arrays = dict[str, np.ndarray[Any, Any]]
_DTYPES = {"int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32", "uint8": "U8"}


def source(arrays: Arrays, settings: dict[str, Any], path: Path) -> tuple[SourceTensor, Files]:
    raw = {name: (_DTYPES[a.dtype.name], list(a.shape), a.tobytes()) for name, a in arrays.items()}
    if "w.weight_scale_inv" in raw and "w.weight" in raw:
        raw["w.weight"] = ("F8_E4M3", *raw["w.weight"][1:])
    write_safetensors(path, raw)
    how = read_settings({"quantization_config": settings}, None, "config.json")
    (found,) = decoded(read_weights(path), how)
    return found, Files([path])


def words(codes: np.ndarray[Any, Any], bits: int = 4) -> np.ndarray[Any, Any]:
    """Codes along the last axis packed into int32, the first in the lowest bits."""
    per = 32 // bits
    shifts = np.arange(per, dtype=np.uint64) * np.uint64(bits)
    lanes = codes.reshape(*codes.shape[:-1], -1, per).astype(np.uint64)
    return (lanes << shifts).sum(-1).astype(np.uint32).view(np.int32)


def gptq(rng: np.random.Generator) -> tuple[Arrays, dict[str, Any], np.ndarray[Any, Any]]:
    q = rng.integers(0, 16, (COLUMNS, ROWS))
    zeros = rng.integers(0, 16, (COLUMNS // GROUP, ROWS))
    scales = rng.normal(0.01, 0.002, zeros.shape).astype(np.float16)
    groups = rng.integers(0, COLUMNS // GROUP, COLUMNS).astype(np.int32)
    arrays = {
        "w.qweight": words(q.T).T.copy(), "w.qzeros": words(zeros), "w.scales": scales,
        "w.g_idx": groups,
    }  # fmt: skip
    scale, zero = scales.astype(np.float32)[groups], zeros[groups] + 1
    return arrays, {"quant_method": "gptq", "bits": 4}, (scale * (q - zero)).T


def awq(rng: np.random.Generator) -> tuple[Arrays, dict[str, Any], np.ndarray[Any, Any]]:
    q = rng.integers(0, 16, (COLUMNS, ROWS))
    zeros = rng.integers(0, 16, (COLUMNS // GROUP, ROWS))
    scales = rng.normal(0.01, 0.002, zeros.shape).astype(np.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's: nibble i of a word holds column order[i]

    def packed(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return words(codes.reshape(len(codes), -1, 8)[:, :, order].reshape(codes.shape))

    arrays = {"w.qweight": packed(q), "w.qzeros": packed(zeros), "w.scales": scales}
    scale, zero = (np.repeat(x, GROUP, axis=0) for x in (scales.astype(np.float32), zeros))
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP}
    return arrays, settings, (scale * (q - zero)).T


def packed(rng: np.random.Generator) -> tuple[Arrays, dict[str, Any], np.ndarray[Any, Any]]:
    q = rng.integers(0, 16, (ROWS, COLUMNS))
    zeros = rng.integers(0, 16, (ROWS, COLUMNS // GROUP))
    scales = rng.normal(0.01, 0.002, zeros.shape).astype(np.float16)
    arrays = {
        "w.weight_packed": words(q), "w.weight_scale": scales,
        "w.weight_shape": np.array([ROWS, COLUMNS]), "w.weight_zero_point": words(zeros.T).T.copy(),
    }  # fmt: skip
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    settings = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }  # fmt: skip
    scale, zero = (np.repeat(x, GROUP, axis=1) for x in (scales.astype(np.float32), zeros))
    return arrays, settings, (q - zero) * scale


def fp8(rng: np.random.Generator) -> tuple[Arrays, dict[str, Any], np.ndarray[Any, Any]]:
    import ml_dtypes

    values = rng.normal(0, 1, (ROWS, COLUMNS)).astype(ml_dtypes.float8_e4m3fn)
    height, width = 40, 100  # the last blocks are partial
    scales = rng.normal(1, 0.2, (-(-ROWS // height), -(-COLUMNS // width))).astype(np.float32)
    arrays = {"w.weight": values.view(np.uint8), "w.weight_scale_inv": scales}
    whole = np.repeat(np.repeat(scales, height, 0), width, 1)[:ROWS, :COLUMNS]
    settings = {"quant_method": "fp8", "weight_block_size": [height, width]}
    return arrays, settings, values.astype(np.float32) * whole


SCHEMES: list[Callable[..., Any]] = [gptq, awq, packed, fp8]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_rectangle(scheme: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    arrays, settings, expected = scheme(rng)
    t, files = source(arrays, settings, tmp_path / "model.safetensors")
    expected = expected.astype(np.float32)
    assert t.shape == (ROWS, COLUMNS)
    with files:
        assert (read(files, t, 0, ROWS) == expected).all()
        for _ in range(60):
            first, column = rng.integers(0, ROWS), rng.integers(0, COLUMNS)
            count = rng.integers(1, ROWS - first + 1)
            width = rng.integers(1, COLUMNS - column + 1)
            got = read(files, t, int(first), int(count), int(column), int(width))
            assert got.dtype == np.float32
            assert (got == expected[first : first + count, column : column + width]).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_are_asked_for_in_shares(
    scheme: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of every part once, whatever the rows are divided into."""
    arrays, settings, _ = scheme(np.random.default_rng(7))
    t, files = source(arrays, settings, tmp_path / "model.safetensors")
    asked: list[int] = []
    monkeypatch.setattr(
        os_files, "expect", lambda fd, at, n: asked.extend(range(at, at + n)) or True
    )
    with files:
        assert all(files.expect(t, first, min(7, ROWS - first)) for first in range(0, ROWS, 7))
    whole = [range(p.offset, p.offset + p.n_rows * p.row_bytes) for p in t.parts]
    assert sorted(asked) == sorted(byte for part in whole for byte in part)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_part_that_is_missing_is_named(scheme: Callable[..., Any], tmp_path: Path) -> None:
    arrays, settings, _ = scheme(np.random.default_rng(7))
    # FP8 weights without scales are no weights; the others are found by their codes
    part = "w.weight" if scheme is fp8 else next(name for name in arrays if "scale" in name)
    del arrays[part]
    with pytest.raises(errors.TensorMissing, match=part):
        source(arrays, settings, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("scheme", "changes", "words"),
    [
        (gptq, {"bits": 3}, "3 bits"),
        (awq, {"bits": 8}, "4 bits"),
        (awq, {"group_size": 100}, "expected"),
        (packed, {"config_groups": {}}, "do not say how w.weight_packed is read"),
        (fp8, {"weight_block_size": [128, 128]}, "expected"),
        (fp8, {"weight_block_size": None}, "scales found for 96 rows"),
        (fp8, {"weight_block_size": ["a", 0]}, "blocks of"),
        (fp8, {"weight_block_size": [0, 128]}, "blocks of"),
        (fp8, {"quant_method": "bitnet"}, "bitnet"),
    ],
)
def test_settings_that_contradict(
    scheme: Callable[..., Any], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    arrays, settings, _ = scheme(np.random.default_rng(7))
    with pytest.raises(errors.ModelError, match=words):
        source(arrays, {**settings, **changes}, tmp_path / "model.safetensors")


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    arrays, settings, _ = gptq(np.random.default_rng(7))
    arrays["w.g_idx"][5] = 9
    t, files = source(arrays, settings, tmp_path / "model.safetensors")
    with files, pytest.raises(errors.CorruptFile, match="g_idx names a group"):
        read(files, t, 0, 8)
