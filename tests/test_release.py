"""A release of the trained frankenMoE: all of it agrees, and what is there and right stays."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit.gguf_file import read_header
from quantkit.recipes import RELEASE_TYPES
from quantkit.release import Release, release
from quantkit.report import read_rows
from tests.conftest import sha256
from tests.runtime import Llama

run = CliRunner().invoke
NAME = "frankenmoe-4x2.2M"
BESIDE = {"README.md", "index.html", "Modelfile", "SHA256SUMS", "manifest.json"}


@pytest.fixture(scope="module")
def source(frankenmoe: dict[str, Path]) -> Path:
    return frankenmoe["mergekit"]


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(source, tmp_path_factory.mktemp("release") / "out")


@pytest.fixture
def copy(whole: Release, tmp_path: Path) -> Path:
    """The release, for a test to damage."""
    return Path(shutil.copytree(whole.directory, tmp_path / "copy"))


def names(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


def test_the_whole_set_is_there_and_runs(whole: Release) -> None:
    files = {f"{NAME}-{kind}.gguf" for kind in RELEASE_TYPES}
    assert names(whole.directory) == files | BESIDE
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


def test_a_second_run_writes_nothing(whole: Release, source: Path) -> None:
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
    for f in whole.manifest["files"]:
        assert sha256(copy / f["name"]) == f["sha256"]
    assert names(copy) == names(whole.directory)
