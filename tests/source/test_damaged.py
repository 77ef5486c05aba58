"""Files that are missing or broken: a named error in one line, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from tests.checkpoints import read_safetensors, write_safetensors
from tests.damage import edit_tensors, fails

Broken = Callable[..., Path]


def test_no_such_directory(tmp_path: Path) -> None:
    fails(errors.SourceNotFound, "nowhere & no such", tmp_path / "nowhere", tmp_path / "out")


def test_no_config(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "config.json").unlink()
    fails(errors.SourceNotFound, "no config.json", source, tmp_path / "out")


def test_config_that_is_not_json(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "config.json").write_text("{")
    fails(errors.CorruptFile, "config.json & not JSON", source, tmp_path / "out")


def test_shard_missing(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    (source / "model-00002-of-00003.safetensors").unlink()
    fails(
        errors.ShardMissing, "model-00002-of-00003.safetensors & 1 of 3", source, tmp_path / "out"
    )


def test_index_that_leaves_the_directory(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "../secret.safetensors"
    path.write_text(json.dumps(index))
    fails(errors.CorruptFile, "'../secret.safetensors' points outside", source, tmp_path / "out")


def test_index_of_shards_in_a_folder(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    path = source / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"model-', '"weights/model-'))
    fails(errors.CorruptFile, "lies in a folder; move", source, tmp_path / "out")


@pytest.mark.parametrize("size", [0, 5, 21])
def test_a_torch_file_that_is_cut_short(size: int, broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"PK\3\4".ljust(size, b"\0")[:size])
    fails(errors.CorruptFile, "not a whole torch file; download it", source, tmp_path / "out")


def test_index_and_shards_disagree(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.surplus.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    fails(errors.CorruptFile, "model.surplus.weight", source, tmp_path / "out")


@pytest.mark.parametrize("keep", [4, 100, 5000, -1])
def test_truncated_safetensors(keep: int, broken: Broken, tmp_path: Path) -> None:
    source = broken()
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    fails(errors.CorruptFile, "model.safetensors & download it again", source, tmp_path / "out")


def test_no_weights(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "model.safetensors").unlink()
    fails(errors.SourceNotFound, "no model*.safetensors", source, tmp_path / "out")
    (source / "consolidated.00.pth").write_bytes(b"PK")
    fails(errors.SourceNotFound, "consolidated.00.pth is not read", source, tmp_path / "b")
    (source / "model.safetensors").symlink_to(tmp_path / "nowhere")
    words = "model.safetensors is a link to a file that is not there"
    fails(errors.SourceNotFound, words, source, tmp_path / "c")


def test_shards_without_an_index(broken: Broken, tmp_path: Path) -> None:
    """Where a tensor is missing, the names of the others say which file."""
    source = broken()
    edit_tensors(source, lambda t: t.pop("model.norm.weight"))
    (source / "model.safetensors").rename(source / "model-00001-of-00003.safetensors")
    words = "model.norm.weight is not & ; not there: model-00002-of-00003.safetensors, model-00003"
    fails(errors.TensorMissing, words, source, tmp_path / "out")


def test_a_dtype_that_is_not_read(broken: Broken, tmp_path: Path) -> None:
    source = broken()

    def retype(tensors: dict[str, Any]) -> None:
        _, shape, data = tensors["model.norm.weight"]
        tensors["model.norm.weight"] = ("F8_E4M3", shape, data[: len(data) // 2])

    edit_tensors(source, retype)
    fails(errors.UnsupportedSource, "model.norm.weight is F8_E4M3", source, tmp_path / "out")


def test_a_file_that_is_no_gguf(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    words = f"a part of a checkpoint & the model is its directory, {source}"
    fails(errors.UnsupportedSource, words, source / "config.json", tmp_path / "out")
    (source / "model.md").write_text("GGML")
    fails(errors.CorruptFile, "not a GGUF file", source / "model.md", tmp_path / "other")


def test_a_tensor_that_is_another_in_a_second_shard(broken: Broken, tmp_path: Path) -> None:
    """The same in both is no mistake (case mixtral-4x-twice); one of another type, or of one other
    byte, is not known to be the model's."""
    source = broken("mixtral-4x-sharded")
    first, last = (source / f"model-0000{n}-of-00003.safetensors" for n in (1, 3))
    dtype, shape, data = read_safetensors(last)["model.norm.weight"]
    for other in ((dtype, shape, bytes([data[0] ^ 1]) + data[1:]), ("I16", shape, data)):
        write_safetensors(first, {**read_safetensors(first), "model.norm.weight": other})
        words = f"model.norm.weight is in {first.name} and another in {last.name}"
        fails(errors.CorruptFile, words, source, tmp_path / f"out-{other[0]}")
