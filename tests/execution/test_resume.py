"""Killed runs resume; the result equals an uninterrupted run."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit import errors
from quantkit.execution import journal, outputs, pipeline
from quantkit.gguf.container import string
from quantkit.jobs import Run, convert, quantize
from quantkit.planning.plan import Output, Plan, PlannedFile, PlannedTensor
from quantkit.planning.schedule import Schedule
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage import os_files
from tests.conftest import sha256

Get = Callable[[str], Path]
TYPES = ["Q4_K_M", "Q8_0", "BF16"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(checkpoint: Get) -> Path:
    return checkpoint("mixtral-2x-12l")


@pytest.fixture(scope="module")
def expected(checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of an uninterrupted run."""
    plan = quantize(checkpoint("mixtral-2x-12l"), TYPES, tmp_path_factory.mktemp("whole"))
    return {f.path.name: sha256(f.path) for f in plan.files}


def checksums(directory: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in directory.iterdir()}


class Died(Exception):
    """A crash, as far as the code under test can tell."""


def dying_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `n` chunks through and fail at the next, with everything so far on disk."""
    whole = pipeline._write
    left = iter(range(n))

    def write(*args: object) -> int:
        if next(left, None) is None:
            raise Died
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "_write", write)


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


def test_the_journal_never_says_what_is_not_on_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row that is noted was written before a sync that came before the note."""
    events: list[tuple[str, object]] = []
    write, sync, append = outputs.OutputFile.write, os_files.sync, journal.Journal.append

    def noted_write(self: outputs.OutputFile, tensor: str, row: int, count: int,
                    data: memoryview) -> None:  # fmt: skip
        write(self, tensor, row, count, data)
        key = (str(self.journal.path), self.tensors[tensor][0], row, count)
        events.append(("write", key))

    def noted_sync(fd: int) -> None:
        began = len(events)
        sync(fd)
        events.append(("sync", began))

    def noted_append(self: journal.Journal, rows: list[journal.RowRange]) -> None:
        rows = list(rows)
        for r in rows:
            key = (str(self.path), *r)
            at = events.index(("write", key))
            assert any(e[0] == "sync" and int(str(e[1])) > at for e in events), key
        append(self, rows)

    monkeypatch.setattr(outputs.OutputFile, "write", noted_write)
    monkeypatch.setattr(os_files, "sync", noted_sync)
    monkeypatch.setattr(journal.Journal, "append", noted_append)
    monkeypatch.setattr(outputs, "SYNC_SECONDS", 0.001)
    quantize(source, ["Q8_0"], tmp_path, run=Run(threads=1))
    assert sum(e[0] == "write" for e in events) > 100


@pytest.mark.parametrize("threads", [1, 5])
def test_what_the_journal_says_is_there(
    threads: int, source: Path, tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """To the byte, whenever it is said, whatever is on its way to the disk."""
    whole = quantize(source, ["Q4_K_M", "Q8_0"], tmp_path_factory.mktemp("whole"))
    right = {f.path.name: (f, f.path.read_bytes()) for f in whole.files}
    append, said = journal.Journal.append, 0
    monkeypatch.setattr(outputs, "SYNC_SECONDS", 0.0005)

    def checked(self: journal.Journal, done: list[journal.RowRange]) -> None:
        nonlocal said
        planned, data = right[self.path.name.removesuffix(".journal")]
        found = outputs.partial_path(tmp_path / planned.path.name).read_bytes()
        for tensor, row, count in done:
            t = planned.tensors[tensor]
            rows = t.weights // (t.shape[-1] if len(t.shape) > 1 else 1)
            start, size = (t.nbytes * n // rows for n in (row, count))
            start += t.offset
            assert found[start : start + size] == data[start : start + size]
        said += len(done)
        append(self, done)

    monkeypatch.setattr(journal.Journal, "append", checked)
    if hasattr(os, "pwritev"):
        pwritev = os.pwritev

        def slow(*args: Any) -> int:
            time.sleep(0.002)
            return pwritev(*args)

        monkeypatch.setattr(os, "pwritev", slow)
    plan = quantize(source, ["Q4_K_M", "Q8_0"], tmp_path, run=Run(threads=threads))
    assert said == 2 * len(list(Schedule(plan).chunks()))


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


def test_another_source_is_refused(
    interrupted: Path, source: Path, expected: dict[str, str]
) -> None:
    weights = source / "model.safetensors"
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    with pytest.raises(errors.JournalMismatch, match="another source"):
        quantize(source, ["Q8_0"], interrupted)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    quantize(source, ["Q8_0"], interrupted)
    assert sha256(interrupted / "ckpt-Q8_0.gguf") == expected["ckpt-Q8_0.gguf"]


def test_another_version_or_other_options_are_refused(interrupted: Path, source: Path) -> None:
    path = interrupted / "ckpt-Q8_0.gguf.journal"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(lines[0]), "quantkit": "0.0.1"}) + "\n")
    with pytest.raises(errors.JournalMismatch, match="another version of quantkit"):
        quantize(source, ["Q8_0"], interrupted)
    path.write_text("".join(lines))
    with pytest.raises(errors.JournalMismatch, match="other options"):
        quantize(source, ["Q8_0"], interrupted, override_kv=["general.name=str:Other"])
    quantize(source, ["Q8_0"], interrupted, run=Run(force=True))


