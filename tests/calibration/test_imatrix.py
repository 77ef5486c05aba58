"""Importance matrices: the values and keys of llama-quantize, what they cover, and bad files."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import quant_types
from quantkit import api
from quantkit.calibration.imatrix import Imatrix, check_coverage, coverage, read_imatrix, selected
from quantkit.errors import ImatrixError, UsageError
from quantkit.gguf.container import read_header
from quantkit.model.model import ModelTensor
from quantkit.recipes.choose import needs_importance
from tests.calibration.imatrix_bytes import KEYS, entry, gguf, legacy, read, strings
from tests.checkpoints import FRANKENMOE

DATA = Path(__file__).parents[1] / "data"
GOLDENS = {path.stem: path for path in sorted((DATA / "imatrix").glob("*.gguf"))}


def golden_case(case: str) -> dict[str, Any]:
    packed = (DATA / "quantize" / "goldens.json.gz").read_bytes()
    return dict(json.loads(gzip.decompress(packed))["cases"][case])


# values


def test_sums_become_means_and_unreached_experts_neutral(tmp_path: Path) -> None:
    sums = [[2, 4, 1e-3], [9, 9, 9], [7, 1, 0]]
    found = read(tmp_path, gguf(entry("blk.0.ffn_up_exps.weight", sums, [2, 0, 3])))
    expected = np.array([[1, 2, 5e-4], [1, 1, 1], np.array([7, 1, 0], np.float32) / 3], np.float32)
    assert found.values["blk.0.ffn_up_exps.weight"].tobytes() == expected.tobytes()
    assert found.datasets == ("a.txt", "b.txt")
    assert found.chunks == 5


@pytest.mark.parametrize(("count", "whole"), [(2.5, 3), (1.4, 1), (0.5, 1)])
def test_counts_are_rounded_half_away_from_zero(tmp_path: Path, count: float, whole: int) -> None:
    found = read(tmp_path, gguf(entry("x", [[3.0, 7.0]], [count])))
    assert found.values["x"].tolist() == [
        float(np.float32(3) / np.float32(whole)),
        float(np.float32(7) / np.float32(whole)),
    ]


@pytest.mark.parametrize("count", [0.4, -3.0])
def test_without_a_positive_count_the_prior_holds(tmp_path: Path, count: float) -> None:
    assert read(tmp_path, gguf(entry("x", [[3.0, 7.0]], [count]))).values["x"].tolist() == [1, 1]


def test_legacy_means_are_divided_by_their_calls(tmp_path: Path) -> None:
    tail = struct.pack("<ii", 9, 7) + b"new.txt"
    entries = [(b"x", 3, [3.0, 1.0]), (b"y", 0, [3.0, 1.0]), (b"z\0junk", 1, [2.0])]
    found = read(tmp_path, legacy(entries, tail))
    assert {n: v.tolist() for n, v in found.values.items()} == {
        "x": [1.0, float(np.float32(1) / np.float32(3))],
        "y": [3.0, 1.0],
        "z": [2.0],
    }
    assert (found.datasets, found.chunks) == (("new.txt",), 9)


def test_the_oldest_legacy_files_end_after_their_entries(tmp_path: Path) -> None:
    found = read(tmp_path, legacy([(b"x", 1, [1.0])]))
    assert (found.datasets, found.chunks) == ((), 0)
    assert [item.key for item in found.key_values] == [
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    ]


def test_both_forms_of_one_matrix_agree() -> None:
    new = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
    old = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.dat")
    assert new.values.keys() == old.values.keys()
    assert (new.datasets, new.chunks) == (old.datasets, old.chunks)
    for name, data in new.values.items():
        np.testing.assert_array_max_ulp(data, old.values[name], maxulp=1)  # multiplied and divided


def test_importances_lead_to_the_bytes_of_llama_quantize() -> None:
    golden = json.loads((DATA / "frankenmoe-4x.golden.json").read_text())["quantize_imatrix"]
    expected = {t["name"]: t for t in golden["Q4_K_M"]["tensors"]}
    matrix = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
    with safe_open(FRANKENMOE / "model.safetensors", "np") as f:
        for block in (0, 1):
            name = f"blk.{block}.ffn_down_exps.weight"
            weights = f.get_tensor(f"model.layers.{block}.mlp.experts.down_proj")
            assert weights.dtype in (np.dtype(ml_dtypes.bfloat16), np.float32, np.float16)
            tensor = ModelTensor(name, weights.shape, "BF16", ())
            importance = matrix.for_tensors([tensor])[name]
            fmt, rows = expected[name]["type"], importance[:, None, :]
            data = quant_types.quantize(weights, fmt, rows, engine="array")
            assert hashlib.sha256(data.tobytes()).hexdigest() == expected[name]["sha256"]


# metadata


@pytest.mark.parametrize("case", [name for name in GOLDENS if name != "frankenmoe-4x"])
def test_the_keys_that_llama_quantize_adds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    matrix = read_imatrix(f"imatrix/{case}.gguf")
    for expected in golden_case(case)["types_imatrix"].values():
        found = {k.key: {"type": k.type, "value": k.value} for k in matrix.key_values}
        assert found == expected["quantize_kv"]
        assert list(found) == expected["kv_order_tail"][-len(found) :]


def test_long_texts_are_cut_as_llama_quantize_cuts_them(tmp_path: Path) -> None:
    name = "é" * 80  # 160 bytes; 127 of them end within a character
    keys = (*KEYS[:1], strings("imatrix.datasets", name.encode()), *KEYS[2:])
    matrix = read(tmp_path, gguf(entry("x", [[1.0]], [1]), keys))
    dataset = next(k for k in matrix.key_values if k.key == "quantize.imatrix.dataset")
    assert dataset.raw == struct.pack("<IQ", 8, 127) + name.encode()[:127]


# selection


def matrix_of(*names: str) -> Imatrix:
    return Imatrix("m.gguf", {name: np.ones(4, np.float32) for name in names}, (), 1)


def test_weights_are_included_or_excluded_by_parts_of_their_names() -> None:
    matrix = matrix_of("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.attn_q.weight")
    assert list(selected(matrix).values) == list(matrix.values)
    assert list(selected(matrix, include=["blk.1", "attn_k"]).values) == [
        "blk.0.attn_k.weight",
        "blk.1.attn_q.weight",
    ]
    chosen = selected(matrix, exclude=["blk.1", "attn_k"])
    assert list(chosen.values) == ["blk.0.attn_q.weight"]
    assert chosen.key_values[-2].value == 1  # entries_count


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["attn_q"], ["attn_k"], "exclude each other"),
        (["atn_q"], [], r"no entry for 'atn_q'; near names: attn_q"),
        ([], ["ffn"], "no entry for 'ffn'"),
        ([], ["blk"], "every entry is excluded"),
    ],
)
def test_a_selection_that_cannot_be_meant(
    include: list[str], exclude: list[str], message: str
) -> None:
    with pytest.raises(UsageError if include and exclude else ImatrixError, match=message):
        selected(matrix_of("blk.0.attn_q.weight", "blk.0.attn_k.weight"), include, exclude)


# coverage

MODEL = [
    ("output.weight", (8, 4), "Q6_K"),
    ("token_embd.weight", (8, 4), "Q4_K"),
    ("blk.0.attn_norm.weight", (4,), "F32"),
    ("blk.0.attn_q.weight", (2, 4), "Q4_K"),
    ("blk.0.ffn_down_exps.weight", (3, 2, 4), "Q4_K"),
]


def covering(**changes: np.ndarray[Any, Any]) -> Imatrix:
    """A matrix for MODEL with data that is not 1, but for `changes`."""
    values = {"attn_q": np.full(4, 2, np.float32), "ffn_down_exps": np.arange(2, 14, dtype="f4")}
    values |= changes
    return Imatrix("m.gguf", {f"blk.0.{n}.weight": v for n, v in values.items()}, (), 1)


@pytest.mark.parametrize("case", [name for name in GOLDENS if name != "frankenmoe-4x"])
def test_a_models_own_matrix_covers_it(case: str) -> None:
    golden = golden_case(case)
    made = zip(golden["tensors"], golden["types_imatrix"]["Q4_K_M"]["formats"], strict=True)
    tensors = [(name, tuple(shape), fmt) for (name, shape, _), fmt in made]
    matrix = read_imatrix(GOLDENS[case])
    found = coverage(matrix, tensors)
    assert found.covered > 0
    assert found.lines() == []
    assert not found.mismatched
    check_coverage(matrix, found, strict=True)
    held = matrix.for_tensors([ModelTensor(name, shape, "", ()) for name, shape, _ in tensors])
    assert {name: v.shape[1] for name, v in held.items()} == {
        name: shape[-1] for name, shape, _ in tensors if name in matrix.values
    }


def test_coverage_is_silent_where_everything_has_data() -> None:
    matrix = covering()
    found = coverage(matrix, MODEL)
    assert (found.covered, found.missing, found.unreached, found.unknown) == (2, (), {}, ())
    assert found.lines() == []
    check_coverage(matrix, found, needed=["blk.0.attn_q.weight"], strict=True)


def test_tables_of_integers_use_nothing() -> None:
    """DeepSeek-V4's lists of experts by token, and what is stored in F64, are copied."""
    tables = [("blk.0.ffn_gate_tid2eid.weight", (9, 2), "I32"), ("blk.0.x.weight", (4, 4), "F64")]
    found = coverage(covering(), [*MODEL, *tables])
    assert (found.covered, found.missing) == (2, ())
    assert not needs_importance("token_embd.weight", "F64")


