"""Killed runs resume; the result equals an uninterrupted run."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit import errors
from quantkit.execution import journal, pipeline
from quantkit.jobs import Run, convert, quantize
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Schedule
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage import os_files
from tests.conftest import sha256
from tests.execution.deaths import TYPES, Died, checksums, dying_after

Get = Callable[[str], Path]
ROOT = Path(__file__).parents[2]


@settings(
    max_examples=12, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(deaths=st.lists(st.integers(0, 100), min_size=1, max_size=3), threads=st.integers(1, 3))
def test_any_death_is_resumed_from(
    deaths: list[int], threads: int, source: Path, expected: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    out = tmp_path_factory.mktemp("out")
    for n in deaths:
        with pytest.MonkeyPatch.context() as patch:
            dying_after(n, patch)
            with pytest.raises(Died):
                quantize(source, TYPES, out, run=Run(threads=threads))
        assert not any(p.suffix == ".gguf" for p in out.iterdir())
    quantize(source, TYPES, out)
    assert checksums(out) == expected


def test_what_is_done_is_not_done_again(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dying_after(60, patch)
        with pytest.raises(Died):
            quantize(source, TYPES, tmp_path, run=Run(threads=1))
    read: list[str] = []
    whole = Files.read_rows

    def counting(self: Files, t: SourceTensor, *args: int) -> object:
        read.append(t.name)
        return whole(self, t, *args)

    monkeypatch.setattr(Files, "read_rows", counting)
    plan = quantize(source, TYPES, tmp_path)
    assert len(read) == len(list(Schedule(plan).chunks())) - 60
    assert checksums(tmp_path) == expected


def test_one_type_of_a_set_resumes_alone(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dying_after(40, patch)
        with pytest.raises(Died):
            quantize(source, TYPES, tmp_path)
    quantize(source, ["Q8_0"], tmp_path)
    name = "ckpt-Q8_0.gguf"
    assert sha256(tmp_path / name) == expected[name]


@pytest.mark.slow
def test_killed_at_random_moments(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """Real processes are killed; each is resumed once."""
    code = (
        "import quantkit.execution.outputs as o; o.SYNC_SECONDS = 0.01\n"
        "import quantkit.execution.pipeline as p, time\n"
        "whole = p._write\n"
        "def slow(*a):\n    time.sleep(0.004); return whole(*a)\n"
        "p._write = slow\n"
        "from quantkit.cli import main; main()"
    )
    arguments = ["quantize", str(source), "-o", "OUT", *(f"--type={t}" for t in TYPES)]
    rng = random.Random(5)
    stopped = 0
    for i in range(6):
        out = tmp_path / str(i)
        out.mkdir()
        command = [sys.executable, "-c", code, *(str(out) if a == "OUT" else a for a in arguments)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not list(out.iterdir()) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.4)
        process.kill()  # SIGKILL; TerminateProcess on Windows
        stopped += process.wait() != 0
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if again.returncode:
            assert "exists already" in again.stderr  # it had finished
        assert checksums(out) == expected
    assert stopped >= 3


@pytest.mark.parametrize("at", [1, 50, 150])
def test_a_run_resumes_after_the_disk_was_full(
    at: int, source: Path, expected: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    left = iter(range(len(TYPES) + at))

    def full(whole: Callable[..., int]) -> Callable[..., int]:
        def write(*args: object) -> int:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole(*args)

        return write

    with monkeypatch.context() as patch:
        for name in {"pwrite", "pwritev"} & set(dir(os)):
            patch.setattr(os, name, full(getattr(os, name)))
        with pytest.raises(errors.DiskFull, match="make room and run it again"):
            quantize(source, TYPES, tmp_path)
    quantize(source, TYPES, tmp_path)
    assert checksums(tmp_path) == expected


def test_a_run_resumes_after_the_source_could_not_be_read(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, left = os_files.pread, iter(range(70))

    def failing(fd: int, size: int, offset: int) -> bytes:
        if next(left, None) is None:
            raise OSError(errno.EIO, "Input/output error")
        return whole(fd, size, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os_files, "pread", failing)
        with pytest.raises(errors.SourceError, match=r"model\.safetensors.*run it again"):
            quantize(source, TYPES, tmp_path)
    quantize(source, TYPES, tmp_path)
    assert checksums(tmp_path) == expected


def test_force_begins_anew(interrupted: Path, source: Path, expected: dict[str, str]) -> None:
    quantize(source, ["Q8_0"], interrupted, run=Run(force=True))
    assert checksums(interrupted) == {"ckpt-Q8_0.gguf": expected["ckpt-Q8_0.gguf"]}


def test_a_death_between_two_renames(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = os.replace, iter(range(1))

    def once(a: Path, b: Path) -> None:
        if next(left, None) is None:
            raise Died
        replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", once)
        with pytest.raises(Died):
            quantize(source, TYPES, tmp_path)
    assert sum(p.suffix == ".gguf" for p in tmp_path.iterdir()) == 1
    quantize(source, TYPES, tmp_path)
    assert checksums(tmp_path) == expected


def test_a_death_between_two_journals(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files have their names, and the first journal is gone: another run says that they exist,
    and leaves nothing of this one."""
    remove, left = journal.Journal.remove, iter(range(1))

    def once(self: journal.Journal) -> None:
        if next(left, None) is None:
            raise Died
        remove(self)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "remove", once)
        with pytest.raises(Died):
            quantize(source, TYPES, tmp_path)
    assert sum(p.suffix == ".journal" for p in tmp_path.iterdir()) == len(TYPES) - 1
    with pytest.raises(errors.OutputExists):
        quantize(source, TYPES, tmp_path)
    assert checksums(tmp_path) == expected


def test_a_second_run_on_one_output_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline._write
    seen: list[str] = []

    def meddling(*args: object) -> int:
        if not seen:
            seen.append("")
            with pytest.raises(errors.OutputInUse, match="another run") as caught:
                quantize(source, ["Q8_0"], tmp_path)
            seen.append(str(caught.value))
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "_write", meddling)
    quantize(source, ["Q8_0"], tmp_path, run=Run(threads=1))
    assert len(seen) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt-Q8_0.gguf"]


def test_a_finished_file_is_not_overwritten_by_the_next_run(source: Path, tmp_path: Path) -> None:
    quantize(source, ["Q8_0"], tmp_path)
    with pytest.raises(errors.OutputExists):
        quantize(source, ["Q8_0"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt-Q8_0.gguf"]


def test_conversion_resumes_as_well(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(source, tmp_path / "whole.gguf").files[0]
    with monkeypatch.context() as patch:
        dying_after(50, patch)
        with pytest.raises(Died):
            convert(source, tmp_path / "m.gguf")
    plan: Plan = convert(source, tmp_path / "m.gguf")
    assert sha256(plan.files[0].path) == sha256(whole.path)
