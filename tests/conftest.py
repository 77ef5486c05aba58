from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import checkpoints

if TYPE_CHECKING:
    from tests.fake_hub import Hub


def pytest_configure(config: pytest.Config) -> None:
    """Several workers find every kernel compiled, rather than compile the same ones at once."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        import quant_types

        wanted = [(fmt, weighted) for fmt in quant_types.FORMATS for weighted in (False, True)]
        quant_types.prepare(wanted, threads=os.cpu_count() or 1)


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that is the Hub for this process."""
    from huggingface_hub import constants

    from quantkit.hub import http
    from tests.fake_hub import Hub
    from tests.fake_hub_models import TOKEN

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 20)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def sharded(checkpoint: Callable[[str], Path], hub: Hub) -> Path:
    """A local checkpoint of three shards that is MODEL on the Hub, too."""
    from tests.fake_hub_models import SHARDED

    source = checkpoint(SHARDED)
    hub.publish("org/ckpt", source)
    return source


@pytest.fixture(scope="session")
def local_sums(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What a local run makes of it."""
    from quantkit.jobs import quantize
    from tests.fake_hub_models import SHARDED, TYPES, sums

    return sums(quantize(checkpoint(SHARDED), TYPES, tmp_path_factory.mktemp("local")))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
