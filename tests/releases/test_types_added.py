"""Types added to a release and dropped from it: what is whole and known stays listed everywhere."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.cli import app
from quantkit.execution import pipeline
from quantkit.gguf.splits import Splits
from quantkit.jobs import Run
from quantkit.model.open import Reading
from quantkit.planning.build import Request
from quantkit.releases import manifest
from quantkit.releases.previous import BESIDE, beside
from quantkit.releases.release import Release, release
from tests.releases.sets import NAME, assert_same, names

run = CliRunner().invoke


@pytest.fixture(scope="module")
def three(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(source, tmp_path_factory.mktemp("three") / "out", ["Q4_K_M", "Q6_K", "Q8_0"])


@pytest.fixture(scope="module")
def two(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(source, tmp_path_factory.mktemp("two") / "out", ["Q4_K_M", "Q8_0"])


@pytest.fixture
def out(two: Release, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two.directory, tmp_path / "out"))


def listed(out: Path) -> list[set[str]]:
    """The types in each of a release's texts."""

    def types(text: str) -> set[str]:
        end = r"(?:-0000\d-of-0000\d\.gguf|\.gguf| \(2 files)"
        return set(re.findall(rf"{re.escape(NAME)}-(\w+?){end}", text))

    texts = [(out / name).read_text() for name in ("README.md", "index.html", "SHA256SUMS")]
    found = json.loads((out / "manifest.json").read_text())
    return [*map(types, texts), {f["type"] for f in found["files"]}, set(found["errors"])]


def test_adding_a_type_is_making_them_together(source: Path, out: Path, three: Release) -> None:
    made = release(source, out, ["Q6_K"])
    states = {kind: made.states[f"{NAME}-{kind}.gguf"] for kind in ("Q4_K_M", "Q6_K", "Q8_0")}
    assert states == {"Q4_K_M": "kept", "Q6_K": "made", "Q8_0": "kept"}
    assert [row.type for row in made.rows] == ["Q4_K_M", "Q6_K", "Q8_0"]
    assert list(made.rows) == list(three.rows)
    assert_same(out, three)
    for name in BESIDE:
        assert (out / name).read_bytes() == (three.directory / name).read_bytes()
    assert (out / "Modelfile").read_text().startswith(f"FROM ./{NAME}-Q4_K_M.gguf")


def test_the_same_again_changes_nothing(source: Path, three: Release, tmp_path: Path) -> None:
    out = Path(shutil.copytree(three.directory, tmp_path / "out"))
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    again = release(source, out, ["Q4_K_M"])
    assert set(again.states.values()) == {"kept"}
    assert len(again.states) == 3
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_other_options_do_not_take_others_away(source: Path, out: Path) -> None:
    request = Request(splits=Splits(max_tensors=20))
    made = release(source, out, ["Q6_K"], request=request)
    assert [row.files for row in made.rows] == [1, 2, 1]
    assert listed(out) == [{"Q4_K_M", "Q6_K", "Q8_0"}] * 5
    again = release(source, out, ["Q8_0"])  # now the splits stay
    assert again.manifest == made.manifest
    assert list(again.rows) == list(made.rows)
    next(out.glob("*-Q6_K-00002-of-*")).unlink()  # half of a set is none
    less = release(source, out, ["Q8_0"])
    assert [row.type for row in less.rows] == ["Q4_K_M", "Q8_0"]


def test_force_makes_anew_what_is_asked_for(source: Path, out: Path) -> None:
    made = release(source, out, ["Q8_0"], run=Run(force=True))
    states = {f"{NAME}-Q4_K_M.gguf": "kept", f"{NAME}-Q8_0.gguf": "made"}
    assert made.states == states
    (out / "manifest.json").write_text("{}")
    assert list(release(source, out, ["Q8_0"], run=Run(force=True)).states.values()) == ["made"]


def test_what_is_damaged_or_gone_is_listed_no_more(source: Path, out: Path) -> None:
    path = out / f"{NAME}-Q4_K_M.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    made = release(source, out, ["Q8_0"])
    (note,) = made.notes
    assert note.startswith(f"{path.name} is damaged and no part of the release any more; name its")
    assert path.read_bytes() == data
    assert listed(out) == [{"Q8_0"}] * 5
    (out / f"{NAME}-Q8_0.gguf").unlink()
    made = release(source, out, ["Q6_K"])
    assert made.notes == [f"{NAME}-Q8_0.gguf is not here, and is not listed"]
    assert listed(out) == [{"Q6_K"}] * 5


def test_dropping(source: Path, three: Release, two: Release, tmp_path: Path) -> None:
    out = Path(shutil.copytree(three.directory, tmp_path / "out"))
    dry = release(source, out, [], drop=["q6k"], run=Run(dry=True))
    assert set(dry.states.values()) == {"there"}
    assert_same(out, three)
    made = release(source, out, [], drop=["q6k"])
    assert set(made.states.values()) == {"kept"}
    assert_same(out, two)
    for name in beside(2):
        assert (out / name).read_bytes() == (two.directory / name).read_bytes()


