"""What a model is and what is wrong with it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.cli import app
from quantkit.jobs import quantize
from quantkit.reporting.inspection import Experts, Inspection, inspect, lines
from quantkit.reporting.numbers import billions, ranges
from tests.damage import edit_config, edit_tensors

run = CliRunner().invoke
MOE = "model.layers.{}.block_sparse_moe"


def test_the_trained_frankenmoe(frankenmoe: dict[str, Path]) -> None:
    """Two of its experts are the same model, in every layer; nothing else is wrong."""
    found = inspect(frankenmoe["mergekit"])
    assert found.problems == ["experts 0 and 2 are identical in every layer"]
    model = found.description
    assert model is not None
    assert model.architecture == "llama"
    assert model.experts == Experts(count=4, used=2)
    assert model.dtypes == {"BF16": 30}
    assert model.tokenizer is not None
    assert model.tokenizer.tokens == 2048
    assert model.merge is not None
    assert model.merge.experts == ("./m-prose", "./m-python", "./m-prose", "./m-c")
    total, active = model.parameters.total, model.parameters.active
    assert 2 * total == sum(model.part_bytes.values())
    assert total - active == 3 * 3 * 2 * 256 * 256  # two of four experts in three layers
    assert model.part_bytes["experts"] == 2 * 3 * 3 * 4 * 256 * 256


def test_the_same_from_gguf(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    quantize(frankenmoe["classic"], ["Q4_K_M"], tmp_path / "m.gguf")
    found, source = inspect(tmp_path / "m.gguf"), inspect(frankenmoe["classic"])
    assert found.problems == source.problems
    assert found.description is not None
    assert source.description is not None
    assert found.description.parameters == source.description.parameters
    count = found.description.dtypes["Q4_K"]
    assert any(line.startswith("dtypes ") and f"Q4_K {count}" in line for line in lines(found))


def test_mixtral_8x7b_from_headers_alone(broken: Callable[..., Path]) -> None:
    """46.7B parameters, 12.9B of them active; the weights are a hole in a file."""
    source = broken("mixtral-8x")
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    edit_config(source, **sizes)
    header: dict[str, Any] = {}
    offset = 0

    def add(name: str, *shape: int) -> None:
        nonlocal offset
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end

    add("model.embed_tokens.weight", 32000, 4096)
    add("lm_head.weight", 32000, 4096)
    add("model.norm.weight", 4096)
    for i in range(32):
        layer = f"model.layers.{i}"
        for name, rows in (("q", 4096), ("k", 1024), ("v", 1024), ("o", 4096)):
            add(f"{layer}.self_attn.{name}_proj.weight", rows, 4096)
        add(f"{layer}.input_layernorm.weight", 4096)
        add(f"{layer}.post_attention_layernorm.weight", 4096)
        add(f"{MOE.format(i)}.gate.weight", 8, 4096)
        for x in range(8):
            add(f"{MOE.format(i)}.experts.{x}.w1.weight", 14336, 4096)
            add(f"{MOE.format(i)}.experts.{x}.w2.weight", 4096, 14336)
            add(f"{MOE.format(i)}.experts.{x}.w3.weight", 14336, 4096)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (source / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + offset)
    found = inspect(source, weights=False)
    assert found.description is not None
    count = found.description.parameters
    assert (billions(count.total), billions(count.active)) == ("46.7B", "12.9B")
    assert any("46.7B total, 12.9B active" in line for line in lines(found))


def poke(source: Path, name: str, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        dtype, shape, data = tensors[name]
        x = np.frombuffer(data, np.uint16).reshape(shape).copy()
        change(x)
        tensors[name] = (dtype, shape, x.tobytes())

    edit_tensors(source, edit)


def test_nan_is_found_with_its_row(broken: Callable[..., Path]) -> None:
    source = broken()

    def poison(x: np.ndarray[Any, Any]) -> None:
        x[3, 5] = 0x7FC0

    poke(source, f"{MOE.format(1)}.experts.2.w2.weight", poison)
    (problem,) = inspect(source).problems
    assert problem.startswith("NaN or infinity in blk.1.ffn_down_exps.weight")
    assert inspect(source, weights=False).problems == []


def test_a_router_that_cannot_choose(broken: Callable[..., Path]) -> None:
    source = broken()

    def equal(x: np.ndarray[Any, Any]) -> None:
        x[3] = x[1]

    poke(source, f"{MOE.format(0)}.gate.weight", equal)
    assert inspect(source).problems == [
        "the router blk.0.ffn_gate_inp.weight cannot tell experts 1 and 3 apart"
    ]


def test_experts_that_are_the_same_in_some_layers(broken: Callable[..., Path]) -> None:
    source = broken()

    def copy(tensors: dict[str, Any]) -> None:
        for wid in ("w1", "w2", "w3"):
            tensors[f"{MOE.format(1)}.experts.3.{wid}.weight"] = tensors[
                f"{MOE.format(1)}.experts.0.{wid}.weight"
            ]

    edit_tensors(source, copy)
    assert inspect(source).problems == ["experts 0 and 3 are identical in layers 1"]


def test_what_cannot_be_converted_is_a_problem(broken: Callable[..., Path]) -> None:
    source = broken()
    edit_tensors(source, lambda tensors: tensors.pop("model.norm.weight"))
    found = inspect(source)
    assert "model.norm.weight is not in the checkpoint" in found.problems[0]
    expected = {"facts": {}, "problems": found.problems, "chat_template": []}
    assert found.as_data() == expected


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.SourceNotFound):
        inspect(tmp_path / "nothing")


def test_the_command(frankenmoe: dict[str, Path]) -> None:
    source = str(frankenmoe["mergekit"])
    shown = run(app, ["inspect", source]).stdout
    assert len(shown.splitlines()) <= 24
    assert "problem          experts 0 and 2 are identical in every layer" in shown
    data = json.loads(run(app, ["inspect", source, "--json"]).stdout)
    assert list(data["facts"]) == [
        "name",
        "architecture",
        "parameters",
        "layers",
        "embedding",
        "context",
        "experts",
        "part_bytes",
        "dtypes",
        "tied_embeddings",
        "tokenizer",
        "notes",
        "merged_from",
    ]
    assert data["facts"]["layers"] == 3
    assert data["facts"]["experts"] == {"count": 4, "used": 2}
    assert data["facts"]["tokenizer"]["chat_template"] is True
    assert data["facts"]["merged_from"]["gate_mode"] == "hidden"
    assert "problems         none found" in run(app, ["inspect", source, "--headers"]).stdout


def test_a_table_in_a_notebook(frankenmoe: dict[str, Path]) -> None:
    found = inspect(frankenmoe["mergekit"], weights=False)
    assert found.description is not None
    hostile = replace(found.description, name="<script>alert(1)</script>")
    text = Inspection(hostile, ["<b> & more"])._repr_html_()
    assert "<td>name</td><td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in text
    assert "<td>problem</td><td>&lt;b&gt; &amp; more</td>" in text
    assert "<td>layers</td><td>3</td>" in text
    assert "<td>problems</td><td>none found</td>" in found._repr_html_()


def test_words() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert [billions(n) for n in (12, 8_100_000, 46_702_792_704)] == ["12", "8.1M", "46.7B"]
