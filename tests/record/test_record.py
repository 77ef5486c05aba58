"""The recorder, without llama.cpp: what it keeps of files and checkpoints."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from tests.checkpoints import GOLDEN
from tests.record import RecordError, fingerprint, llama_cpp, recipes, store
from tests.record.__main__ import main, others


def gguf(path: Path, **values: Any) -> Path:
    """A file of one tensor, with these keys."""
    writer = GGUFWriter(path, "llama")
    for key, value in values.items():
        add: dict[type, Any] = {
            list: writer.add_array,
            float: writer.add_float32,
            int: writer.add_uint32,
        }
        add.get(type(value), writer.add_string)(key, value)
    writer.add_tensor("x.weight", np.arange(8, dtype=np.float32).reshape(2, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_is_kept_of_a_file(tmp_path: Path) -> None:
    kept = fingerprint.of_file(gguf(tmp_path / "a.gguf", few=[1, 2], many=["ä"] * 33, eps=1e-5))
    assert kept["kv_order"] == ["general.architecture", "few", "many", "eps"]
    assert kept["kv"]["few"] == {"type": "ARRAY", "elem_type": "INT32", "len": 2, "value": [1, 2]}
    assert kept["kv"]["many"]["first5"] == ["ä"] * 5
    assert kept["kv"]["eps"]["f32_hex"] == np.float32(1e-5).tobytes().hex()
    (tensor,) = kept["tensors"]
    assert (tensor["shape"], tensor["type"], tensor["n_bytes"]) == ([4, 2], "F32", 32)


def test_what_differs_is_named(tmp_path: Path) -> None:
    a = fingerprint.of_file(gguf(tmp_path / "a.gguf", one=1, two=2))
    b = fingerprint.of_file(gguf(tmp_path / "b.gguf", one=1, two=3))
    c = fingerprint.of_file(gguf(tmp_path / "c.gguf", one=1))
    d = fingerprint.of_file(gguf(tmp_path / "d.gguf", two=2, one=1))
    assert fingerprint.differences(a, a) == []
    assert fingerprint.differences(a, b) == ["two: 2 -> 3"]
    assert fingerprint.differences(a, b, {"two": 3}) == []
    assert fingerprint.differences(a, b, {"two": [4, 3]}) == []
    assert fingerprint.differences(a, b, {"two": None}) == ["two: 2 -> 3"]
    assert fingerprint.differences(a, c, {"two": None}) == []
    assert fingerprint.differences(a, c) == ["two: 2 -> absent"]
    assert fingerprint.differences(a, d) == ["the keys' order"]
    other = [{**a["tensors"][0], "sha256": "0"}]
    assert "x.weight" in fingerprint.differences(a, {**c, "kv": a["kv"], "tensors": other})[-1]


def test_what_another_transformers_changes(tmp_path: Path) -> None:
    def file(name: str, **values: Any) -> dict[str, Any]:
        return fingerprint.of_file(gguf(tmp_path / name, **values))

    a, b = file("a", one=1, two=2, three=3), file("b", two=4, three=3)
    assert others(a, b) == {"one": None, "two": 4}
    assert others({"splits": [a, b]}, {"splits": [b, b]}) == {"one": None, "two": 4}
    with pytest.raises(RecordError, match="writes one too: give that one first"):
        others(b, a)
    with pytest.raises(RecordError, match="different many: give the one to trust alone"):
        others(file("c", many=[1] * 33), file("d", many=[2] * 33))
    with pytest.raises(RecordError, match="different tensors"):
        others(a, {**b, "tensors": []})


def test_a_recipe_makes_a_checkpoint_that_makes_the_recipe(tmp_path: Path) -> None:
    recipe, _ = store.load(GOLDEN, "mixtral-4x")
    checkpoint = recipes.write(recipe, GOLDEN / "tokenizers", tmp_path)
    found, tokenizers = recipes.from_checkpoint(checkpoint, "mixtral-4x")
    assert {k: v for k, v in found.items() if k != "weights"} == {
        k: v for k, v in recipe.items() if k != "weights"
    }
    for name, data in tokenizers.items():
        assert (GOLDEN / "tokenizers" / name).read_bytes() == data
    theirs, ours = (r["weights"]["model.safetensors"]["tensors"] for r in (recipe, found))
    for a, b in zip(theirs, ours, strict=True):
        assert {**a, "how": None} == {**b, "how": None}
        assert b["how"]["mean"] == pytest.approx(a["how"]["mean"], abs=a["how"]["std"] / 10)


def test_small_tensors_stay_as_they_are_and_integers_in_their_range(tmp_path: Path) -> None:
    small = {"data": [1.5, -2.0]}
    recipe = {
        "case": "x",
        "dir": "x",
        "files": {"config.json": "{}\n"},
        "tokenizer_files": {},
        "weights": {
            "model.safetensors": {
                "tensors": [
                    {"name": "a", "dtype": "BF16", "shape": [2], "how": small},
                    {"name": "b", "dtype": "U8", "shape": [64, 64], "how": {"low": 3, "high": 9}},
                ],
                "metadata": {"format": "pt"},
            }
        },
    }
    checkpoint = recipes.write(recipe, tmp_path, tmp_path)
    assert recipes.from_checkpoint(checkpoint, "x")[0] == recipe
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RecordError, match="save the weights as safetensors"):
        recipes.from_checkpoint(checkpoint, "x")


CONVERTER = """
import os, shutil, sys
tree, pre, checkpoint, _, out, *rest = sys.argv[1:]
if "--fail" in rest:
    sys.exit("ValueError: no")
