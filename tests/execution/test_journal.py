"""What a journal says of a file in the making: never more than is on the disk, and of which run."""

from __future__ import annotations

import json
import os
import time
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.execution import journal, outputs
from quantkit.gguf.container import string
from quantkit.jobs import Run, quantize
from quantkit.planning.plan import Output, Plan, PlannedFile, PlannedTensor
from quantkit.planning.schedule import Schedule
from quantkit.source.segments import Segment
from quantkit.storage import os_files
from tests.conftest import sha256
from tests.execution.deaths import checksums


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