@pytest.mark.parametrize(
    ("plan", "version"), [("0" * 64, "an older"), ("1:00", "an older"), ("999:00", "a newer")]
)
def test_a_journal_of_another_version_is_said_to_be_one(
    plan: str, version: str, interrupted: Path, source: Path, expected: dict[str, str]
) -> None:
    """Version 0.1.0 wrote digests without a number."""
    path = interrupted / "ckpt-Q8_0.gguf.journal"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(first), "plan": plan}) + "\n")
    with pytest.raises(errors.JournalMismatch, match=f"begun by {version} version.*--force"):
        quantize(source, ["Q8_0"], interrupted)
    path.write_text("".join([first, *rest]))
    quantize(source, ["Q8_0"], interrupted)
    assert checksums(interrupted) == {"ckpt-Q8_0.gguf": expected["ckpt-Q8_0.gguf"]}


SEGMENT = Segment("a.weight", 4, 0, 2, (1, 0), 2, 8, 3, (("add", 1.0),))


def digest(segment: Segment, **changes: Any) -> str:
    tensor = PlannedTensor("t", (2, 8), "F32", 64, 64, **changes)
    planned = PlannedFile(Path("m.gguf"), (string("general.name", "m"),), (tensor,), 64)
    plan = Plan((Output("F32", (planned,)),), {"t": (segment,)}, {})
    return journal.plan_digest(plan, planned)


def test_the_digest_of_a_plan_is_what_it_always_was() -> None:
    """Another value makes every existing release one of another version: it needs another number
    then."""
    recorded = "2:d33f72bfda14f2e78f1bd750d55c73416bce7cfeb66cfae076105986e30229f3"
    assert digest(SEGMENT) == recorded
    wider = make_dataclass(
        "Wider", [("more", int, field(default=7))], bases=(Segment,), frozen=True
    )
    values = {f.name: getattr(SEGMENT, f.name) for f in fields(SEGMENT)}
    assert digest(wider(**values)) == recorded  # a field on which no byte depends
    assert digest(SEGMENT, fallback_from="Q4_K", overridden=True) == recorded


@pytest.mark.parametrize("name", [f.name for f in fields(Segment)])
def test_the_digest_of_a_plan_depends_on_every_field_of_a_segment(name: str) -> None:
    other = {"source": "b", "order": (), "edits": ()}.get(name, 77)
    assert digest(replace(SEGMENT, **{name: other})) != digest(SEGMENT)


def test_force_begins_anew(interrupted: Path, source: Path, expected: dict[str, str]) -> None:
    quantize(source, ["Q8_0"], interrupted, run=Run(force=True))
    assert checksums(interrupted) == {"ckpt-Q8_0.gguf": expected["ckpt-Q8_0.gguf"]}


@pytest.mark.parametrize("cut", [1, 5, 10_000])
def test_a_torn_journal_loses_only_what_was_torn(
    cut: int, interrupted: Path, source: Path, expected: dict[str, str]
) -> None:
    path = interrupted / "ckpt-Q8_0.gguf.journal"
    data = path.read_bytes()
    path.write_bytes(data[: max(len(data) - cut, 0)])
    quantize(source, ["Q8_0"], interrupted)
    assert checksums(interrupted) == {"ckpt-Q8_0.gguf": expected["ckpt-Q8_0.gguf"]}


def test_a_torn_line_is_no_beginning_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`1` is left of `1 0 64`, and the next run notes `2 0 64`: not tensor 12."""
    path, identity = tmp_path / "m.gguf.journal", journal.Identity("0", "2:x", "y", "z")
    fd = os_files.open_locked(path)
    journal.Journal.create(path, fd, identity).append([(0, 0, 64)])
    os.write(fd, b"1")
    again = journal.Journal.resume(path, fd, identity)
    assert again is not None
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))  # the disk fills up
    again.append([(2, 0, 64), (3, 64, 8)])
    monkeypatch.undo()
    last = journal.Journal.resume(path, fd, identity)
    assert last is not None
    assert [t for t in range(100) if last.has(t, 0, 1) or last.has(t, 64, 8)] == [0, 2, 3]
    last.close()


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
