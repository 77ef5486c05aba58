"""The release of the trained frankenMoE that tests look at, or a copy to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quantkit.releases.release import Release, release


@pytest.fixture(scope="package")
def source(frankenmoe: dict[str, Path]) -> Path:
    return frankenmoe["mergekit"]


@pytest.fixture(scope="package")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(source, tmp_path_factory.mktemp("release") / "out")


@pytest.fixture
def copy(whole: Release, tmp_path: Path) -> Path:
    """The release, for a test to damage."""
    return Path(shutil.copytree(whole.directory, tmp_path / "copy"))
