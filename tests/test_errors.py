"""The errors themselves: each has a name and a test, and the command says it in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit import cli, errors
from quantkit.jobs import convert, quantize

Broken = Callable[..., Path]


def test_unknown_type(broken: Broken, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="Q4_K_M"):
        quantize(broken(), ["Q4_KN"], tmp_path)


def test_unknown_outtype(broken: Broken, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="bf17"):
        convert(broken(), tmp_path, "bf17")


def test_quantizing_what_is_quantized(broken: Broken, tmp_path: Path) -> None:
    quantize(broken(), ["Q8_0"], tmp_path / "m.gguf")
    with pytest.raises(errors.RecipeError, match="Q8_0 already"):
        quantize(tmp_path / "m.gguf", ["Q4_K_M"], tmp_path)


def test_every_error_is_raised_by_a_test() -> None:
    """The tree in errors.py is the whole list; each leaf is named in the tests."""
    text = "".join(p.read_text() for p in Path(__file__).parent.rglob("test_*.py"))
    leaves = [
        e
        for e in vars(errors).values()
        if isinstance(e, type) and issubclass(e, errors.QuantkitError) and not e.__subclasses__()
    ]
    assert len(leaves) >= 12
    assert [e.__name__ for e in leaves if e.__name__ not in text] == []
    assert [e.__name__ for e in leaves if e.__name__ not in (errors.__doc__ or "")] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["quantize", "nowhere", "--type", "Q8_0"], 1, "error: nowhere: no such"),
        (["quantize", "nowhere"], 2, "--type"),
        (["convert", "nowhere"], 1, "error: nowhere: no such"),
        (["report", "nowhere"], 1, "error: nowhere: no such"),
        (["report", "."], 1, "error:"),
        (["melt"], 2, "melt"),
    ],
)
def test_the_command_says_it_in_one_line(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "quantkit.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": ""},
    )
    assert run.returncode == code
    assert run.stdout == ""
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    if code == 1:
        assert len(run.stderr.splitlines()) == 1


def test_kernels_that_cannot_be_compiled(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """quant_types says so, and the command line says it in a line."""
    from quant_types import kernels

    monkeypatch.setattr(kernels, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(
        sys, "argv", ["quantkit", "quantize", str(checkpoint("mixtral-4x")), "-t", "Q8_0"]
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is no Python to compile with; NumPy does the same")
    assert list(tmp_path.iterdir()) == []
