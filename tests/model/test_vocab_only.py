"""`convert --vocab-only`: the keys without the weights, whole files as llama.cpp's converter writes
them.

The sums are of files that the converter (b11549) made of these golden cases with `--outtype bf16
--vocab-only`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit import errors, jobs
from quantkit.architectures.rules import ConversionOptions
from quantkit.cli import app
from quantkit.gguf.splits import Splits
from quantkit.model.open import Reading
from tests.checkpoints import architectures
from tests.conftest import sha256

SUMS = {
    "mixtral-4x": "765fbbfd57a5ec4054677404875fb424bb7d17b18f38f962395667815762043d",
    "apertus-factor": "6aafab499035f490e76732d0e2ad774a4a3d9c61bbc20423bee61f3147fec5d7",
    "phi3": "98de8f53643c026f7161703b3af7a2c4f1499788e62017b51905c2a3dec3c255",
    "jais": "edcef2acdd83aec719010fc4b90f8db56f8492036330cf66136114c876e94b57",
    "eagle3": "95996fc5a41858cc166ba865c2f05d740408a5a15a45c6109b2784c50b132e0f",
    "deepseekocr-text": "1ac2e514d98249380b229dc349fe1980e4588ebe08776b56435131364032e482",
    "gpt-oss-bf16": "f86e329a641418a1706189d8b3168cb126566f696a576ca8bf0a0fd364c82693",
    "llama-nvfp4": "88661794155ec747de07aaea0be9790aa410349fca1c1fc7b2724b0315e51fa0",
    "qwen35moe-perexpert": "7010b318961a39ce9f80cece46afb12b9a477f8bb4d942b8e2ce981d640b8e87",
    "minimax-m1": "e3d3337d030c0bdfd43d081c6245af195cf9bddd6c2efcd0f229ab0f3d541a81",
}

Get = Callable[[str], Path]


def asked(case: str, source: Path) -> Reading:
    packed = architectures().get(case)
    target = source / "target" if (source / "target").is_dir() else None
    options = ConversionOptions(vocab_only=True, target=target)
    return Reading(packed["golden"]["pre"] if packed else None, options)


@pytest.mark.parametrize("case", SUMS)
def test_same_file_as_llama_cpp(case: str, checkpoint: Get, tmp_path: Path) -> None:
    """Also where keys that are read from weights are left out, those that are for the model that a
    draft is for stay, and weights would be kept as they are."""
    source, path = checkpoint(case), tmp_path / "v.gguf"
    jobs.convert(source, path, "bf16", reading=asked(case, source))
    assert sha256(path) == SUMS[case]


@pytest.mark.parametrize("case", SUMS)
def test_the_same_without_weights(case: str, checkpoint: Get, tmp_path: Path) -> None:
    """As of a directory that holds a tokenizer and config.json, nothing else."""
    source, path = tmp_path / checkpoint(case).name, tmp_path / "v.gguf"
    shutil.copytree(checkpoint(case), source)
    for name in ("*.safetensors", "*.safetensors.index.json", "*.bin"):
        for weights in source.glob(name):
            weights.unlink()
    jobs.convert(source, path, "bf16", reading=asked(case, source))
    assert sha256(path) == SUMS[case]


def test_the_command(checkpoint: Get, tmp_path: Path) -> None:
    """The file says of itself what it is, to `inspect` and `verify`, and no type is made of it."""
    source = str(checkpoint("mixtral-4x"))
    words = ["convert", source, "--outtype", "bf16", "--vocab-only", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    assert path.name == "ckpt-vocab.gguf"
    assert sha256(path) == SUMS["mixtral-4x"]
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert "a vocabulary without a model" in shown.output
    assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 0
    with pytest.raises(errors.RecipeError, match="a vocabulary without a model"):
        jobs.quantize(path, ["Q8_0"], tmp_path / "q.gguf")


def test_nothing_to_split(checkpoint: Get, tmp_path: Path) -> None:
    reading = Reading(options=ConversionOptions(vocab_only=True))
    with pytest.raises(errors.UsageError, match="one file, which is not split"):
        jobs.convert(
            checkpoint("mixtral-4x"), tmp_path / "v.gguf", reading=reading,
            splits=Splits(max_tensors=2),
        )  # fmt: skip
    reading = Reading(options=ConversionOptions(vocab_only=True, mmproj=True))
    with pytest.raises(errors.UsageError, match="--mmproj and --vocab-only exclude each other"):
        jobs.convert(checkpoint("mixtral-4x"), tmp_path / "v.gguf", reading=reading)
    assert not list(tmp_path.iterdir())


def test_keys_that_the_weights_settle(checkpoint: Get, tmp_path: Path) -> None:
    case = "qwen38-flash-next"
    source = checkpoint(case)
    with pytest.raises(errors.ConfigError, match="keys of qwen4exp are read from the weights"):
        jobs.convert(source, tmp_path / "v.gguf", reading=asked(case, source))
