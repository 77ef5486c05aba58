"""Codings that are not read, and parts that do not fit: refused by name, whatever is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.source.checkpoint import read_weights
from quantkit.source.codings import decoded, read, read_settings
from quantkit.source.tensors import Files
from tests.source import coded
from tests.source.coded import FP8, ROWS, SCHEMES, Arrays

F32 = np.float32


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


_PACKED = {"num_bits": 4, "strategy": "group", "group_size": 64, "type": "int"}


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
        ("awq", {"backend": "llm-awq"}, "'gemm'"),
        ("gptq", {"format": "gptq_v2", "checkpoint_format": "gptq"}, "two layouts at once"),
        ("gptq", {"is_marlin_format": True}, "'marlin'"),
        ("gptq", {"format": "bitblas"}, "'bitblas'"),
        ("packed", {"config_groups": {}}, "do not say how w.weight_packed is read"),
        ("packed", coded.compressed("", num_bits=4, strategy="group", group_size=99), "scales for"),
        ("packed", coded.compressed("", num_bits=4, strategy="group"), "does not fit the parts"),
        ("packed, symmetric", _PACKED | {"symmetric": False}, r"w\.weight_zero_point is not in"),
        ("packed", _PACKED | {"actorder": "group"}, r"w\.weight_g_idx is not in"),
        ("packed in 8 bits", _PACKED, "scales for 64 weights each"),
        ("packed", _PACKED | {"num_bits": 8}, "scales for 64 weights each"),
        ("packed", {"format": "marlin-24"}, "'marlin-24', are not read"),
        ("fp8 by row", {"sparsity_config": {"format": "sparse-24-bitmask"},
                        "quant_method": "compressed-tensors"}, "'sparse-24-bitmask', are not"),
        ("quark, fp8 by row", {"global_quant_config": {"weight": {
            "qscheme": "per_channel", "ch_axis": 1}}}, "ch_axis"),
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
    if "num_bits" in changes:
        changes = coded.compressed("pack-quantized", **changes)
    with pytest.raises(errors.QuantkitError, match=words):
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
        ({"rotation": "hadamard"}, "rotation"),
        ({"rotation": None, "hadamard_config": {}}, ""),
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
        coded.write({"w.weight": np.ones((4, 32), np.float16)}, path)  # not quantized at all
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


@pytest.mark.parametrize(
    ("name", "dtype", "whose"),
    [
        ("w.q_weight", np.int32, "EXL2"), ("w.trellis", np.int16, "EXL3"),
        ("w.W_q", np.uint8, "HQQ"), ("w.codes", np.int8, "AQLM"), ("w.indices", np.int32, "VPTQ"),
        ("w.dense_weights", np.int64, "SpQR"), ("w.Qidxs", np.int64, "QuIP#"),
        ("w.weight._data", np.int8, "quanto"), ("w.weight_qdata", np.int8, "torchao"),
        ("w.B", np.int32, "Marlin"), ("w.weight.bitmask", np.uint8, "sparse layouts"),
        ("w.weight", np.uint32, "MLX"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["", "gptq"])
def test_codings_that_only_tensors_name(
    name: str, dtype: Any, whose: str, method: str, tmp_path: Path
) -> None:
    """Some tools write no settings, or those of another: the parts are refused all the same."""
    arrays: Arrays = {name: np.ones((32, 4), dtype), "w.scales": np.ones((32, 1), np.float16)}
    path = tmp_path / "model.safetensors"
    coded.write({**arrays, "x.weight": np.ones((4, 32), np.int8)}, path)
    with pytest.raises(errors.UnsupportedSource, match=f"{whose}.*Convert the 16-bit release"):
        coded.joined(path, {"quant_method": method} if method else {})


def test_scales_of_what_goes_in_first(tmp_path: Path) -> None:
    """ModelOpt's AWQ multiplies activations by a scale of each channel."""
    arrays, settings, _ = SCHEMES["nvfp4, modelopt"](np.random.default_rng(7))
    path = tmp_path / "model.safetensors"
    coded.write({**arrays, "w.pre_quant_scale": np.ones(256, np.float16)}, path)
    with pytest.raises(errors.UnsupportedSource, match="changes what goes into the weights"):
        coded.joined(path, settings)


def test_integers_of_four_bits_in_words(tmp_path: Path) -> None:
    """Quark's INT4: words called `weight`."""
    arrays: Arrays = {
        "w.weight": np.ones((64, 8), np.int32),
        "w.weight_scale": np.ones((2, 64), F32),
    }
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    with pytest.raises(errors.UnsupportedSource, match=r"w\.weight is I32 .* 16-bit release"):
        coded.joined(path, {"quant_method": "quark"})


def test_int8_without_its_zeros(tmp_path: Path) -> None:
    arrays, settings, _ = SCHEMES["int8 with zeros"](np.random.default_rng(7))
    del arrays["w.weight_zero_point"]
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    settings["config_groups"]["group_0"]["weights"]["symmetric"] = False
    with pytest.raises(errors.TensorMissing, match=r"w\.weight_zero_point is not in"):
        coded.joined(path, settings)


def test_rows_of_bitsandbytes_in_tiles(tmp_path: Path) -> None:
    """What GPUs of old multiplied with: the codes are in another order."""
    arrays, settings, _ = SCHEMES["bitsandbytes int8"](np.random.default_rng(7))
    arrays["w.weight_format"] = np.array(2, np.uint8)
    path = tmp_path / "model.safetensors"
    coded.write(arrays, path)
    with pytest.raises(errors.UnsupportedSource, match="col_turing"):
        coded.joined(path, settings)


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
