"""Matrices that cannot be made leave nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit import api
from quantkit.errors import DiskFull, ImatrixError
from quantkit.storage import os_files
from tests.checkpoints import DATA

Get = Callable[[str], Path]
TEXT = DATA / "text" / "held-python.txt"


def test_what_is_refused_at_once_leaves_nothing(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for the file, a text that is none: before it is made."""
    source, out, empty = checkpoint("qwen3moe"), tmp_path / "new" / "out", tmp_path / "empty.txt"
    empty.write_bytes(b"\n")
    for texts, error in (([TEXT], DiskFull), ([empty], ImatrixError)):
        with monkeypatch.context() as patch:
            patch.setattr(os_files, "free_bytes", lambda _: 1000)
            with pytest.raises(error):
                api.imatrix(source, texts, out / "m.gguf")
            with pytest.raises(error):
                api.quantize(source, ["Q8_0"], out, imatrix="auto", calibration=texts)
        assert [p.name for p in tmp_path.iterdir()] == ["empty.txt"]
