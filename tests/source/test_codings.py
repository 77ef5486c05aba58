"""Weights kept in 8 and 4 bits: any rectangle of them is a part of the whole, and the whole is what
the coding's own definition says. (Whole models, as llama.cpp converts them, are in
test_architectures.py.)"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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
from tests.source.coded import FP8, ROWS, SCHEMES, Arrays

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
    ("scheme", "part"),
    [
        ("gptq", "w.scales"), ("awq", "w.scales"), ("packed", "w.weight_scale"),
        ("fp8 in blocks", "w.weight"), ("nvfp4, compressed-tensors", "w.weight_scale"),
        ("bitsandbytes nf4", "w.weight.quant_map"),
    ],
)  # fmt: skip
def test_a_part_that_is_missing_is_named(scheme: str, part: str, tmp_path: Path) -> None:
    arrays, settings, _ = SCHEMES[scheme](np.random.default_rng(7))
    del arrays[part]
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    with pytest.raises(errors.TensorMissing, match=part):
        coded.joined(path, settings)


@pytest.mark.parametrize(
    ("scheme", "changes", "words"),
    [
        ("gptq", {"bits": 5}, "5 bits"),
        ("gptq", {"bits": 8}, "expected"),
        ("gptq", {"checkpoint_format": "marlin"}, "layout 'marlin'; gptq, gptq_v2 are read"),
        ("gptq of 3 bits", {"bits": 4}, "expected"),
        ("gptq without g_idx", {"desc_act": True}, r"w\.g_idx is not in the checkpoint"),
        ("gptq, last group partial", {"group_size": 200}, "3 groups for 256 columns"),
        ("autoround, as gptq", {"packing_format": "auto_round:other"}, "'auto_round:other'"),
        ("autoround, as gptq", {"packing_format": None}, "packing_format ''"),
        ("awq", {"checkpoint_format": "gemv"}, "'gemm'"),
        ("awq", {"bits": 8}, "4 bits"),
        ("awq", {"version": "gemv"}, "'gemm'"),
        ("awq", {"group_size": 100}, "expected"),
        ("packed", {"config_groups": {}}, "do not say how w.weight_packed is read"),
        ("packed", coded.compressed("", num_bits=4, strategy="group", group_size=99), "scales for"),
        ("packed", coded.compressed("", num_bits=4, strategy="group"), "does not fit the parts"),
        ("fp8 in blocks", {"weight_block_size": [128, 128]}, "expected"),
        ("fp8 in blocks", {"weight_block_size": None}, "scales found for 96 rows"),
        ("fp8 in blocks", {"weight_block_size": ["a", 0]}, "blocks of"),
        ("fp8 in blocks", {"weight_block_size": [0, 128]}, "blocks of"),
        ("fp8 in blocks", {"quant_method": "hqq"}, "'hqq', which is not read .*16-bit"),
        ("fp8 in blocks", {"quant_method": None}, r"config\.json: no quantization_config"),
    ],
)  # fmt: skip
def test_settings_that_contradict(
    scheme: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    arrays, settings, _ = SCHEMES[scheme](np.random.default_rng(7))
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    with pytest.raises(errors.ModelError, match=words):
        coded.joined(path, {**settings, **changes})


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"transform_config": {"config_groups": {"R4": {"apply": [
            {"location": "weight_input"}, {"location": "input"}]}}}}, "transform_config"),
        ({"transform_config": {"config_groups": {"R1": {"apply": [
            {"location": "weight_output"}, {"location": "weight_input"}]}}}}, ""),
        ({"transform_config": {}, "algo_config": None}, ""),
        ({"algo_config": [{"name": "gptq"}, {"name": "rotation", "r4": True}]}, "algo_config"),
        ({"algo_config": {"name": "quarot"}}, "algo_config"),
        ({"algo_config": [{"name": "autosmoothquant"}]}, ""),
    ],
)  # fmt: skip
def test_activations_that_are_rotated(settings: dict[str, Any], key: str, tmp_path: Path) -> None:
    """Weights that are right only with what is rotated as the model runs are refused."""
    arrays, how, _ = SCHEMES["fp8 by row"](np.random.default_rng(7))
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    if key:
        with pytest.raises(errors.ConfigError, match=f"{key} of quantization_config rotates"):
            coded.joined(path, {**how, **settings})
    else:
        assert len(coded.joined(path, {**how, **settings})) == 1


def test_a_shape_that_its_codes_contradict_is_named(tmp_path: Path) -> None:
    arrays, settings, _ = SCHEMES["packed"](np.random.default_rng(7))
    arrays["w.weight_shape"] = np.array([ROWS, 64])
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    with pytest.raises(errors.TensorShape, match=rf"w\.weight_shape says \[{ROWS}, "):
        coded.joined(path, settings)


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    for scheme, name in ("gptq", "w.g_idx"), ("packed, columns in any order", "w.weight_g_idx"):
        arrays, settings, _ = SCHEMES[scheme](np.random.default_rng(7))
        arrays[name][5] = 9
        path = tmp_path / "model.safetensors"
        coded.write(arrays, path)
        (t,) = coded.joined(path, settings)
        with Files([path]) as files, pytest.raises(errors.CorruptFile, match="g_idx names a group"):
            read(files, t, 0, 8)


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


@pytest.mark.parametrize(
    ("scheme", "part", "code"),
    [("mxfp4, mimo", "w.weight_scale", 0xFF), ("nvfp4, modelopt", "w.weight_scale", 0x7F)],
)
def test_blocks_with_nan(scheme: str, part: str, code: int, tmp_path: Path) -> None:
    arrays, settings, _ = SCHEMES[scheme](np.random.default_rng(7))
    arrays[part].view(np.uint8)[5, 3] = code
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    (t,) = decoded(read_weights(path), read_settings({"quantization_config": settings}, None, ""))
    with Files([path]) as files:
        read(files, t, 6, 8)
        with pytest.raises(errors.NonFiniteWeight, match=r"w\.weight has NaN as a scale in row 5"):
            read(files, t, 2, 8)


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


def test_scales_beside_floats(tmp_path: Path) -> None:
    """Weights of 16 bits whose scales are still there: what is meant is not told."""
    path = tmp_path / "model.safetensors"
    coded.write({"w.weight": np.ones((4, 32), np.float16), "w.weight_scale": np.ones(1, F32)}, path)
    with pytest.raises(
        errors.UnsupportedSource, match=r"w\.weight is F16 and has scales .* delete"
    ):
        coded.joined(path, {"quant_method": "fp8"})


JUNK: list[Any] = [None, 0, -1, 7, 1 << 40, "", "x", [], [1, 2], {}, 1e400, True, [0, 0], "0x0"]


def _keys(table: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for key, value in table.items():
        yield table, key
        if isinstance(value, dict):
            yield from _keys(value)


def _bend(arrays: Arrays, settings: dict[str, Any], rng: np.random.Generator) -> None:
    """One thing that does not fit: in a part's shape, type or bytes, or in the settings."""
    name = str(rng.choice(list(arrays)))
    a = arrays[name]
    match int(rng.integers(0, 7)):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = a.reshape(-1)[: int(rng.integers(0, a.size + 1))]
        case 2:
            arrays[name] = a.reshape(a.size, 1) if rng.integers(0, 2) else a.reshape(1, 1, a.size)
        case 3:
            kinds: list[Any] = [np.int8, F32, np.int32, np.uint8, np.int64, np.float16, FP8]
            arrays[name] = np.zeros(a.shape, kinds[int(rng.integers(0, len(kinds)))])
        case 4:
            data = rng.integers(0, 256, a.nbytes, dtype=np.uint8)
            arrays[name] = data.view(a.dtype).reshape(a.shape)
        case _:
            if places := list(_keys(settings)):
                table, key = places[int(rng.integers(0, len(places)))]
                table[key] = JUNK[int(rng.integers(0, len(JUNK)))]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_that_are_malformed(scheme: str, tmp_path: Path) -> None:
    """Whatever is wrong with the parts or the settings: an error with a name, or weights."""
    make: Callable[..., Any] = SCHEMES[scheme]
    rng = np.random.default_rng(11)
    whole, settings, _ = make(rng)
    path = tmp_path / "model.safetensors"
    refused = 0
    for _ in range(60):
        arrays, bent = dict(whole), copy.deepcopy(settings)
        _bend(arrays, bent, rng)
        coded.write(arrays, path)
        try:
            tensors = coded.joined(path, bent)
            with Files([path]) as files, np.errstate(all="ignore"):
                for t in tensors:
                    assert len(read(files, t, 0, t.n_rows)) == t.n_rows
        except errors.QuantkitError:
            refused += 1
    assert refused >= (0 if scheme == "float64" else 10)
