"""Files of a source that was quantized before: whatever speaks of them says so, and nothing claims
to know how near they are to the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit import api
from quantkit.cli import app
from quantkit.gguf.splits import Splits
from quantkit.jobs import Run, quantize
from quantkit.planning.build import Request
from quantkit.recipes.file_types import RECIPES
from quantkit.recipes.sensitivity import USE_CASES
from quantkit.releases import manifest
from quantkit.releases.previous import CARD, PAGE
from quantkit.releases.release import release
from tests.told import Told

Get = Callable[[str], Path]
TYPES = ["Q2_K", "Q8_0", "F16"]
AGAIN = Request(allow_requantize=True)
PRAISE = {words for _, words in USE_CASES} | {r.use_case for r in RECIPES if r.base}


def source(kind: str, frankenmoe: Path, directory: Path) -> Path:
    quantize(frankenmoe, [kind], directory / "model.gguf")
    return directory / "model.gguf"


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q3_K_M"])
def test_a_release_of_a_quantized_file(
    kind: str, frankenmoe: dict[str, Path], tmp_path: Path
) -> None:
    made = source(kind, frankenmoe["mergekit"], tmp_path)
    out = tmp_path / "out"
    found = release(made, out, TYPES, request=AGAIN)
    before = found.manifest.made_from.quantized
    assert before[0] == {"Q3_K_M": "Q3_K"}.get(kind, kind)
    assert manifest.read(out / manifest.NAME) == found.manifest
    for row in found.rows:
        assert row.use_case.startswith(f"made from weights in {', '.join(before)}: ")
        assert row.use_case.endswith("% error added")
    for name in (CARD, PAGE):
        text = " ".join((out / name).read_text(encoding="utf-8").replace("\\", "").split())
        assert f"The source's weights were quantized already, in {', '.join(before)}." in text
        assert not [words for words in PRAISE if words in text]
    assert f"relative to the source&#39;s {before[0]}" in (out / PAGE).read_text(encoding="utf-8")


def test_what_is_planned_printed_and_reported(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    made = source("Q4_0", frankenmoe["mergekit"], tmp_path)
    told, out = Told(), tmp_path / "out"
    split = Request(allow_requantize=True, splits=Splits(max_tensors=20))
    found = release(made, out, TYPES, request=split, run=Run(progress=told))
    assert any("quantized already (Q4_0" in note and "relative" in note for note in told.notes)
    files = [out / f.name for f in found.manifest.files]
    assert len(files) > len(TYPES)
    said = [row.use_case for row in found.rows]
    assert [row.use_case for row in api.report(files).rows] == said
    survey = api.plan(made, TYPES, allow_requantize=True)
    assert {row.use_case for row in survey.rows} == {"made from weights in Q4_0, Q6_K"}
    args = ["quantize", str(made), "-t", "q8_0", "--allow-requantize", "--dry-run", "--json"]
    result = CliRunner().invoke(app, args)
    assert json.loads(result.stdout)["quantized_before"] == ["Q4_0", "Q6_K"]
    assert "relative to them" in result.stderr
    # without a record of it, a file is what its type is
    moved = tmp_path / "elsewhere.gguf"
    next(path for path in files if "Q8_0" in path.name).rename(moved)
    (out / manifest.NAME).write_text("{}")
    assert "made from" not in api.report(files[0]).rows[0].use_case


def test_a_release_of_floats_has_no_such_word(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    release(frankenmoe["mergekit"], tmp_path, ["Q8_0"])
    for name in (manifest.NAME, CARD, PAGE):
        assert "quantized already" not in (tmp_path / name).read_text(encoding="utf-8")
    assert "quantized" not in json.loads((tmp_path / manifest.NAME).read_text())["made_from"]


@pytest.mark.parametrize(
    ("case", "kept"),
    [
        ("qwen3-gptq", ("GPTQ",)),
        ("qwen3-packed", ("packed integers",)),
        ("qwen3moe-ct-int8", ("INT8",)),
        ("deepseek-v3-fp8", ("FP8",)),
        ("deepseek-v4-fp8-experts", ("FP8",)),
        ("qwen3moe-ct-nvfp4", ("NVFP4",)),
    ],
)
def test_checkpoints_of_few_bits(
    case: str, kept: tuple[str, ...], checkpoint: Get, tmp_path: Path
) -> None:
    plan = quantize(checkpoint(case), ["Q8_0"], tmp_path, request=AGAIN, run=Run(dry=True))
    assert plan.quantized_before == kept
