"""quantkit as a package: what it exports, and that the code of docs/api.md runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import quantkit
from quantkit.errors import QuantkitError, UsageError
from quantkit.gguf.container import read_header
from tests import checkpoints
from tests.told import Told

API = Path(__file__).parents[1] / "docs" / "api.md"
EXPORTED = [
    "ConversionOptions", "HubTarget", "Imatrix", "Overrides", "Progress", "QuantkitError",
    "Reading", "Splits", "__version__", "convert", "edit", "fit", "imatrix", "inspect", "merge",
    "merge_imatrix", "plan", "quantize", "read_imatrix", "release", "report", "split", "verify",
]  # fmt: skip


def test_what_is_exported() -> None:
    assert quantkit.__all__ == dir(quantkit) == EXPORTED
    for name in EXPORTED:
        thing = getattr(quantkit, name)
        assert name == "__version__" or thing.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        quantkit.konvert  # noqa: B018
    assert issubclass(UsageError, QuantkitError)
    assert quantkit.QuantkitError is QuantkitError


def test_a_name_stays_what_it_is_when_its_package_is_imported() -> None:
    """No sub-package has the name of a function."""
    code = (
        "import importlib, pkgutil, quantkit\n"
        "for m in pkgutil.walk_packages(quantkit.__path__, 'quantkit.'):\n"
        "    importlib.import_module(m.name)\n"
        "print([n for n in quantkit.__all__ if type(getattr(quantkit, n)).__name__ == 'module'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_code_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = checkpoints.from_recipe("mixtral-4x", tmp_path)
    made.rename(tmp_path / "My-Merge-4x")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", API.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "Q4_K_M" in said
    assert "unknown type 'Q4_KMM'; did you mean Q4_K_M" in said
    assert "True [] [" in said  # the verdict
    assert {p.name for p in tmp_path.glob("*.gguf")} == {
        "out.gguf",
        "My-Merge-4x-Q4_K_M.gguf",
        "My-Merge-4x-Q8_0.gguf",
        "smaller.gguf",
        "fit.gguf",
    }
    assert read_header(tmp_path / "smaller.gguf").get("llama.expert_count") == 2


def test_paths_sizes_and_progress(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source, told = checkpoint("mixtral-4x"), Told()
    written = quantkit.quantize(
        str(source), "Q8_0", str(tmp_path), memory="1GB", progress=told, threads=1
    )
    assert written.files == [tmp_path / f"{source.name}-Q8_0.gguf"]
    steps = {step for step, _, _ in told.updates}
    assert steps == {"Q8_0"}
    assert told.updates[0][1] == 0
    assert told.updates[-1][1] == told.updates[-1][2]
    halves = quantkit.split(written.files[0], tmp_path / "s", splits=quantkit.Splits(max_tensors=9))
    assert len(halves.files) > 1
    whole = quantkit.merge(halves.files[0], tmp_path / "whole.gguf")
    assert quantkit.report(whole.files).rows[0].type == "Q8_0"
    assert quantkit.inspect(source, weights=False).problems == []


def test_tables_in_notebooks(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    written = quantkit.quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path)
    for shown in (written, quantkit.report(written.files)):
        html = shown._repr_html_()
        assert html.startswith("<table>")
        assert "Q8_0" in html
