from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import checkpoints


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a golden case, written once."""
    made: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in made:
            made[case] = checkpoints.from_recipe(case, tmp_path_factory.mktemp(case))
        return made[case]

    return get


@pytest.fixture
def broken(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a golden case's checkpoint for a test to damage."""

    def get(case: str = "mixtral-4x") -> Path:
        return Path(shutil.copytree(checkpoint(case), tmp_path / "ckpt"))

    return get


@pytest.fixture(scope="session")
def frankenmoe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained frankenMoE as mergekit writes it and as older tools do."""
    parent = tmp_path_factory.mktemp("frankenmoe")
    mergekit = parent / "mergekit" / "frankenmoe-4x"
    shutil.copytree(checkpoints.FRANKENMOE, mergekit)
    return {"mergekit": mergekit, "classic": checkpoints.classic_frankenmoe(parent / "classic")}


@pytest.fixture(scope="session")
def frankenmoe_golden() -> dict[str, Any]:
    """What llama.cpp makes of the trained frankenMoE, and how its files run."""
    return dict(json.loads((checkpoints.DATA / "frankenmoe-4x.golden.json").read_text()))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
