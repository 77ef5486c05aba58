"""Quantization against llama-quantize: every type of every golden model, with and without an
importance matrix, all types of a model from one read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.calibration.imatrix import read_imatrix
from quantkit.jobs import convert, quantize
from quantkit.model.open import Reading
from quantkit.planning.build import Request
from quantkit.recipes.file_types import RECIPES
from tests import golden
from tests.architectures.test_architectures import options
from tests.checkpoints import DATA, GOLDEN, architectures
from tests.conftest import sha256
from tests.sampling import one_in

STORED: dict[str, Any] = json.loads(
    gzip.decompress((DATA / "quantize/goldens.json.gz").read_bytes())
)
NAMES = {r.name for r in RECIPES}


# llama-quantize itself stops here, for want of a key that its runtime needs
STOPS = {"deepseek-v2-lite"}
# 8 experts are used of 4: refused before a byte is written
REFUSED = {"olmoe-tf5fused", "glm4moe-tf5fused"}


def _golden(case: str) -> dict[str, Any]:
    """What llama.cpp's converter makes of a case's checkpoint."""
    if case in architectures():
        return dict(architectures()[case]["golden"])
    path = GOLDEN / "convert" / f"{case}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


CASES = [case for case in STORED["cases"] if _golden(case) and case not in STOPS | REFUSED]
JOBS = [(case, part) for case in CASES for part in ("types", "types_imatrix")
        if part in STORED["cases"][case]]  # fmt: skip


def test_the_cases_are_there() -> None:
    assert len(CASES) >= 60
    assert set(STORED["cases"]) - set(CASES) <= STOPS | REFUSED
    assert sum(part == "types_imatrix" for _, part in JOBS) == 4


@pytest.mark.parametrize(("case", "part"), one_in(4, JOBS))
def test_same_bytes_as_llama_quantize(
    case: str, part: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    goldens, theirs = STORED["cases"][case], _golden(case)
    expected = {name: e for name, e in goldens[part].items() if name in NAMES and "fails" not in e}
    source, out = tmp_path / "m-BF16.gguf", tmp_path / "out"
    out.mkdir()
    reading = Reading(theirs["pre"], options(theirs["args"]))
    convert(checkpoint(case), source, "bf16", reading=reading)
    imatrix = None
    if part == "types_imatrix":
        imatrix = replace(
            read_imatrix(DATA / "imatrix" / f"{case}.gguf"), file=f"imatrix/{case}.gguf"
        )
    request = Request(allow_requantize=case == "gpt-oss")
    plan = quantize(source, list(expected), out, imatrix=imatrix, request=request)
    assert len(plan.outputs) == len(expected) >= 1
    # where the whole 16-bit file is llama.cpp's, so is every file made from it
    whole = theirs["outtypes"].get("bf16", {}).get("file_sha256") == sha256(source)
    for output in plan.outputs:
        path, want = output.files[0].path, expected[output.type]
        found = golden.tensors(path)
        assert [t["type"] for t in found] == want["formats"], output.type
        assert [t["sha256"] for t in found] == [STORED["sha256"][i] for i in want["sha256"]]
        assert not whole or sha256(path) == want["file_sha256"], output.type


@pytest.mark.parametrize("part", ["quantize", "quantize_imatrix"])
@pytest.mark.parametrize("through", ["checkpoint", "bf16"])
def test_the_trained_frankenmoe(
    through: str,
    part: str,
    frankenmoe: dict[str, Path],
    tmp_path: Path,
    frankenmoe_golden: dict[str, Any],
) -> None:
    """From the checkpoint and through a 16-bit file: the same whole files."""
    goldens = frankenmoe_golden[part]
    types = list(goldens)
    assert len(types) == {"quantize": 25, "quantize_imatrix": 34}[part]  # 59 files in all
    source, out = frankenmoe["mergekit"], tmp_path / "out"
    out.mkdir()
    if through == "bf16":
        convert(source, tmp_path / "m-BF16.gguf", "bf16")
        source = tmp_path / "m-BF16.gguf"
    imatrix = None
    if part == "quantize_imatrix":
        read = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
        imatrix = replace(read, file="q/imatrix.gguf")
    plan = quantize(source, types, out, imatrix=imatrix)
    assert [o.type for o in plan.outputs] == types
    for output in plan.outputs:
        path = output.files[0].path
        assert golden.tensors(path) == goldens[output.type]["tensors"], output.type
        assert sha256(path) == goldens[output.type]["file_sha256"], output.type
        assert path.stat().st_size == output.size
