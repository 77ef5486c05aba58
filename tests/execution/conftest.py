"""A source, what an uninterrupted run makes of it, and a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantkit.jobs import quantize
from tests.conftest import sha256
from tests.execution.deaths import TYPES, Died, dying_after

Get = Callable[[str], Path]


@pytest.fixture
def source(checkpoint: Get) -> Path:
    return checkpoint("mixtral-2x-12l")


@pytest.fixture(scope="module")
def expected(checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of an uninterrupted run."""
    plan = quantize(checkpoint("mixtral-2x-12l"), TYPES, tmp_path_factory.mktemp("whole"))
    return {f.path.name: sha256(f.path) for f in plan.files}


@pytest.fixture
def interrupted(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a Q8_0 that was begun and not finished."""
    with monkeypatch.context() as patch:
        dying_after(40, patch)
        with pytest.raises(Died):
            quantize(source, ["Q8_0"], tmp_path)
    yield tmp_path
    for name in ("ckpt-Q8_0.gguf.partial", "ckpt-Q8_0.gguf.journal"):
        assert not (tmp_path / name).exists()
