"""A source that another program writes to while it is read: no file of both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import quantkit
from quantkit import errors
from quantkit.cli import app
from quantkit.execution import outputs

Make = Callable[[str], Path]


def test_a_source_that_changes_leaves_no_file(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter("ab")
    monkeypatch.setattr(outputs, "source_digest", lambda plan: next(told))
    with pytest.raises(errors.SourceChanged, match="while it was read"):
        quantkit.convert(checkpoint("mixtral-4x"), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_a_source_that_changes_in_place(
    command: str, checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is of one model and half of another when the rest is read."""
    source, out = tmp_path / "ckpt", tmp_path / "out"
    shutil.copytree(checkpoint("mixtral-4x"), source)
    out.mkdir()
    weights, digest, asked = source / "model.safetensors", outputs.source_digest, []

    def changing(plan: Any) -> str:
        asked.append(plan)
        if len(asked) == 2:  # after the last row, before the file takes its name
            data = bytearray(weights.read_bytes())
            data[-64:] = bytes(64)
            weights.write_bytes(data)
        return digest(plan)

    monkeypatch.setattr(outputs, "source_digest", changing)
    kind = ("--type", "Q8_0") if command == "quantize" else ()
    result = CliRunner().invoke(app, [command, str(source), "-o", str(out / "a.gguf"), *kind])
    assert result.exit_code == 1
    assert isinstance(result.exception, errors.SourceChanged)
    assert "while it was read" in str(result.exception)
    assert list(out.iterdir()) == []
    assert len(asked) == 2
