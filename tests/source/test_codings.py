"""Weights kept in 8 and 4 bits: any rectangle of them is a part of the whole, and the whole is what
the coding's own definition says. (Whole models, as llama.cpp converts them, are in
test_architectures.py.)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from quantkit import errors
from quantkit.source.checkpoint import read_weights
from quantkit.source.codings import decoded, read, read_settings, settings_note
from quantkit.source.codings.nvfp4 import all_ones, scales
from quantkit.source.codings.scaled import by_rank, check_order
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage import os_files
from tests.source import coded
from tests.source.coded import FP8, ROWS, SCHEMES

F32 = np.float32


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, ...]]:
    """A coding's tensor, its open file, and what it means."""
    arrays, settings, expected = SCHEMES[request.param](np.random.default_rng(7))
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    (t,) = coded.joined(path, settings)
    with Files([path]) as files:
        yield t, files, expected.astype(F32)


@pytest.mark.parametrize("made", SCHEMES, indirect=True)
def test_any_rectangle(made: tuple[SourceTensor, Files, np.ndarray[Any, Any]]) -> None:
    t, files, expected = made
    rng = np.random.default_rng(7)
    rows, columns = expected.shape
    assert (t.name, t.shape, t.ggml.name) == ("w.weight", expected.shape, "F32")
    assert (read(files, t, 0, rows) == expected).all()
    for _ in range(60):
        first, column = int(rng.integers(0, rows)), int(rng.integers(0, columns))
        count = int(rng.integers(1, rows - first + 1))
        width = int(rng.integers(1, columns - column + 1))
        got = read(files, t, first, count, column, width)
        assert got.dtype == F32
        assert (got == expected[first : first + count, column : column + width]).all()


