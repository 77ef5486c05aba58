"""The main job on a trained frankenMoE: llama.cpp's bytes, and files that llama.cpp runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quantkit.gguf.container import read_header
from quantkit.jobs import convert, quantize
from tests import golden
from tests.checkpoints import DATA, FRANKENMOE
from tests.conftest import sha256
from tests.runtime import Llama

TYPES = ("Q4_K_M", "Q8_0", "F16", "BF16", "F32")
SPELLINGS = ("mergekit", "classic")


@pytest.fixture(scope="module")
def quantized(
    frankenmoe: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Path]]:
    """Every type, straight from each spelling: one read for all of them."""
    out = {}
    for spelling in SPELLINGS:
        directory = tmp_path_factory.mktemp(spelling)
        plan = quantize(frankenmoe[spelling], TYPES, directory)
        out[spelling] = {output.type: output.files[0].path for output in plan.outputs}
        assert {f.path.name for f in plan.files} == {f"frankenmoe-4x-{t}.gguf" for t in TYPES}
    return out


def test_the_classic_spelling_is_the_original(frankenmoe: dict[str, Path]) -> None:
    path = frankenmoe["classic"] / "model.safetensors"
    assert sha256(path) == "dc236f4ebf3ecd0e47e83139242b42e7c6f06642589f76531d364de2f7204d08"


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", TYPES)
def test_quantize_gives_the_bytes_of_llama_quantize(
    kind: str,
    spelling: str,
    quantized: dict[str, dict[str, Path]],
    frankenmoe_golden: dict[str, Any],
) -> None:
    path, expected = quantized[spelling][kind], frankenmoe_golden["quantize"][kind]
    assert golden.tensors(path) == expected["tensors"]
    assert sha256(path) == expected["file_sha256"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("outtype", ["bf16", "f16", "f32", "q8_0"])
def test_convert_gives_the_bytes_of_llama_cpp(
    outtype: str,
    spelling: str,
    frankenmoe: dict[str, Path],
    tmp_path: Path,
    frankenmoe_golden: dict[str, Any],
) -> None:
    path, expected = tmp_path / "out.gguf", frankenmoe_golden["convert"][outtype]
    convert(frankenmoe[spelling], path, outtype)
    golden.assert_same(path, expected)
    assert sha256(path) == expected["file_sha256"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_through_a_16_bit_file_it_is_the_same(
    spelling: str, frankenmoe: dict[str, Path], tmp_path: Path, frankenmoe_golden: dict[str, Any]
) -> None:
    convert(frankenmoe[spelling], tmp_path / "m-BF16.gguf", "bf16")
    plan = quantize(tmp_path / "m-BF16.gguf", ["Q4_K_M", "Q8_0"], tmp_path)
    for output in plan.outputs:
        (f,) = output.files
        assert f.path.name == f"m-{output.type}.gguf"
        assert sha256(f.path) == frankenmoe_golden["quantize"][output.type]["file_sha256"]


def test_the_vocabulary_is_the_same_from_both(quantized: dict[str, dict[str, Path]]) -> None:
    """One has tokenizer.model; the other's scores are derived from the merges."""
    headers = [read_header(quantized[s]["Q8_0"]) for s in SPELLINGS]
    for key in ("tokens", "scores", "token_type"):
        ours, theirs = (h.get(f"tokenizer.ggml.{key}") for h in headers)
        assert len(ours) == 2048
        assert ours == theirs


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "BF16"])
def test_llama_cpp_runs_it(
    kind: str,
    spelling: str,
    quantized: dict[str, dict[str, Path]],
    frankenmoe_golden: dict[str, Any],
) -> None:
    model = Llama(quantized[spelling][kind])
    completions = frankenmoe_golden["quantize"][kind]["completions"]
    assert len(completions) >= 4
    for expected in completions:
        answer = model.complete(expected["prompt"])["choices"][0]["logprobs"]["content"][0]
        assert answer["id"] == expected["token_ids"][0]
        assert abs(answer["logprob"] - expected["logprobs"][0]) < 0.02
    source = Tokenizer.from_file(str(FRANKENMOE / "tokenizer.json"))
    for text in (DATA / "text").glob("*.txt"):
        ids = source.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
        assert len(ids) > 10_000
        assert model.tokenize(text.read_text(encoding="utf-8")) == ids, text.name
