"""What lies where another file should: pointers, web pages, pieces, formats of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit import errors
from quantkit.jobs import convert
from quantkit.storage.substitutes import piece
from tests.test_told_cases import POINTER, says

Broken = Callable[..., Path]
SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
         "chat_template.jinja", "model.safetensors.index.json")  # fmt: skip


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (POINTER, "git-lfs pointer & git lfs pull"),
        (b"<!DOCTYPE html>\n<html><title>401</title></html>", "a web page & hf download"),
    ],
)
@pytest.mark.parametrize("name", ["m.gguf", "model.safetensors", "pytorch_model.bin", *SMALL])
def test_what_stands_in_for_a_file(name: str, data: bytes, words: str, broken: Broken) -> None:
    source = broken("qwen3moe")
    (source / name).write_bytes(data)
    if name.endswith(".bin"):
        (source / "model.safetensors").unlink()
    path = source / name if name.endswith("gguf") else source
    says(errors.QuantkitError, f"{name} & {words}", path)


def test_what_stands_in_for_a_tokenizer_model(broken: Broken) -> None:
    source = broken("mixtral-4x")
    (source / "tokenizer.model").write_bytes(POINTER)
    says(errors.UnsupportedSource, "tokenizer.model & git lfs pull", source)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("m.ggml", b"lmgg" + bytes(64), "written before there was GGUF"),
        ("m.gguf", b"tjgg" + bytes(64), "written before there was GGUF"),
        ("m.gguf", b"", "empty; download it again"),
    ],
)
def test_what_is_no_gguf_file(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    says(errors.UnsupportedSource, f"{name} & {words}", tmp_path / name)


def test_other_weights_and_a_file_for_a_directory(broken: Broken) -> None:
    source = broken("qwen3moe")
    says_of_checkpoint = "config.json is a part of a checkpoint; the model is its directory"
    with pytest.raises(errors.UnsupportedSource, match=says_of_checkpoint):
        convert(source / "config.json", source / "out.gguf")
    weights = source / "model.safetensors"
    weights.write_bytes(b'{"error":"Repository not found"}')
    says(errors.UnsupportedSource, "weights of a checkpoint & the model is its directory", weights)
    says(errors.CorruptFile, """it begins with b'{"error":"Reposi""", source)
    for name, words in {
        "model.safetensors.part2of3": "cat model.safetensors.part1of3 model.safetensors.part2of3",
        "tf_model.h5": "tf_model.h5 is not read & from_tf",
        "model.onnx": "model.onnx is not read & safetensors",
    }.items():
        weights = weights.rename(source / name)
        says(errors.SourceNotFound, words, source)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.Q8_0.gguf.1of2", "cat m.Q8_0.gguf.1of2 m.Q8_0.gguf.2of2 > m.Q8_0.gguf"),
        ("m.gguf.part02of03", "cat m.gguf.part01of03 m.gguf.part02of03 m.gguf.part03of03 > m.gguf"),
        ("m.part1of2.gguf", "cat m.part1of2.gguf m.part2of2.gguf > m.gguf"),
        ("m.gguf-split-a", "cat m.gguf-split-* > m.gguf"),
        ("m.gguf.part-aa", "cat m.gguf.part-* > m.gguf"),
        ("m.gguf.partab", "cat m.gguf.part* > m.gguf"),
        ("m.gguf.001", "cat m.gguf.* > m.gguf"),
        ("model-00001-of-00002.gguf", None),
        ("model.part1.gguf", None),
        ("1of2", None),
    ],
)
def test_names_of_pieces(name: str, words: str | None) -> None:
    found = piece(name)
    assert (found or "").endswith(words or "")
    assert (found is None) == (words is None)
