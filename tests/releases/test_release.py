"""A release of the trained frankenMoE: all of it agrees, and what is there and right stays."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.architectures.rules import ConversionOptions
from quantkit.calibration.imatrix import read_imatrix
from quantkit.cli import app
from quantkit.execution import pipeline
from quantkit.fitting import measure
from quantkit.gguf.container import TensorInfo, header_bytes, read_header, string
from quantkit.gguf.splits import Splits
from quantkit.gguf.types import type_by_name
from quantkit.jobs import Run, convert, quantize
from quantkit.model.model import Model
from quantkit.model.open import Reading
from quantkit.planning.build import Request
from quantkit.recipes.choose import Overrides
from quantkit.recipes.file_types import RELEASE_TYPES
from quantkit.releases import manifest
from quantkit.releases.previous import BESIDE
from quantkit.releases.release import Release, parse_share, release, stem
from quantkit.reporting.table import read_rows
from quantkit.source.gguf_set import open_gguf_set
from tests.checkpoints import DATA
from tests.conftest import sha256
from tests.releases.sets import NAME, names
from tests.runtime import Llama

run = CliRunner().invoke


def test_the_whole_set_is_there_and_runs(whole: Release) -> None:
    files = {f"{NAME}-{kind}.gguf" for kind in RELEASE_TYPES}
    assert names(whole.directory) == files | {*BESIDE}
    assert set(whole.states.values()) == {"made"}
    for name in sorted(files):
        model = Llama(whole.directory / name)
        assert model.complete("def __init__(self")["choices"][0]["text"]


def test_table_sums_and_manifest_agree_with_the_files(whole: Release) -> None:
    found = json.loads((whole.directory / "manifest.json").read_text())
    listed = [line.split("  ") for line in (whole.directory / "SHA256SUMS").read_text().split("\n")]
    assert listed.pop() == [""]
    assert [[f["sha256"], f["name"]] for f in found["files"]] == listed
    for f in found["files"]:
        path = whole.directory / f["name"]
        data = path.read_bytes()
        assert (f["bytes"], f["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        header = read_header(path)
        spans = {t.name: (t.shape, header.data_offset + t.offset) for t in header.tensors}
        assert {t["name"]: (tuple(t["shape"]), t["offset"]) for t in f["tensors"]} == spans
        for t in f["tensors"]:
            part = data[t["offset"] : t["offset"] + t["bytes"]]
            assert t["sha256"] == hashlib.sha256(part).hexdigest()
    rows = read_rows([whole.directory / f["name"] for f in found["files"]])
    assert rows == list(whole.rows)
    assert [row.type for row in rows] == list(RELEASE_TYPES)
    assert found["parameters"] == {"total": 4002560, "active": 2822912}
    assert found["experts"] == {"count": 4, "used": 2}


def test_a_second_run_writes_nothing(
    whole: Release, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(pipeline, "_make")  # nothing is quantized,
    monkeypatch.delattr(measure, "measure")  # no error is measured again
    before = {p.name: p.stat().st_mtime_ns for p in whole.directory.iterdir()}
    again = release(source, whole.directory)
    assert set(again.states.values()) == {"kept"}
    assert {p.name: p.stat().st_mtime_ns for p in whole.directory.iterdir()} == before


@pytest.mark.parametrize("where", [0, 100_000, -1])
def test_a_damaged_file_is_found_and_made_again(
    where: int, whole: Release, copy: Path, source: Path
) -> None:
    path = copy / f"{NAME}-Q5_0.gguf"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    (copy / f"{NAME}-Q8_0.gguf").unlink()
    mended = release(source, copy)
    states = {kind: mended.states[f"{NAME}-{kind}.gguf"] for kind in RELEASE_TYPES}
    assert states.pop("Q5_0") == "made again"
    assert states.pop("Q8_0") == "made"
    assert set(states.values()) == {"kept"}
    assert [note for note in mended.notes if "Q5_0" in note and "damaged" in note]
    for f in whole.manifest.files:
        assert sha256(copy / f.name) == f.sha256
    assert names(copy) == names(whole.directory)


def test_a_directory_of_another_model(
    whole: Release, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    other = checkpoint("mixtral-4x")
    before = {p.name: p.stat().st_mtime_ns for p in whole.directory.iterdir()}
    with pytest.raises(errors.OtherRelease, match=f"holds a release of {NAME}"):
        release(other, whole.directory)
    assert {p.name: p.stat().st_mtime_ns for p in whole.directory.iterdir()} == before
    assert release(other, tmp_path / "new", ["Q8_0"]).states


def test_a_directory_of_the_same_model_made_otherwise(
    source: Path, copy: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.OtherRelease, match="Q8_0 was made with other options"):
        release(source, copy, ["Q8_0"], request=Request(splits=Splits(max_tensors=20)))
    with pytest.raises(errors.OtherRelease, match="Q8_0 was made with other options"):
        release(source, copy, ["Q8_0"], reading=Reading(experts_used=1))
    matrix = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
    with pytest.raises(errors.OtherRelease, match="importance matrix"):
        release(source, copy, ["Q8_0"], imatrix=matrix)
    changed = Path(shutil.copytree(source, tmp_path / source.name))
    (changed / "model.safetensors").touch()
    with pytest.raises(errors.OtherRelease, match="before it changed"):
        release(changed, copy, ["Q8_0"])
    made = release(changed, copy, ["Q8_0"], run=Run(force=True))
    assert made.states == {f"{NAME}-Q8_0.gguf": "made"}


@pytest.mark.parametrize("name", ["README.md", "other-Q4_0.gguf", "index.html"])
def test_what_is_not_ours_is_not_written_over(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(errors.OutputExists, match=f"holds {name}"):
        release(source, tmp_path)
    assert names(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "mine"


def test_not_into_the_source(source: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.OutputError, match="where the source lies"):
        release(source, source, run=Run(force=True))
    with pytest.raises(errors.OutputError, match="a release is a directory"):
        release(source, tmp_path / "out.gguf", ["Q8_0"])
    assert names(tmp_path) == set()


def test_a_manifest_that_is_damaged_or_points_elsewhere(source: Path, copy: Path) -> None:
    path = copy / "manifest.json"
    text = path.read_text()
    for bad, reason in (
        (text[:-9], "line"),
        (text.replace(f'"{NAME}-Q2_K.gguf"', '"../Q2_K.gguf"'), "'../Q2_K.gguf' is not a file of"),
        (text.replace(f'"{NAME}-Q2_K.gguf"', '".."'), "'..' is not a file of"),
        (text.replace(f'"{NAME}-Q2_K.gguf"', r'"a\u0000"'), "is not a file of"),
        (text.replace('"offset": ', '"offset": -'), "'offset' is -"),
        (text.replace('"bytes"', '"size"'), "'bytes' is missing"),
        (text.replace('"made_from": {', '"made_from": "x", "y": {'), "'made_from' is str"),
        (text.replace('"errors": {', '"errors": {"x": null, '), "'errors' is not a number"),
        (text.replace('"files": [', '"begun": 1, "files": ['), "not iterable"),
        ("[]", "an object is expected, not list"),
        ("{}", "is missing"),
        ("", "empty"),
    ):
        assert bad != text
        path.write_text(bad)
        with pytest.raises(
            errors.CorruptFile,
            match=f"manifest.json: not (a manifest|JSON).*{reason}.*; remove it and run again",
        ):
            release(source, copy)


def test_a_manifest_is_read_as_it_was_written(whole: Release) -> None:
    path = whole.directory / "manifest.json"
    assert manifest.read(path) == whole.manifest
    assert manifest.as_json(whole.manifest) == path.read_text()
    assert manifest.read(path.with_name("nothing")) is None


@pytest.mark.parametrize(
    ("plan", "version"),
    [("f" * 64, "an older"), ("1:" + "f" * 64, "an older"), ("999:ff", "a newer")],
)
def test_a_release_of_another_version_is_said_to_be_one(
    plan: str, version: str, source: Path, copy: Path
) -> None:
    path = copy / "manifest.json"
    found = manifest.read(path)
    assert found is not None
    for kind in ("Q4_0", "Q8_0"):
        files = tuple(replace(f, plan=plan) if f.type == kind else f for f in found.files)
        path.write_text(manifest.as_json(replace(found, files=files)))
        words = f"whose {kind} was made by {version} version of quantkit.*--force"
        with pytest.raises(errors.OtherRelease, match=words):
            release(source, copy)
        assert set(release(source, copy, ["Q6_K"]).states.values()) == {"kept"}
    made = release(source, copy, ["Q8_0"], run=Run(force=True))
    assert made.states.pop(f"{NAME}-Q8_0.gguf") == "made"
    assert set(made.states.values()) == {"kept"}


def test_a_table_in_a_notebook(whole: Release) -> None:
    text = whole._repr_html_()
    assert text.count("<tr>") == 1 + len(RELEASE_TYPES)
    assert f"<td>{NAME}-Q8_0.gguf</td><td>Q8_0</td><td>4.31 MB</td><td>made</td>" in text
    (first, *_) = whole.manifest.files
    hostile = replace(first, name="<script>alert(1)</script>", type="<b>")
    bad = replace(
        whole, manifest=replace(whole.manifest, files=(hostile,)), states={hostile.name: "<i>"}
    )
    assert "<script" not in bad._repr_html_()
    assert "&lt;script&gt;" in bad._repr_html_()
    assert not {"<b>", "<i>"} & set(re.findall(r"<[^>]*>", bad._repr_html_()))


def test_splits(source: Path, tmp_path: Path) -> None:
    request = Request(splits=Splits(max_tensors=20))
    made = release(source, tmp_path / "out", ["Q4_K_M", "Q8_0"], request=request)
    files = [f.name for f in made.manifest.files]
    assert files[:2] == [f"{NAME}-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    (tmp_path / "out" / files[1]).unlink()
    again = release(source, tmp_path / "out", ["Q4_K_M", "Q8_0"], request=request)
    assert [name for name, state in again.states.items() if state == "made"] == [files[1]]
    assert again.manifest == made.manifest
    assert Llama(tmp_path / "out" / files[0]).complete("if")["choices"][0]["text"]
    assert "quantkit merge" in (tmp_path / "out" / "Modelfile").read_text()


def test_shares_are_the_whole(source: Path, tmp_path: Path) -> None:
    request, types = Request(splits=Splits(max_tensors=20)), ["Q4_0", "Q8_0"]
    whole = release(source, tmp_path / "whole", types, request=request)
    for i in range(1, 7):
        made = release(source, tmp_path / f"parts/{i}", types, request=request, share=(i, 6))
        assert set(made.states.values()) <= {"made"}
        assert not (tmp_path / f"parts/{i}/README.md").exists()
    for f in whole.manifest.files:
        (found,) = (tmp_path / "parts").rglob(f.name)
        assert sha256(found) == f.sha256
    for i in (1, 2):  # a half is the same part of the model in both types
        half = release(
            source, tmp_path / "half", types, request=request, share=(i, 2), run=Run(dry=True)
        )
        assert [name.endswith(f"-0000{i}-of-00002.gguf") for name in half.states] == [True, True]


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(errors.UsageError, match="not a share"):
        parse_share(text)


def test_join_wants_records_of_this_release(source: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.SourceNotFound, match="no record"):
        release(source, copy, join=[tmp_path / "empty"])
    release(source, tmp_path / "p/1", ["Q8_0"], reading=Reading(experts_used=1), share=(1, 1))
    with pytest.raises(errors.OtherRelease, match="p/1 holds a release whose Q8_0"):
        release(source, copy, join=[tmp_path / "p"])


def test_the_command(source: Path, tmp_path: Path) -> None:
    arguments = ["release", str(source), "-o", str(tmp_path / "out"), "--types", "q8_0,q4_0"]
    dry = json.loads(run(app, [*arguments, "--dry-run", "--json"]).stdout)
    assert [f["state"] for f in dry["files"]] == ["to be made"] * 2
    assert not (tmp_path / "out").exists()
    told = json.loads(run(app, [*arguments, "--json"]).stdout)
    assert told["directory"] == str(tmp_path / "out")
    assert told["parameters"] == {"total": 4002560, "active": 2822912}
    assert [f["bytes"] for f in told["files"]] == [f["bytes"] for f in dry["files"]]
    for f in told["files"]:
        assert f["sha256"] == sha256(tmp_path / "out" / f["name"])
    lines = run(app, arguments).stdout.splitlines()
    assert [line.split("  ")[-1] for line in lines[:2]] == ["kept", "kept"]
    count, beside, following = lines[3:]
    total = sum(f["bytes"] for f in told["files"])
    assert re.fullmatch(rf"2 files, {total / 1e6:.2f} MB, in \d+ s", count)
    assert beside == f"card: {tmp_path}/out/README.md, page: {tmp_path}/out/index.html"
    assert following == f"next: quantkit {shlex.join(arguments)} --push ORG/NAME"
    assert run(app, [*arguments, "--quiet"]).output == ""
    *_, last = run(app, [*arguments[:4], "--drop", "q4_0", "--force"]).stdout.splitlines()
    assert last == f"next: quantkit {shlex.join(arguments[:4])} --types Q8_0 --push ORG/NAME"


def test_a_release_of_a_quantized_file(whole: Release, tmp_path: Path) -> None:
    given = whole.directory / f"{NAME}-Q8_0.gguf"
    arguments = ["release", str(given), "-o", str(tmp_path / "out"), "--types", "Q4_0"]
    assert run(app, arguments).exit_code == 1
    assert run(app, [*arguments, "--allow-requantize"]).exit_code == 0
    assert (tmp_path / "out" / f"{NAME}-Q4_0.gguf").exists()


def test_recipes(source: Path, tmp_path: Path) -> None:
    arguments = ["release", str(source), "-o", str(tmp_path / "out"), "--recipe", "moe"]
    told = json.loads(run(app, [*arguments, "--dry-run", "--json"]).stdout)
    types = [f["type"] for f in told["files"]]
    assert types == [
        "Q2_K-moe",
        "Q3_K_M-moe",
        "Q4_0",
        "Q4_K_M-moe",
        "Q5_0",
        "Q5_K_M-moe",
        "Q6_K-moe",
        "Q8_0",
    ]
    assert run(app, [*arguments, "--types", "Q4_K_M, Q8_0"]).exit_code == 2
    assert run(app, [*arguments, "--types", "Q4_K_M"]).exit_code == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"llama-cli -m {NAME}-Q4_K_M-moe.gguf" in text
    assert (tmp_path / "out" / "Modelfile").read_text().startswith(f"FROM ./{NAME}-Q4_K_M-moe.gguf")


def test_a_file_as_recipe(source: Path, tmp_path: Path) -> None:
    """One type gets the formats of a file; it stays as others are added."""
    tuned = tmp_path / "tuned.gguf"
    quantize(
        source, ["Q4_K_M"], tuned, request=Request(Overrides(tensor_types=(("down", "Q6_K"),)))
    )
    out = tmp_path / "out"
    arguments = ["release", str(source), "-o", str(out)]
    recipe = ["--recipe", str(tuned)]
    for types in ([], ["--types", "Q4_K_M,Q8_0"]):
        refused = run(app, [*arguments, *types, *recipe])
        assert refused.exit_code == 2
        assert "is for one type; name it" in refused.stderr
    assert not out.exists()
    assert run(app, [*arguments, "--types", "Q4_K_M", *recipe]).exit_code == 0
    made = out / f"{NAME}-Q4_K_M.gguf"
    formats = [[(t.name, t.ggml) for t in open_gguf_set(file)[1]] for file in (made, tuned)]
    assert formats[0] == formats[1]
    before = sha256(made)
    assert run(app, [*arguments, "--types", "Q8_0"]).exit_code == 0
    assert sha256(made) == before
    assert run(app, [*arguments, "--types", "Q4_K_M"]).exit_code == 1  # with other options


def test_a_file_that_is_no_recipe_for_the_model(source: Path, tmp_path: Path) -> None:
    """Of another model, without tensors, or with one in a format that no weights are made in."""
    other, words, codes = (tmp_path / f"{name}.gguf" for name in ("other", "words", "codes"))
    shutil.copy(DATA / "imatrix" / "frankenmoe-4x.gguf", other)
    convert(source, words, reading=Reading(options=ConversionOptions(vocab_only=True)))
    tensor = TensorInfo("blk.0.attn_q.weight", (256, 256), type_by_name("I8").id, 0)
    codes.write_bytes(header_bytes((), [tensor]) + bytes(1 << 16))
    for recipe, line in (
        (other, "the file of the recipe is of another model: it has blk.0.attn_k.weight.in_sum2"),
        (words, f"{words} has no tensors, whose formats could be taken"),
        (
            codes,
            "the file of the recipe has blk.0.attn_q.weight in I8, which no weights are made in",
        ),
    ):
        asked = [str(source), "-o", str(tmp_path / "out"), "--type", "Q4_K_M", "--recipe"]
        for command in ("release", "quantize"):
            done = run(app, [command, *asked, str(recipe)])
            assert done.exit_code == 1
            assert line in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("My-Merge-4x7B", "4x7.2B", "My-Merge-4x7B"),
        ("My Merge/x", "4x7B", "My-Merge-x-4x7B"),
        ("merge-4x", "4x7B", "merge-4x7B"),
        ("merge-8x", "4x7B", "merge-8x-4x7B"),
        ("Qwen3-30B-A3B", "128x1.8B", "Qwen3-30B-A3B"),
        ("a|b\n<i>", "7B", "a-b-i-7B"),
        ("...", None, "model"),
        ("My-7B-Q8_0", "7B", "My-7B"),
        ("q8_0", None, "q8_0"),
    ],
)
def test_names(name: str, label: str | None, expected: str) -> None:
    kv = (string("general.size_label", label),) if label else ()
    assert stem(Model(name, "llama", (), {}, kv)) == expected
