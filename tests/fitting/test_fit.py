"""The best file of a size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantkit.calibration.imatrix import read_imatrix
from quantkit.cli import app
from quantkit.errors import BudgetError, RecipeError
from quantkit.fitting.fit import Budget, Fit, Mark, fit, make, picture
from quantkit.gguf.container import read_header
from quantkit.jobs import Run, quantize
from quantkit.recipes.facts import ModelFacts
from quantkit.recipes.file_types import LOW_FORMATS, MOE_FORMATS, find_recipe, with_mixture
from quantkit.recipes.sensitivity import USE_CASES, sensitivity, use_case
from quantkit.reporting.table import planned_rows
from quantkit.verification.divergence import divergences, mean
from tests.checkpoints import DATA, FRANKENMOE
from tests.conftest import sha256

Get = Callable[[str], Path]
TYPES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M")
run = CliRunner().invoke


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained mixture in llama.cpp's types, in those of `--recipe moe`, and fitted to the size
    of each."""
    out = tmp_path_factory.mktemp("files")
    kinds = [*TYPES, *with_mixture(TYPES, "moe"), "F32"]
    plan = quantize(FRANKENMOE, kinds, out)
    paths = {o.type: o.files[0].path for o in plan.outputs}
    for kind in TYPES:
        found = fit(FRANKENMOE, Budget(size=paths[kind].stat().st_size))
        made = make(FRANKENMOE, found, out / f"{kind}-fit.gguf")
        paths[f"{kind}-fit"] = made.files[0].path
    return paths


@pytest.mark.slow
def test_files_diverge_less_at_the_same_size(files: dict[str, Path], tmp_path: Path) -> None:
    """In the real llama.cpp."""
    names = [name for name in files if name != "F32"]
    text = tmp_path / "text.txt"
    text.write_bytes((DATA / "text" / "held-python.txt").read_bytes()[:10_000])
    found = divergences([files[name] for name in names], files["F32"], [text], threads=1)
    kl = {name: mean(row).kl for name, row in zip(names, found, strict=True)}
    for kind in TYPES:
        size = files[kind].stat().st_size
        assert files[f"{kind}-fit"].stat().st_size <= size
        assert files[f"{kind}-moe"].stat().st_size <= size
        assert kl[f"{kind}-fit"] < 0.85 * kl[kind]
        assert kl[f"{kind}-moe"] < 0.85 * kl[kind]


def test_a_file_of_another_recipe_has_a_name_of_its_own(files: dict[str, Path]) -> None:
    for kind in TYPES:
        path = files[f"{kind}-moe"]
        assert path.name == f"frankenmoe-mergekit-{kind}-moe.gguf"
        assert read_header(path).get("general.file_type") == find_recipe(kind).file_type


@cache
def fitted(**budget: Any) -> Fit:
    return fit(FRANKENMOE, Budget(**budget))


def test_the_budget_is_bits_bytes_or_memory() -> None:
    bits = fitted(bits_per_weight=4.5).chosen
    assert 4.45 < bits.bits_per_weight <= 4.5
    size = fitted(size=bits.nbytes).chosen
    assert size == bits
    plan = quantize(FRANKENMOE, ["COPY"], run=Run(dry=True))
    (row,) = planned_rows(plan, 512)
    beside = row.max_ram_bytes - row.tensor_bytes
    tensors = bits.nbytes - (row.file_bytes - row.tensor_bytes)
    assert fitted(ram=tensors + beside, context=512).chosen == bits
    with pytest.raises(BudgetError, match="is too little"):  # a longer text takes more
        fit(FRANKENMOE, Budget(ram=tensors + beside, context=2048))


def test_the_frontier_is_below_every_type() -> None:
    found = fitted(bits_per_weight=4.5)
    assert [m.label for m in found.types] == [
        "Q2_K",
        "Q3_K_S",
        "IQ3_S",
        "IQ3_M",
        "Q3_K_M",
        "Q3_K_L",
        "IQ4_XS",
        "Q4_K_S",
        "Q4_K_M",
        "Q5_K_S",
        "Q5_K_M",
        "Q6_K",
        "Q8_0",
    ]
    assert found.base == "Q3_K_L"
    for mark in found.types:
        best = found.best[mark.label]
        assert best.nbytes <= mark.nbytes
        assert best.error <= (1 if mark.label == "Q8_0" else 0.99) * mark.error
        assert all(m.nbytes > mark.nbytes or m.error >= 0.998 * best.error for m in found.frontier)
    assert found.frontier[0].nbytes < found.chosen.nbytes < found.frontier[-1].nbytes


