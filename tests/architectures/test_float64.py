"""Weights in float64 are read as the nearest float32, wherever they are read; and where what is not
one tensor of the checkpoint stands in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf.container import read_header
from quantkit.jobs import convert
from quantkit.model.open import Reading
from tests.checkpoints import (
    DTYPES,
    architectures,
    from_recipe,
    read_safetensors,
    write_safetensors,
    write_torch,
)
from tests.damage import edit_tensors
from tests.golden import tensors

# a product, scalars that become keys, a reranker's two rows, a head that is the embedding, columns
# of two matrices, a mean that is taken off
CASES = ["kimi-k3", "apertus", "qwen3-reranker", "mamba-authors", "qwen4-ple2", "sarvam"]


def written(case: str, parent: Path, dtype: str) -> bytes:
    """The file of a checkpoint whose floats are all of one dtype."""
    source = from_recipe(case, parent)

    def cast(found: dict[str, Any]) -> None:
        for name, (old, shape, data) in found.items():
            if old in ("F32", "F16", "BF16"):
                x = np.frombuffer(data, DTYPES[old]).astype(np.float32).astype(DTYPES[dtype])
                found[name] = (dtype, shape, x.tobytes())

    edit_tensors(source, cast)
    pre = architectures()[case]["golden"]["pre"]
    path = parent / "out.gguf"
    convert(source, path, "bf16", reading=Reading(None if pre == "-" else pre))
    return path.read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_the_same_file_as_of_float32(case: str, tmp_path: Path) -> None:
    assert written(case, tmp_path / "64", "F64") == written(case, tmp_path / "32", "F32")


@pytest.mark.parametrize("case", ["kimi-k3", "qwen4-ple2"])
def test_two_tensors_in_one_stand_where_the_later_does(case: str, tmp_path: Path) -> None:
    """In a `.bin`, whose tensors llama.cpp's converter takes in their own order."""
    source = from_recipe(case, tmp_path)
    (weights,) = source.glob("*.safetensors")
    found = read_safetensors(weights)
    weights.unlink()
    words = ("res_norm", "res_proj", "fc_embedding", "fc_hidden")
    halves = [name for name in found if any(word in name for word in words)]
    first, last = halves[::2], halves[1::2]
    rest = {name: t for name, t in found.items() if name not in halves}
    wide = {name: found[name] for name in first} | rest | {name: found[name] for name in last}
    write_torch(source / "pytorch_model.bin", wide)
    pre = architectures()[case]["golden"]["pre"]
    convert(source, tmp_path / "out.gguf", "bf16", reading=Reading(None if pre == "-" else pre))
    names = [t.name for t in read_header(tmp_path / "out.gguf").tensors]
    assert all(("_res_score" in n or "eh_proj" in n) for n in names[-len(last) :]), names


def test_what_deepseek_v4_does_not_keep_as_it_is(tmp_path: Path) -> None:
    """Its weights stay in float32 and bfloat16; a router in another type becomes float32."""
    written("deepseek-v4", tmp_path, "F64")
    kinds = {t["name"]: t["type"] for t in tensors(tmp_path / "out.gguf")}
    assert {kinds[name] for name in kinds if name.endswith("ffn_gate_inp.weight")} == {"F32"}
    assert kinds["token_embd.weight"] == "BF16"


def test_a_smaller_vocabulary_stands_after_all_files(tmp_path: Path) -> None:
    source = from_recipe("eagle3", tmp_path)
    found = read_safetensors(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(found)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = source / f"model-{i:05}-of-00002.safetensors"
        write_safetensors(shard, {name: found[name] for name in part})
    asked = ConversionOptions(target=source / "target")
    convert(source, tmp_path / "out.gguf", "bf16", reading=Reading("qwen2", asked))
    assert read_header(tmp_path / "out.gguf").tensors[-1].name == "d2t"


def test_the_first_of_several_tables_counts(tmp_path: Path) -> None:
    """T5's embeddings stand in a checkpoint twice or three times: the first shard that has them."""
    source = from_recipe("t5-encoder", tmp_path)
    found = read_safetensors(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    table = "encoder.embed_tokens.weight"
    parts = {n: t for n, t in found.items() if n != table}, {table: found[table]}
    for i, part in enumerate(parts, 1):
        write_safetensors(source / f"model-{i:05}-of-00002.safetensors", part)
    pre = architectures()["t5-encoder"]["golden"]["pre"]
    convert(source, tmp_path / "out.gguf", "f32", reading=Reading(None if pre == "-" else pre))
    names = [t.name for t in read_header(tmp_path / "out.gguf").tensors]
    assert names.index("token_embd.weight") == len(names) - 1  # `shared`, by name the last


def test_what_is_left_out_does_not_choose_the_type(tmp_path: Path) -> None:
    """Layers that predict further tokens, which stand first in the first of two files."""
    source = from_recipe("qwen3next", tmp_path)
    found = read_safetensors(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    ahead = {name for name in found if name.startswith("mtp.")}
    halved = {n: ("F16", s, d) if n in ahead and t == "BF16" else (t, s, d)
              for n, (t, s, d) in found.items()}  # fmt: skip
    for i, names in enumerate((ahead, found.keys() - ahead), 1):
        part = {name: halved[name] for name in sorted(names)}
        write_safetensors(source / f"model-{i:05}-of-00002.safetensors", part)
    for mtp, wanted in (("without", 32), ("with", 1)):  # BF16, F16
        asked = Reading("qwen2", ConversionOptions(mtp=mtp))
        convert(source, tmp_path / f"{mtp}.gguf", reading=asked)
        assert read_header(tmp_path / f"{mtp}.gguf").get("general.file_type") == wanted