shutil.copy(os.environ["MADE"], out)
"""


def test_a_case_is_recorded_and_checked(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All but llama.cpp: in its place a program that copies a file."""
    monkeypatch.setattr(llama_cpp, "HERE", tmp_path)
    monkeypatch.setattr(llama_cpp.Converter, "versions", lambda self: {"transformers": "4.57.6"})
    (tmp_path / "converter.py").write_text(CONVERTER)
    table = tmp_path / "golden" / "new.json.xz"
    table.parent.mkdir()

    def run(*args: str, made: Path) -> tuple[int, str]:
        monkeypatch.setenv("MADE", str(made))
        options = ("--llama-cpp", str(tmp_path), "--python", sys.executable)
        monkeypatch.setattr(sys, "argv", ["record", *args, *options])
        return main(), capsys.readouterr().out

    new = ("add", str(checkpoint("mixtral-4x")), "--case", "new", "--table", str(table))
    first, second = gguf(tmp_path / "1.gguf", one=1), gguf(tmp_path / "2.gguf", one=2)
    assert run(*new, made=first) == (0, "new: recorded bf16\n")
    recipe, golden = store.load(table.parent, "new")
    assert golden["outtypes"]["bf16"] == fingerprint.of_file(first)
    assert golden["hf_arch"] == json.loads(recipe["files"]["config.json"])["architectures"][0]
    known = ("check", "new", "--golden", str(table.parent))
    assert run(*known, made=first) == (0, "new bf16: same\n")
    assert run(*known, made=second) == (1, "new bf16: one: 1 -> 2\n")
    assert run(*new, "--args=--fail", made=first) == (0, "new: fails: ValueError: no\n")
    assert store.load(table.parent, "new")[1]["outtypes"] == {}
    assert run(*known, made=first)[1] == "new bf16: same\n"
    with pytest.raises(SystemExit):
        run("check", "old", "--golden", str(table.parent), made=first)
    assert f"no case old in {table.parent}" in capsys.readouterr().err


def test_quantized_cases_are_packed_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN.parent / "quantize", tmp_path / "quantize")
    made = store.load_quantized(folder, "mixtral-4x")
    assert made["types"]["Q4_K_M"]["tensors"][0][1] == "Q6_K"
    assert made["types_imatrix"].keys() == made["types"].keys()
    _, golden = store.load(GOLDEN, "mixtral-4x")
    before = store._packed(folder)
    store.save_quantized(folder, "mixtral-4x", golden["outtypes"]["bf16"], made)
    assert store._packed(folder) == before
    store.save_quantized(folder, "new", golden["outtypes"]["bf16"], made)
    assert store.load_quantized(folder, "new") == made