@pytest.mark.parametrize("made", SCHEMES, indirect=True)
def test_parts_are_asked_for_in_shares(
    made: tuple[SourceTensor, Files, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of every part once, whatever the rows are divided into."""
    t, files, _ = made
    asked: list[int] = []
    monkeypatch.setattr(
        os_files, "expect", lambda fd, at, n: asked.extend(range(at, at + n)) or True
    )
    assert all(files.expect(t, first, min(7, ROWS - first)) for first in range(0, ROWS, 7))
    whole = [range(p.offset, p.offset + p.n_rows * p.row_bytes) for p in t.parts]
    assert sorted(asked) == sorted(byte for part in whole for byte in part)


@pytest.mark.parametrize(
    "scheme", [name for name in SCHEMES if name.startswith(("mxfp4", "nvfp4"))]
)
def test_blocks_are_ggmls(scheme: str, tmp_path: Path) -> None:
    """The blocks that are kept, read by gguf-py and times the tensor's scale, are the weights."""
    arrays, settings, expected = SCHEMES[scheme](np.random.default_rng(7))
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    (t,) = decoded(
        read_weights(path), read_settings({"quantization_config": settings}, None, "config.json")
    )
    if expected.shape[1] % 64:
        assert t.ggml.name == "F32"  # ggml has no blocks for such rows
        return
    with Files([path]) as files:
        blocks = read(files, t, 0, ROWS)
        values = dequantize(blocks, GGMLQuantizationType[t.ggml.name])
        if t.coding == "nvfp4":
            scale, given = (scales(n, [t, t], n == "in") for n in ("s", "in"))
            factors = read(files, scale, 0, 2)
            assert factors.shape == (2, 1)
            assert not all_ones(files, scale)
            assert read(files, given, 1, 1)[0, 0] == F32(0.02)
            values = values * factors[0]
    np.testing.assert_allclose(values, expected, rtol=3e-7)


def test_scales_of_one(tmp_path: Path) -> None:
    """llama.cpp's converter leaves them out; a tensor without a scale has one of 1."""
    arrays, settings, _ = SCHEMES["nvfp4, modelopt"](np.random.default_rng(7))
    del arrays["w.input_scale"]
    for value, ones in (1.0, True), (1 + 5e-7, True), (1.0001, False), (np.nan, False):
        arrays["w.weight_scale_2"] = np.array(value, F32)
        path = tmp_path / "model.safetensors"
        coded.write(arrays, path)
        (t,) = decoded(
            read_weights(path), read_settings({"quantization_config": settings}, None, "")
        )
        with Files([path]) as files:
            assert all_ones(files, scales("s", [t])) is ones
            assert all_ones(files, scales("s", [t, t])) is ones
            assert all_ones(files, scales("s", [t], inputs=True))


def test_a_stack_of_matrices(tmp_path: Path) -> None:
    """Experts in one tensor, with a scale each, a scale a row of each, or blocks of each."""
    rng = np.random.default_rng(7)
    codes = rng.normal(0, 40, (3, 48, 64)).astype(FP8)
    path = tmp_path / "model.safetensors"
    for shape, block, whole in (
        ((3,), None, (1, 1)),
        ((3, 1, 1), None, (1, 1)),
        ((3, 48, 1), None, (48, 1)),
        ((3, 48), None, (48, 1)),
        ((3, 1, 64), None, (1, 64)),
        ((3, 2, 3), [32, 24], (2, 3)),
        ((1,), None, (1, 1)),
    ):
        values = rng.normal(1, 0.2, shape).astype(F32)
        coded.write({"x.gate_up_proj": codes, "x.gate_up_proj_scale_inv": values}, path)
        settings = {"quant_method": "fp8", "weight_block_size": block}
        (t,) = coded.joined(path, settings)
        height, width = block or (48 // whole[0], 64 // whole[1])
        factors = values.reshape(-1, *whole).repeat(height, 1).repeat(width, 2)[:, :48, :64]
        expected = (codes.astype(F32) * factors).reshape(-1, 64)
        with Files([path]) as files:
            assert (read(files, t, 0, 144) == expected).all()
            assert (read(files, t, 40, 60, 5, 30) == expected[40:100, 5:35]).all()


@pytest.mark.parametrize("inputs", [48, 64])
def test_experts_that_stand_inputs_by_outputs(inputs: int, tmp_path: Path) -> None:
    """Llama 4's in fbgemm_fp8: `down_proj` has its scales one an output, which are columns."""
    rng = np.random.default_rng(7)
    codes = rng.normal(0, 40, (3, inputs, 64)).astype(FP8)
    values = rng.normal(1, 0.2, (3, 64, 1)).astype(F32)
    path = tmp_path / "model.safetensors"
    coded.write({"x.down_proj": codes, "x.down_proj_scale": values}, path)
    (t,) = coded.joined(path, {"quant_method": "fbgemm_fp8"})
    expected = (codes.astype(F32) * values.transpose(0, 2, 1)).reshape(-1, 64)
    with Files([path]) as files:
        assert (read(files, t, 0, 3 * inputs) == expected).all()
        assert (read(files, t, 40, 60, 5, 30) == expected[40:100, 5:35]).all()


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1,), ()])
@pytest.mark.parametrize("name", ["x.gate_up_proj_weight", "x.gate_up_proj"])
def test_a_stack_as_modelopt_names_its_parts(
    shape: tuple[int, ...], name: str, tmp_path: Path
) -> None:
    """NVFP4 and FP8 of all experts in one tensor, and scales of their inputs, which are left."""
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 16, (3, 48, 64))
    groups = np.abs(rng.normal(0, 100, (3, 48, 4))).astype(FP8)
    whole = rng.normal(1, 0.2, shape).astype(F32)
    each = np.broadcast_to(whole.reshape(-1, 1, 1), (3, 1, 1))
    fp8 = rng.normal(0, 40, (3, 48, 64)).astype(FP8)
    path = tmp_path / "model.safetensors"
    for arrays, expected in (
        (
            {
                "x.gate_up_proj": coded.pairs(codes),
                f"{name}_scale": groups,
                f"{name}_scale_2": whole,
            },
            np.array(coded.E2M1, F32)[codes] * np.repeat(groups.astype(F32) * each, 16, -1),
        ),
        ({"x.gate_up_proj": fp8, f"{name}_scale": whole}, fp8.astype(F32) * each),
    ):
        coded.write({**arrays, "x.gate_up_proj_input_scale": whole}, path)
        (t,) = coded.joined(path, {"quant_method": "modelopt"})
        assert (t.name, t.shape, t.ggml.name) == ("x.gate_up_proj", (3, 48, 64), "F32")
        with Files([path]) as files:
            assert (read(files, t, 0, 144) == expected.reshape(-1, 64)).all()
            got = read(files, t, 40, 60, 5, 30)
            assert (got == expected.reshape(-1, 64)[40:100, 5:35]).all()