def test_a_release_of_a_model_with_tables_of_integers(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    name, width = "blk.1.ffn_down_shexp.weight", 256
    matrix = tmp_path / "m.gguf"
    matrix.write_bytes(gguf(entry(name, [[2.0] * width], [1])))
    made = api.release(
        checkpoint("deepseek-v4"), tmp_path / "out", ["Q4_0"], imatrix=matrix, allow_requantize=True
    )
    assert made.manifest.imatrix is not None
    (file,) = (tmp_path / "out").glob("*Q4_0.gguf")
    kinds = {t.name: t.ggml_type for t in read_header(file).tensors}
    assert {kind for n, kind in kinds.items() if "tid2eid" in n} == {26}


def test_experts_that_calibration_never_reached_are_named() -> None:
    data = np.arange(2, 14, dtype=np.float32)
    data[4:8] = 1
    matrix = covering(ffn_down_exps=data)
    found = coverage(matrix, MODEL)
    assert found.unreached == {"blk.0.ffn_down_exps.weight": (1,)}
    assert "never reached: 1, which get a neutral" in found.lines()[0]
    check_coverage(matrix, found)
    with pytest.raises(ImatrixError, match=r"never reached.*ffn_down_exps.weight expert 1"):
        check_coverage(matrix, found, strict=True)


def test_a_matrix_that_is_no_expert_is_not_called_one() -> None:
    matrix = covering(attn_q=np.ones(4, np.float32))
    (line,) = coverage(matrix, MODEL).lines()
    assert line == (
        "matrices that calibration never reached: 1, which get a neutral importance of 1: "
        "blk.0.attn_q.weight"
    )


def test_tensors_without_data_are_named_if_their_format_would_use_it() -> None:
    matrix = covering()
    more = [
        *MODEL,
        ("blk.1.attn_q.weight", (2, 4), "Q4_K"),
        ("blk.1.attn_k.weight", (2, 4), "Q8_0"),
    ]
    found = coverage(matrix, more)
    assert found.missing == ("blk.1.attn_q.weight",)
    check_coverage(matrix, found, needed=["blk.0.attn_q.weight"])
    with pytest.raises(ImatrixError, match=r"no importances for blk.1.attn_q.weight, which so few"):
        check_coverage(matrix, found, needed=["blk.1.attn_q.weight"])
    with pytest.raises(ImatrixError, match=r"no importances for blk.1.attn_q.weight: quantized"):
        check_coverage(matrix, found, strict=True)
    both = coverage(matrix, [*more, ("blk.1.attn_k.weight", (2, 4), "Q4_K")])  # a second output
    assert both.missing == ("blk.1.attn_q.weight", "blk.1.attn_k.weight")


def test_data_of_another_size_is_of_another_model() -> None:
    matrix = covering(attn_q=np.full(5, 2, np.float32))
    message = r"another model: blk.0.attn_q.weight needs 1 x 4 values, the matrix has 5$"
    with pytest.raises(ImatrixError, match=message):
        check_coverage(matrix, coverage(matrix, MODEL))
    with pytest.raises(ImatrixError, match=message):
        matrix.for_tensors([ModelTensor(name, shape, "", ()) for name, shape, _ in MODEL])


def test_names_that_the_model_does_not_have_are_of_another_model() -> None:
    matrix = matrix_of("enc.blk.0.attn_q.weight")
    with pytest.raises(ImatrixError, match="another model: the model has none of its tensors"):
        check_coverage(matrix, coverage(matrix, MODEL))


def test_data_of_another_size_for_the_embedding_is_left_aside() -> None:
    matrix = covering()
    odd = Imatrix("m", {**matrix.values, "token_embd.weight": np.ones(9, np.float32)}, (), 1)
    check_coverage(odd, coverage(odd, MODEL), strict=True)
    assert "token_embd.weight" not in odd.for_tensors(
        [ModelTensor(name, shape, "", ()) for name, shape, _ in MODEL]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_values_that_are_no_importances_are_refused(bad: float) -> None:
    data = np.full(4, 2, np.float32)
    data[2] = bad
    matrix = covering(attn_q=data)
    with pytest.raises(ImatrixError, match=r"NaN, infinite or negative .*blk.0.attn_q.weight"):
        check_coverage(matrix, coverage(matrix, MODEL))


def test_pruned_models_find_their_data_under_the_old_names() -> None:
    matrix = covering()
    moved = [(name.replace("blk.0", "blk.7"), shape, fmt) for name, shape, fmt in MODEL]
    old = {new: name for (new, _, _), (name, _, _) in zip(moved, MODEL, strict=True)}
    found = coverage(matrix, moved, old)
    assert (found.covered, found.missing, found.unknown) == (2, (), ())
    tensors = [ModelTensor(name, shape, "", ()) for name, shape, _ in moved]
    assert matrix.for_tensors(tensors, old).keys() == {
        "blk.7.attn_q.weight",
        "blk.7.ffn_down_exps.weight",
    }


def test_gate_and_up_serve_each_other_joined_or_not() -> None:
    """Both see the same activations; llama-quantize uses what has their very name alone."""
    up, joined = "blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_up_exps.weight"
    gate = "blk.0.ffn_gate_exps.weight"
    values = np.arange(2 * 4, dtype=np.float32)
    apart = Imatrix("apart", {gate: values, up: values}, (), 1)
    together = Imatrix("together", {joined: values}, (), 1)
    cases = [(apart, [(joined, (2, 6, 4))]), (together, [(gate, (2, 3, 4)), (up, (2, 3, 4))])]
    for matrix, tensors in cases:
        found = coverage(matrix, [(name, shape, "Q2_K") for name, shape in tensors])
        assert (found.covered, found.missing, found.unknown) == (len(tensors), (), ())
        for name, _ in tensors:
            np.testing.assert_array_equal(matrix.of(name), values)
    assert apart.of("blk.0.ffn_down_exps.weight") is None
