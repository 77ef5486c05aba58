"""The command line: what people and machines get."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit import __version__
from quantkit.cli import app
from quantkit.gguf.container import read_header
from tests.conftest import sha256

run = CliRunner().invoke


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version() -> None:
    assert run(app, ["--version"]).stdout == f"quantkit {__version__}\n"


def test_the_main_job(checkpoint: Callable[[str], Path], here: Path) -> None:
    source = str(checkpoint("mixtral-4x"))
    assert run(app, ["convert", source]).exit_code == 0
    assert run(app, ["quantize", source, "-t", "q4_k_m", "--type", "Q8_0"]).exit_code == 0
    names = ["ckpt-BF16.gguf", "ckpt-Q4_K_M.gguf", "ckpt-Q8_0.gguf"]
    assert sorted(p.name for p in here.iterdir()) == names
    table = run(app, ["report", *names]).stdout.splitlines()
    assert table[0] == ("| Name | Quant method | Bits | Size | Max RAM required | Use case |")
    for name, row in zip(names, table[2:], strict=True):
        cells = [c.strip() for c in row.strip("|").split("|")]
        assert cells[0] == name
        assert cells[1] == name[5:-5]
        assert cells[3] == f"{(here / name).stat().st_size / 1e6:.2f} MB"
        assert float(cells[4].removesuffix(" MB")) > float(cells[3].removesuffix(" MB"))


def test_json_says_what_was_written(checkpoint: Callable[[str], Path], here: Path) -> None:
    result = run(app, ["quantize", str(checkpoint("mixtral-8x")), "-t", "Q4_K_M", "--json"])
    (output,) = json.loads(result.stdout)["outputs"]
    path = Path(output["files"][0]["path"])
    assert output["bytes"] == path.stat().st_size
    assert output["type"] == "Q4_K_M"
    assert output["files"][0]["tensors"] == len(read_header(path).tensors)
    (row,) = json.loads(run(app, ["report", str(path), "--json", "--ctx", "512"]).stdout)["rows"]
    assert row["file_bytes"] == path.stat().st_size
    assert row["bits_per_weight"] == output["bits_per_weight"]
    assert row["context"] == 512
    (wider,) = json.loads(run(app, ["report", str(path), "--json", "--ctx", "1024"]).stdout)["rows"]
    # 2 layers x 2 heads x (64 + 64) channels x 2 bytes a token, and what the batch sees of it
    more = 512 * 2 * 2 * 128 * 2 + 512 * 512 * 2
    assert wider["max_ram_bytes"] - row["max_ram_bytes"] == more


def test_a_set_of_splits_is_one_row(checkpoint: Callable[[str], Path], here: Path) -> None:
    source = str(checkpoint("mixtral-4x"))
    run(app, ["quantize", source, "-t", "Q4_K_M", "-o", "whole.gguf"])
    run(app, ["split", "whole.gguf", "-o", "cut.gguf", "--split-max-tensors", "6"])
    splits = sorted(p.name for p in here.glob("cut-*.gguf"))
    assert len(splits) == 4
    result = run(app, ["report", *splits, "whole.gguf", "--json"])
    cut, whole = json.loads(result.stdout)["rows"]
    assert cut["name"] == "cut (4 files)"
    assert cut["file_bytes"] == sum((here / name).stat().st_size for name in splits)
    for key in ("type", "bits_per_weight", "max_ram_bytes"):
        assert cut[key] == whole[key]


def test_repeated_types_are_made_once(checkpoint: Callable[[str], Path], here: Path) -> None:
    result = run(app, ["quantize", str(checkpoint("mixtral-4x")), "-t", "Q8_0", "-t", "q8_0"])
    assert len(result.stdout.splitlines()) == 1


def test_threads_do_not_change_the_bytes(checkpoint: Callable[[str], Path], here: Path) -> None:
    sums = set()
    for threads in ("1", "2", "7"):
        arguments = ["quantize", str(checkpoint("mixtral-4x")), "-t", "Q4_K_M", "--force"]
        assert run(app, [*arguments, "--threads", threads]).exit_code == 0
        sums.add(sha256(here / "ckpt-Q4_K_M.gguf"))
    assert len(sums) == 1


def test_what_was_chosen_is_said(checkpoint: Callable[[str], Path], here: Path) -> None:
    result = run(app, ["convert", str(checkpoint("llama-dense"))])
    assert "pre-tokenizer llama-bpe" in result.stderr
    source = str(checkpoint("mixtral-4x-hfvocab"))
    result = run(app, ["convert", source, "--outtype", "q8_0"])
    assert result.stderr == ""  # as it always is
    result = run(app, ["convert", source, "--outtype", "q8_0", "-v", "--force"])
    assert "derived from the merges" in result.stderr


def test_ctrl_c_says_how_to_go_on(
    checkpoint: Callable[[str], Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.execution import pipeline

    def stop(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_write", stop)
    result = run(app, ["quantize", str(checkpoint("mixtral-4x")), "-t", "Q4_K_M"])
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.stderr
    names = ["ckpt-Q4_K_M.gguf.journal", "ckpt-Q4_K_M.gguf.partial"]
    assert sorted(p.name for p in here.iterdir()) == names
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run(app, ["quantize", str(checkpoint("mixtral-4x")), "-t", "Q4_K_M"]).exit_code == 0
    assert [p.name for p in here.iterdir()] == ["ckpt-Q4_K_M.gguf"]