@pytest.mark.parametrize("shape", [(3,), ()])
def test_a_stack_that_stands_inputs_by_outputs(shape: tuple[int, ...], tmp_path: Path) -> None:
    """ModelOpt turns Llama 4's and gpt-oss's experts, packs their rows, and turns them back."""
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 16, (3, 48, 64))  # [experts, outputs, inputs]
    groups = np.abs(rng.normal(0, 100, (3, 48, 4))).astype(FP8)
    whole = rng.normal(1, 0.2, shape).astype(F32)
    each = np.broadcast_to(whole.reshape(-1, 1, 1), (3, 1, 1))
    expected = np.array(coded.E2M1, F32)[codes] * np.repeat(groups.astype(F32) * each, 16, -1)
    expected = expected.transpose(0, 2, 1).reshape(-1, 48)
    arrays = {
        "x.down_proj": coded.pairs(codes).transpose(0, 2, 1),
        "x.down_proj_weight_scale": groups.transpose(0, 2, 1),
        "x.down_proj_weight_scale_2": whole,
    }
    path = tmp_path / "model.safetensors"
    coded.write({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    (t,) = coded.joined(path, {"quant_method": "modelopt"})
    assert (t.name, t.shape, t.ggml.name) == ("x.down_proj", (3, 64, 48), "F32")
    with Files([path]) as files:
        assert (read(files, t, 0, 192) == expected).all()
        for _ in range(60):
            first, column = int(rng.integers(0, 192)), int(rng.integers(0, 48))
            count, width = int(rng.integers(1, 193 - first)), int(rng.integers(1, 49 - column))
            got = read(files, t, first, count, column, width)
            assert (got == expected[first : first + count, column : column + width]).all()


@pytest.mark.parametrize("ranks", [4, 8])
def test_rows_in_the_order_of_ranks(ranks: int, tmp_path: Path) -> None:
    """Each rank has its rows of q, k and v, and scales of blocks of its own, the last partial."""
    rng = np.random.default_rng(7)
    heights, columns = (720, 320, 160), 200
    per_rank = sum(heights) // ranks
    q, k, v = (rng.normal(0, 1, (n, columns)).astype(FP8) for n in heights)
    parts = [np.split(x, ranks) for x in (q, k, v)]
    codes = np.concatenate([x[r] for r in range(ranks) for x in parts])
    blocks = -(-per_rank // 128)
    values = rng.normal(1, 0.2, (ranks * blocks, 2)).astype(F32)
    whole = np.concatenate(
        [values[r * blocks :][:blocks].repeat(128, 0)[:per_rank] for r in range(ranks)]
    )
    floats = codes.astype(F32) * whole.repeat(128, 1)[:, :columns]
    sizes = np.cumsum([n // ranks for n in heights])[:-1]
    by_part = [np.split(x, sizes) for x in np.split(floats, ranks)]
    expected = np.concatenate([by_part[r][i] for i in range(3) for r in range(ranks)])
    path = tmp_path / "model.safetensors"
    coded.write({"w.weight": codes, "w.weight_scale_inv": values}, path)
    (t,) = coded.joined(path, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    with pytest.raises(errors.TensorShape, match="weight_scale_inv"):
        check_order(t)  # no family says which rows are whose
    with pytest.raises(errors.TensorShape, match="tensor-parallel ranks"):
        by_rank(t, (720, 321, 159))
    t = by_rank(t, heights)
    check_order(t)
    with Files([path]) as files:
        assert (read(files, t, 0, t.n_rows) == expected).all()
        for _ in range(60):
            first = int(rng.integers(0, t.n_rows))
            count = int(rng.integers(1, t.n_rows - first + 1))
            got = read(files, t, first, count, 3, 150)
            assert (got == expected[first : first + count, 3:153]).all()


def test_groups_of_settings(tmp_path: Path) -> None:
    """A module has the settings of the group that names it, whatever its class; no group that does
    not name it, if another takes its class."""
    weights = [{"num_bits": bits, "strategy": "group", "group_size": 32} for bits in (2, 3, 4, 8)]
    targets = [["Linear"], ["re:.*experts.*"], ["model.layers.0.mlp.experts.1.up_proj"], ["Other"]]
    groups = {
        f"group_{i}": {"targets": t, "weights": w}
        for i, (t, w) in enumerate(zip(targets, weights, strict=True))
    }
    settings = read_settings(
        {"quantization_config": {"config_groups": groups}}, None, "config.json"
    )
    assert settings.method == "compressed-tensors"
    found = [
        settings.weights(name)["num_bits"]
        for name in (
            "model.layers.0.mlp.experts.1.up_proj.weight",
            "model.layers.0.mlp.experts.2.up_proj.weight",
            "model.layers.0.self_attn.q_proj.weight",
        )
    ]
    assert found == [4, 3, 2]
    bad = {"config_groups": {"group_0": {"targets": ["re:("], "weights": {}}}}
    with pytest.raises(errors.ConfigError, match=r"config\.json: 're:\(' .* no regular expression"):
        read_settings({"quantization_config": bad}, None, "config.json").weights("w.weight")


def test_what_activations_and_caches_leave(tmp_path: Path) -> None:
    arrays, settings, _ = SCHEMES["fp8 by row"](np.random.default_rng(7))
    one = np.ones(1, F32)
    left = [
        "w.input_scale",
        "w.k_scale",
        "w.v_scale",
        "w.activation_scale",
        "w.output_scale",
        "x.down_proj_activation_scale",
        "w.qscale_act",
        "w.input_scale_ub",
        "x.down_proj_input_scale",
        "x.gate_up_proj_input_global_scale",
    ]
    path = tmp_path / "model.safetensors"
    coded.write({**arrays, **dict.fromkeys(left, one), "w.norm_scale": one}, path)
    assert [t.name for t in coded.joined(path, settings)] == ["w.norm_scale", "w.weight"]


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "hqq", "gptq", "fp8"])
def test_settings_that_are_left_over(method: str, tmp_path: Path) -> None:
    """Nothing is quantized: the settings count for nothing, and people are told."""
    path = tmp_path / "model.safetensors"
    coded.write({"w.weight": np.ones((4, 32), np.float16), "n": np.ones(4, np.int64)}, path)
    tensors = read_weights(path)
    how = read_settings({"quantization_config": {"quant_method": method}}, None, "config.json")
    assert decoded(tensors, how) == tensors
    assert f"config.json says '{method}'" in (settings_note(tensors, how) or "")
    assert settings_note(tensors, read_settings({}, None, "config.json")) is None