def test_dropping_and_making_at_once(
    source: Path, three: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(three.directory, tmp_path / "out"))
    arguments = ["release", str(source), "-o", str(out), "--types", "Q8_0", "--drop", "Q4_K_M"]
    monkeypatch.delattr(pipeline, "_make")  # nothing is quantized
    told = json.loads(run(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert [f["type"] for f in told["files"]] == ["Q6_K", "Q8_0"]
    assert not (out / f"{NAME}-Q4_K_M.gguf").exists()
    assert "Q4_K_M" not in (out / "README.md").read_text()
    assert (out / "Modelfile").read_text().startswith(f"FROM ./{NAME}-Q6_K.gguf")


@pytest.mark.parametrize(
    ("types", "drop", "words"),
    [
        ([], ["Q5_0"], "--drop Q5_0: not in the release, which has Q4_K_M, Q8_0"),
        ([], ["Q4_K_M", "Q8_0"], "nothing would be left"),
        (["Q8_0"], ["Q8_0"], "Q8_0 is to be made and to be dropped"),
        ([], ["Q7"], "unknown type 'Q7'"),
    ],
)
def test_drops_that_make_no_sense(
    types: list[str], drop: list[str], words: str, source: Path, two: Release
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in two.directory.iterdir()}
    with pytest.raises(errors.UsageError, match=words):
        release(source, two.directory, types, drop=drop)
    assert {p.name: p.stat().st_mtime_ns for p in two.directory.iterdir()} == before


def test_a_dry_run_says_what_would_be_listed(source: Path, two: Release) -> None:
    dry = release(source, two.directory, ["Q6_K"], run=Run(dry=True))
    assert list(dry.states.values()) == ["there", "to be made", "there"]
    assert [row.type for row in dry.rows] == ["Q4_K_M", "Q6_K", "Q8_0"]


def test_types_of_shares_stay_too(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    release(source, out, ["Q4_0", "Q8_0"], share=(1, 1))
    joined = release(source, out, ["Q8_0"], join=[out])
    assert [f.type for f in joined.manifest.files] == ["Q4_0", "Q8_0"]
    assert listed(out) == [{"Q4_0", "Q8_0"}] * 5  # with errors, which shares do not measure


def test_a_manifest_may_still_speak_of_files_that_were_left(source: Path, out: Path) -> None:
    """As those of 0.1.0 do, with no error of theirs."""
    path = out / manifest.NAME
    found = manifest.read(path)
    assert found is not None
    first, last = found.files
    errors_ = {last.type: found.errors[last.type]}
    path.write_text(manifest.as_json(replace(found, files=(last,), left=(first,), errors=errors_)))
    assert release(source, out, ["Q8_0"]).manifest == found


def test_the_names_of_a_split_set_go_together(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = checkpoint("mixtral-4x"), tmp_path / "out"
    release(source, out, ["Q4_0"], request=Request(splits=Splits(max_tensors=6)))
    release(source, out, ["Q8_0"])
    assert len(list(out.glob("*Q4_0*.gguf"))) > 1
    release(source, out, [], drop=["Q4_0"])
    assert names(out) == {*beside(1), *(p.name for p in out.glob("*-Q8_0.gguf"))}


def test_types_of_one_release_are_of_one_model(source: Path, tmp_path: Path) -> None:
    """Options that change the model change it for every type, also those that are there."""
    out = tmp_path / "out"
    release(source, out, ["Q4_K_M"], reading=Reading(keep_experts=(0, 1)))
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    others = Reading(keep_experts=(2, 3)), Reading(keep_experts=(0, 1), experts_used=1)
    for other in others:  # of the same name, and the same shapes
        with pytest.raises(errors.OtherRelease, match="read with other options"):
            release(source, out, ["Q8_0"], reading=other)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    both = release(source, out, ["Q8_0"], reading=Reading(keep_experts=(0, 1)))
    assert len(both.states) == 2
    made = release(source, out, ["Q8_0"], reading=others[0], run=Run(force=True))
    assert made.states == {f"{NAME.replace('4x', '4x-2x')}-Q8_0.gguf": "made"}


def test_a_manifest_of_before_models_were_compared(source: Path, out: Path) -> None:
    path = out / "manifest.json"
    path.write_text(re.sub(r', "model": "2:\w+"', "", text := path.read_text()))
    assert path.read_text() != text
    release(source, out, ["Q8_0"])
    assert path.read_text() == text


def test_experts_that_are_kept_are_named(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    release(source, out, ["Q8_0"], reading=Reading(keep_experts=(3, 1)))
    card = (out / "README.md").read_text()
    rows = [line for line in card.splitlines() if re.match(r"\| \d+ \|", line)]
    assert rows == ["| 0 | m-c |", "| 1 | m-python |"]