def test_the_recipe_is_a_tensor_type_file(tmp_path: Path) -> None:
    """What `-o` writes is what `quantize` makes of the recipe."""
    found = fitted(bits_per_weight=4.5)
    names = list(found.formats)
    for pattern, fmt in found.overrides.tensor_types:
        # C++'s std::regex reads these as Python does: anchors, letters, escaped full stops
        assert re.fullmatch(r"\^([a-z0-9_]|\\\.)+\$", pattern)
        matched = [name for name in names if re.search(pattern, name)]
        assert [found.formats[name] for name in matched] == [fmt]
    (tmp_path / "recipe.txt").write_text(found.recipe())
    made = make(FRANKENMOE, found, tmp_path).files[0].path
    assert made.name == "frankenmoe-mergekit-Q3_K_L-fit.gguf"
    assert made.stat().st_size == found.chosen.nbytes
    again = tmp_path / "again.gguf"
    options = ["--tensor-type-file", str(tmp_path / "recipe.txt"), "-t", found.base]
    assert run(app, ["quantize", str(FRANKENMOE), *options, "-o", str(again)]).exit_code == 0
    assert sha256(again) == sha256(made)


def test_rows_that_do_not_divide_have_formats_of_their_own(checkpoint: Get) -> None:
    source = checkpoint("mixtral-4x-headdim")  # attn_output has rows of 128 weights
    found = fit(source, Budget(bits_per_weight=5.0))
    odd = {name: fmt for name, fmt in found.formats.items() if "attn_output" in name}
    assert len(odd) == 2
    assert set(odd.values()) <= {"Q4_0", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"}
    assert found.types[0].label == "Q2_K"
    only = fit(source, Budget(bits_per_weight=6.5), ["Q4_0", "Q8_0"])
    assert set(only.formats.values()) == {"Q4_0", "Q8_0"}
    assert [m.label for m in only.types] == ["Q8_0"]  # no other can be made of these
    assert only.base == "Q2_K"


def test_what_is_quantized_already_stays(checkpoint: Get, tmp_path: Path) -> None:
    found = fit(checkpoint("gpt-oss"), Budget(bits_per_weight=5.5))
    experts = {name for name in found.formats if name.endswith("_exps.weight")}
    assert {found.formats[name] for name in experts} == {"MXFP4"}
    assert not experts & found.errors.keys()
    plan = make(checkpoint("gpt-oss"), found, tmp_path / "m.gguf")
    assert {plan.outputs[0].by_name[name].format for name in experts} == {"MXFP4"}
    assert plan.files[0].size == found.chosen.nbytes
    quantize(FRANKENMOE, ["Q8_0"], tmp_path / "q8.gguf")
    with pytest.raises(BudgetError, match="quantized already; give a 16- or 32-bit source"):
        fit(tmp_path / "q8.gguf", Budget(size=10**6))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--size", "1M"], 1, "1.00 MB is too little: the smallest that can be made takes 1.38 MB"),
        (["--size", "1G"], 1, "leaves nothing to choose: with every tensor in its largest format"),
        (["--bpw", "2"], 1, "2.000 bits per weight is too little: the smallest that can be made"),
        (["--ram", "2M", "--ctx", "64"], 1, "2.00 MB is too little"),
        (["--size", "12 apples"], 2, "'12 apples' is not a size"),
        (["--bpw", "4.5", "--formats", "Q9_K"], 2, "unknown format 'Q9_K'"),
        (["--bpw", "4.5", "--size", "2M"], 2, "one of --size 12GB, --ram 16GB and --bpw"),
        ([], 2, "one of --size 12GB, --ram 16GB and --bpw"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(app, ["fit", str(FRANKENMOE), *arguments])
    assert result.exit_code == code
    said = result.output if code == 2 else str(result.exception)
    assert words in " ".join(said.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []


def test_a_table_in_a_notebook() -> None:
    chosen, small = Mark(2_000_000, 4.5, 0.021), Mark(1_500_000, 3.9, 0.09, "Q2_K")
    best = {"Q2_K": replace(small, error=0.05)}
    found = Fit("m", {}, chosen, "Q2_K", (chosen,), (small,), best, {})
    cells = "<td>1.50 MB</td><td>3.90</td><td>5%</td><td>Q2_K 9%</td>"
    assert f"<tr>{cells}</tr>\n<tr><td>2.00 MB</td>" in found._repr_html_()
    assert "<td>&lt;- chosen: " in found._repr_html_()
    name = "<script>alert(1)</script>"
    hostile = replace(found, types=(replace(small, label=name),), best={name: small})
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 9%" in hostile._repr_html_()
    assert "<script" not in hostile._repr_html_()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["fit", str(FRANKENMOE), "--size", "2.3MB", "--picture", "fit.svg"]
    result = run(app, asked)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 16
    assert sum("<- chosen" in line for line in lines) == 1
    assert lines[-1].startswith("frankenmoe-mergekit-fit.txt: 23 tensors")
    assert len(Path("frankenmoe-mergekit-fit.txt").read_text().split()) == 23
    assert "<svg" in Path("fit.svg").read_text()
    Path("there.gguf").touch()
    with monkeypatch.context() as unmeasured:
        unmeasured.setattr("quantkit.fitting.fit.measure", lambda *_: pytest.fail("it is measured"))
        assert "fit.txt exists" in str(run(app, asked[:-2]).exception)
        away = [*asked, "--recipe-file", "new.txt"]
        assert "fit.svg exists" in str(run(app, away).exception)
        away[away.index("fit.svg")] = "new.svg"
        assert "there.gguf exists" in str(run(app, [*away, "-o", "there.gguf"]).exception)
    result = run(app, [*asked, "--force", "--json", "-o", "out.gguf"])
    found = json.loads(result.stdout)
    assert found["files"] == ["out.gguf"]
    assert found["chosen"]["bytes"] == Path("out.gguf").stat().st_size <= 2_300_000
    assert found["formats"].keys() == found["errors"].keys()
    assert set(found["errors"]["blk.0.attn_q.weight"]) == set(MOE_FORMATS)


def test_an_importance_matrix_weighs(tmp_path: Path) -> None:
    """It changes what is measured, and what is made is made with it."""
    matrix = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
    plain = fitted(bits_per_weight=3.4)
    found = fit(FRANKENMOE, Budget(bits_per_weight=3.4), imatrix=matrix)
    for fmt, error in plain.errors["output.weight"].items():
        assert found.errors["output.weight"][fmt] == error  # the matrix has no entry for it
    for name in ("blk.1.attn_q.weight", "blk.0.ffn_down_exps.weight"):
        assert found.errors[name]["Q3_K"] < plain.errors[name]["Q3_K"]
    plan = make(FRANKENMOE, found, tmp_path, imatrix=matrix)
    assert read_header(plan.files[0].path).get("quantize.imatrix.chunks_count") == matrix.chunks
    assert plan.files[0].size == found.chosen.nbytes


def test_with_a_matrix_the_low_bits_are_chosen_from(tmp_path: Path) -> None:
    """At the sizes of IQ2_M and IQ3_S, of which llama.cpp's files have 0.0370 and 0.0194."""
    matrix = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
    quantize(FRANKENMOE, ["F32"], tmp_path / "base.gguf")
    made, types = [], {}
    for kind, size in (("IQ2_M", 1_640_032), ("IQ3_S", 1_986_912)):
        found = fit(FRANKENMOE, Budget(size=size), imatrix=matrix)
        made.append(make(FRANKENMOE, found, tmp_path, imatrix=matrix).files[0].path)
        types[kind] = found
        assert made[-1].stat().st_size == found.chosen.nbytes <= size
        assert found.errors["blk.0.attn_q.weight"].keys() == {*LOW_FORMATS, *MOE_FORMATS}
        assert "IQ1_S" not in found.errors["token_embd.weight"]  # the matrix has nothing for it
        assert {"IQ1_S", kind} < {m.label for m in found.types}
        assert set(found.formats.values()) & set(LOW_FORMATS)
    assert types["IQ2_M"].base == "IQ2_S"  # the next below it in size
    text = tmp_path / "text.txt"
    text.write_bytes((DATA / "text" / "held-python.txt").read_bytes()[:10_000])
    low, middle = (
        row[0].kl for row in divergences(made, tmp_path / "base.gguf", [text], threads=1)
    )
    assert low < 0.030
    assert middle < 0.0145


def test_what_the_matrix_lacks_gets_no_format_that_needs_it() -> None:
    matrix = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
    left = {name: v for name, v in matrix.values.items() if name != "blk.1.attn_q.weight"}
    matrix = replace(matrix, values=left)
    found = fit(FRANKENMOE, Budget(bits_per_weight=2.5), imatrix=matrix)
    assert found.formats["blk.1.attn_q.weight"] in MOE_FORMATS
    assert not found.errors["blk.1.attn_q.weight"].keys() & set(LOW_FORMATS)
    with pytest.raises(RecipeError, match=r"has nothing for blk.1.attn_q.weight, which IQ2_XS"):
        fit(FRANKENMOE, Budget(bits_per_weight=2.5), ["IQ2_XS", "IQ2_S"], imatrix=matrix)
    with pytest.raises(
        RecipeError, match=r"^an importance matrix is needed for IQ1_S, IQ2_S; give"
    ):
        fit(FRANKENMOE, Budget(bits_per_weight=2.5), ["IQ1_S", "IQ2_S", "Q4_K"])


def test_a_picture_where_no_type_is_of_these_formats() -> None:
    found = fit(FRANKENMOE, Budget(bits_per_weight=5.0), ["Q4_0", "Q5_0"])
    assert found.types == ()
    assert "best of its size" in picture(found)


def test_words_for_errors() -> None:
    assert use_case(0.0).startswith("as good as")
    assert use_case(5e-5).startswith("nearly lossless")
    assert use_case(0.9) == use_case(9.0) == USE_CASES[-1][1]
    limits = [limit for limit, _ in USE_CASES]
    assert limits == sorted(limits)
    facts = ModelFacts("llama", 32, 8, 32, 8, True)
    assert sensitivity("token_embd.weight", facts) == pytest.approx(0.8)  # the output as well
    middle = sensitivity("blk.9.ffn_down_exps.weight", facts)
    assert sensitivity("blk.0.ffn_down_exps.weight", facts) == 3 * middle
    assert sensitivity("blk.31.ffn_down_exps.weight", facts) == 3 * middle
