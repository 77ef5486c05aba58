"""Splits as tasks on a Ray cluster: a local one, with real worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantkit import errors
from quantkit.gguf.splits import Splits
from quantkit.jobs import Run, quantize
from quantkit.planning.build import Request
from tests.conftest import sha256
from tests.told import Told

SPLITS = Request(splits=Splits(max_tensors=20))
TYPES = ["Q4_K_M", "Q8_0"]


def test_without_ray_it_says_what_to_install(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(errors.ClusterError, match=r"quantkit-gguf\[ray\]"):
        quantize(checkpoint("mixtral-4x"), TYPES, tmp_path, run=Run(cluster="ray"))


def test_another_cluster(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="'slurm'"):
        quantize(checkpoint("mixtral-4x"), TYPES, tmp_path, run=Run(cluster="slurm"))


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kill", [False, True])
def test_two_workers_make_the_same_splits(
    kill: bool, ray_cluster: None, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also when one of them is killed in the middle."""
    source = checkpoint("mixtral-2x-12l")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    plan = quantize(source, TYPES, tmp_path / "whole", request=SPLITS)
    killed: list[int] = []

    def assassin() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            if list((tmp_path / "parts").glob("*.partial")):
                killed.extend(_kill_a_worker())
            time.sleep(0.002)

    if kill:
        thread = threading.Thread(target=assassin)
        thread.start()
    progress = Told()
    run = Run(cluster="ray", threads=1, progress=progress)
    quantize(source, TYPES, tmp_path / "parts", request=SPLITS, run=run)
    if kill:
        thread.join()
        assert killed
    whole, parts = (
        {p.name: sha256(p) for p in (tmp_path / name).iterdir()} for name in ("whole", "parts")
    )
    assert whole == parts
    assert len(progress.updates) == len(plan.files) > 6


def _kill_a_worker() -> list[int]:
    """Kill one process that runs a task, if one does."""
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::make_split"):
            os.kill(int(entry.name), signal.SIGKILL)
            return [int(entry.name)]
    return []


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_what_a_task_refuses_is_said(
    ray_cluster: None, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "m-00001-of-00002.gguf").write_text("precious")
    request = Request(splits=Splits(max_tensors=12))
    with pytest.raises(errors.OutputExists):
        quantize(
            checkpoint("mixtral-4x"),
            ["Q8_0"],
            tmp_path / "m.gguf",
            request=request,
            run=Run(cluster="ray"),
        )
