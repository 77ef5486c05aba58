"""`release --kl`: what was measured in llama.cpp is on the card and in the manifest, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit.errors import CorruptFile, LlamaMissing, SourceNotFound, UsageError
from quantkit.llama import llama_cpp
from quantkit.releases import manifest
from quantkit.verification import llama_run
from quantkit.verification.divergence import divergences, mean

TEXTS = [
    Path(__file__).parents[1] / "data" / "text" / f"held-{name}.txt" for name in ("c", "prose")
]


@pytest.mark.slow
def test_scores(
    frankenmoe: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = frankenmoe["mergekit"], tmp_path / "out"
    made = quantkit.release(source, out, ["Q4_K_M"], kl=TEXTS, threads=1)
    scores = made.manifest.scores
    assert scores
    assert (scores.texts, scores.context) == (("held-c.txt", "held-prose.txt"), 256)
    base = quantkit.convert(source, tmp_path / "base.gguf", outtype="auto").files[0]
    file = out / made.manifest.files[0].name
    expected = mean(divergences([file], base, TEXTS, 256, 1)[0])
    found = scores.types["Q4_K_M"]
    assert found.kl == pytest.approx(expected.kl, rel=1e-3)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-3)
    assert scores.perplexity == pytest.approx(expected.base_perplexity, rel=1e-3)
    assert manifest.read(out / "manifest.json") == made.manifest
    assert f"{found.kl:.4f} ± {found.kl_error:.4f}" in (out / "README.md").read_text()
    assert {p.name for p in out.iterdir() if p.name.startswith(".")} == set()

    asked: list[list[Path]] = []
    measure = llama_run.divergences
    monkeypatch.setattr(
        llama_run, "divergences", lambda m, *rest: asked.append(list(m)) or measure(m, *rest)
    )
    more = quantkit.release(source, out, ["Q8_0"], kl=TEXTS, threads=1).manifest.scores
    assert [path.name for (path,) in asked] == [file.name.replace("Q4_K_M", "Q8_0")]
    assert more
    assert more.types["Q4_K_M"] == found
    assert more.types["Q8_0"].kl < found.kl
    kept = quantkit.release(source, out, ["Q8_0"]).manifest.scores  # nothing is measured
    assert kept == more
    left = quantkit.release(source, out, drop=["Q4_K_M"]).manifest.scores
    assert left
    assert list(left.types) == ["Q8_0"]
    assert len(asked) == 1


@pytest.mark.parametrize(
    "more", [{"share": (1, 2)}, {"join": ["x"]}, {"discard": True, "push": "org/name"}]
)
def test_what_it_does_not_go_with(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--kl needs all files here"):
        quantkit.release(tmp_path, tmp_path / "out", kl=TEXTS, **more)


def test_what_is_missing_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceNotFound, match=r"nowhere\.txt: cannot be read"):
        quantkit.release(tmp_path, tmp_path / "out", kl=[tmp_path / "nowhere.txt"])
    llama_cpp.library.cache_clear()
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(LlamaMissing, match=r"quantkit-gguf\[llama\]"):
        quantkit.release(tmp_path, tmp_path / "out", kl=TEXTS)
    assert not (tmp_path / "out").exists()


GOOD_SCORE = {"kl": 1.0, "kl_error": 0.0, "perplexity": 2.0, "same_top": 0.5}
GOOD_SCORES = {"texts": ["a"], "sha256": "", "context": 1, "perplexity": 2.0, "types": {}}
GOOD_MATRIX = {"name": "a", "sha256": "", "datasets": ["b"], "chunks": 1, "covered": 1, "wanted": 1,
               "experts": 1, "unreached": 0}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"scores": 5},
        {"scores": {**GOOD_SCORES, "types": {"Q": {**GOOD_SCORE, "kl": "x"}}}},
        {"scores": {**GOOD_SCORES, "types": {"Q": {}}}},
        {"scores": {**GOOD_SCORES, "texts": [7], "types": {"Q": GOOD_SCORE}}},
        {"imatrix": {**GOOD_MATRIX, "datasets": 5}},
        {"imatrix": {**GOOD_MATRIX, "name": 5}},
        {"imatrix": {**GOOD_MATRIX, "sha256": None}},
        {"imatrix": {**GOOD_MATRIX, "chunks": "many"}},
    ],
)
def test_damaged_records_are_refused(more: dict[str, Any]) -> None:
    whole: dict[str, Any] = {
        "quantkit": "0", "name": "x", "source": "x", "architecture": "llama",
        "parameters": {"total": 1, "active": 1}, "experts": None, "base_model": None, "repo": None,
        "made_from": {"source": "", "importance": ""}, "files": [],
    }  # fmt: skip
    scores = {**GOOD_SCORES, "types": {"Q": GOOD_SCORE}}
    text = json.dumps({**whole, "scores": scores, "imatrix": GOOD_MATRIX})
    good = manifest.parse(text.encode(), "m")
    assert manifest.Manifest.of_data(good.as_data()) == good
    with pytest.raises(CorruptFile, match="not a manifest, or damaged"):
        manifest.parse(json.dumps({**whole, **more}).encode(), "m")
