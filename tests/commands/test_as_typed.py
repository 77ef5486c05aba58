"""What people type and is taken: types, sources, outputs, directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit.cli import app
from quantkit.errors import UsageError
from quantkit.recipes.file_types import RECIPES, find_format, find_recipe
from quantkit.source.location import Source
from tests.fake_hub import Hub

run = CliRunner().invoke


def test_every_type_in_haste() -> None:
    for recipe in RECIPES:
        for name in (recipe.name, recipe.name.replace("_", ""), recipe.name.replace("_", "-")):
            assert find_recipe(name.lower()) is recipe
    assert find_recipe("q4km-moe").name == "Q4_K_M-moe"
    assert find_recipe("fp16").name == "F16"
    assert find_recipe("q4k").name == "Q4_K_M"
    assert (find_format("q4k"), find_format("fp32"), find_format("iq4nl")) == (
        "Q4_K",
        "F32",
        "IQ4_NL",
    )
    with pytest.raises(UsageError, match="unknown type 'q4kx'"):
        find_recipe("q4kx")


@pytest.mark.parametrize(
    "words",
    [
        "SRC --type Q4_0 --type Q8_0",
        "SRC -t Q4_0,Q8_0",
        "SRC --types q40,q80",
        "--types Q4_0 Q8_0 SRC",
        "SRC --type Q4_0 Q8_0 --dry-run",
        "SRC -t Q4_0, -t Q8_0",
    ],
)
@pytest.mark.parametrize("command", ["quantize", "plan", "release"])
def test_types(command: str, words: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = str(checkpoint("mixtral-4x"))
    arguments = [source if word == "SRC" else word for word in words.split()]
    if command != "plan":
        arguments += ["-o", str(tmp_path / "out"), "--dry-run"]
    elif "--dry-run" in arguments:
        arguments.remove("--dry-run")
    result = run(app, [command, *arguments, "--json"], catch_exceptions=False)
    told = json.loads(result.stdout)
    assert [o["type"] for o in told.get("outputs") or told["files"]] == ["Q4_0", "Q8_0"]
    assert list(tmp_path.iterdir()) == []


def test_a_set_and_a_type(checkpoint: Callable[[str], Path]) -> None:
    source = str(checkpoint("mixtral-4x"))
    result = run(app, ["quantize", source, "--types", "default", "F16", "--dry-run", "--json"])
    assert len(json.loads(result.stdout)["outputs"]) == 9


def test_a_file_that_is_called_as_a_type(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint("mixtral-4x"), tmp_path / "Q8_0")
    result = run(app, ["quantize", "Q8_0", "--type", "Q4_0", "F16", "--dry-run", "--json"])
    assert [o["type"] for o in json.loads(result.stdout)["outputs"]] == ["Q4_0", "F16"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:org/model", "hf://org/model"),
        ("hf:org/model@v1", "hf://org/model@v1"),
        ("https://huggingface.co/org/model", "hf://org/model"),
        ("https://huggingface.co/org/model/", "hf://org/model"),
        ("http://www.huggingface.co/org/model", "hf://org/model"),
        ("huggingface.co/org/model", "hf://org/model"),
        ("hf.co/org/model", "hf://org/model"),
        ("https://huggingface.co/org/model/tree/main", "hf://org/model"),
        ("https://huggingface.co/org/model/tree/v1.0", "hf://org/model@v1.0"),
        ("https://huggingface.co/org/model?library=gguf", "hf://org/model"),
        ("https://huggingface.co/org/m-GGUF/blob/main/m-Q8_0.gguf", "hf://org/m-GGUF/m-Q8_0.gguf"),
        (
            "https://huggingface.co/org/m/resolve/v2/in/m.gguf?download=true",
            "hf://org/m@v2/in/m.gguf",
        ),
    ],
)
def test_addresses_as_they_are_copied(text: str, address: str) -> None:
    assert str(Source.parse(text)) == address


def test_a_path_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:org" / "model").mkdir(parents=True)
    for text in ("hf:org/model", "org/model", "./hf.co", "model.gguf"):
        assert Source.parse(text).address is None


def test_an_address_of_a_page_is_read(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    address = "https://huggingface.co/org/ckpt/tree/main"
    result = run(app, ["convert", address, "--outfile", str(tmp_path / "new" / "m.gguf")])
    assert result.exit_code == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("output", ["new", "new/er", "v1.5", "new/x.gguf", "New.GGUF"])
@pytest.mark.parametrize(
    "command", ["convert SRC", "quantize SRC -t F16", "fit SRC --size 1MB --recipe-file fit.txt"]
)
def test_directories_are_made(
    command: str,
    output: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(checkpoint("mixtral-4x"))
    words = [source if word == "SRC" else word for word in command.split()]
    result = run(app, [*words, "--output", output], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (made,) = [p for p in tmp_path.rglob("*") if p.suffix.lower() == ".gguf"]
    is_file = output.lower().endswith(".gguf")
    assert (made if is_file else made.parent) == tmp_path / output


def test_a_dry_run_makes_no_directory(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = str(checkpoint("mixtral-4x"))
    for command in ("convert", "release"):
        run(
            app, [command, source, "-o", str(tmp_path / "new"), "--dry-run"], catch_exceptions=False
        )
    assert list(tmp_path.iterdir()) == []


def test_directories_of_models(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """`report` and `verify` take them; splits are one model."""
    source, out = str(checkpoint("mixtral-4x")), tmp_path / "out"
    arguments = ["release", source, "-o", str(out), "-t", "Q4_0,Q8_0", "--split-max-tensors", "9"]
    run(app, arguments, catch_exceptions=False)
    rows = json.loads(run(app, ["report", str(out), "--json"]).stdout)["rows"]
    assert [(row["type"], row["files"]) for row in rows] == [("Q4_0", 3), ("Q8_0", 3)]
    good = run(app, ["verify", str(out)])
    assert good.exit_code == 0
    assert [line.split(":")[0] for line in good.stdout.splitlines()] == ["good", "good"]
    first, *_, last = sorted(out.glob("*.gguf"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    last.unlink()
    bad = run(app, ["verify", str(out), "--json"])
    assert bad.exit_code == 1
    told = json.loads(bad.stdout)["files"]
    assert len(told) == 3
    assert any(f"{last.name} is in manifest.json and not there" in f for f in told[2]["findings"])


def test_a_directory_with_nothing_of_ours(tmp_path: Path) -> None:
    result = run(app, ["verify", str(tmp_path)])
    assert result.exit_code == 1
