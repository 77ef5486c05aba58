"""A release that is stopped anywhere goes on, makes nothing twice, and is the same."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from quantkit.errors import DiskFull
from quantkit.execution import outputs, pipeline
from quantkit.gguf.splits import Splits
from quantkit.jobs import Run
from quantkit.planning.build import Request
from quantkit.releases import checksums
from quantkit.releases.manifest import FileRecord
from quantkit.releases.previous import BESIDE
from quantkit.releases.release import Release, release
from quantkit.storage import os_files
from tests.releases.sets import NAME, assert_same, stop_after


@pytest.mark.parametrize("chunks", [0, 20])
def test_killed_while_files_are_made(
    chunks: int, whole: Release, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    calls = stop_after(chunks, monkeypatch, pipeline, "_write")
    with pytest.raises(KeyboardInterrupt):
        release(source, out, run=Run(threads=1))
    assert not [p for p in out.iterdir() if p.suffix == ".gguf" or p.name in BESIDE]
    monkeypatch.undo()
    rest = stop_after(1 << 30, monkeypatch, pipeline, "fetch")
    release(source, out, run=Run(threads=1))
    monkeypatch.undo()
    again = stop_after(1 << 30, monkeypatch, pipeline, "fetch")
    release(source, tmp_path / "other", run=Run(threads=1))
    assert len(rest) == len(again) - min(chunks, len(calls) - 1)  # none is made twice
    assert_same(out, whole)


@pytest.mark.parametrize("renamed", range(0, 8, 3))
def test_killed_between_two_files(
    renamed: int, whole: Release, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some files have their names, the others are whole and still called `.partial`."""
    out = tmp_path / "out"
    real = outputs.os.replace
    done: list[object] = []

    def replace(source: Path, target: Path) -> None:
        if str(target).endswith(".gguf"):
            done.append(target)
            if len(done) > renamed:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(outputs.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        release(source, out)
    monkeypatch.undo()
    assert len([p for p in out.iterdir() if p.suffix == ".gguf"]) == renamed
    quantized = stop_after(0, monkeypatch, pipeline, "_make")
    release(source, out)
    assert quantized == []
    assert_same(out, whole)


def stopped_in_checksums(count: int, source: Path, out: Path) -> None:
    """A release that dies when it has hashed so many of its files. It went on with files that
    another had begun, whose sums cannot be taken as they are written."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch, pipeline, "_write")
        with pytest.raises(KeyboardInterrupt):
            release(source, out, run=Run(threads=1))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(count, patch, checksums, "hash_file")
        with pytest.raises(KeyboardInterrupt):
            release(source, out, run=Run(threads=1))


def test_killed_while_checksums_are_taken(
    whole: Release, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_in_checksums(3, source, out)
    assert (out / "manifest.json.partial").exists()
    assert not (out / "manifest.json").exists()
    quantized = stop_after(0, monkeypatch, pipeline, "_make")
    hashed = stop_after(1 << 30, monkeypatch, checksums, "hash_file")
    release(source, out, run=Run(threads=1))
    assert quantized == []
    assert len(hashed) == 8 - 3
    assert_same(out, whole)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what a descriptor is of")
@pytest.mark.parametrize("name", ["README.md", "manifest.json"])
def test_a_disk_that_is_full_when_the_files_are_made(
    name: str, whole: Release, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is named, and the next run writes no more than that."""
    out, real = tmp_path / "out", os_files.pwrite

    def full(fd: int, data: memoryview, offset: int) -> None:
        if os.path.realpath(f"/proc/self/fd/{fd}").endswith(f"/.{name}.new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, data, offset)

    monkeypatch.setattr(os_files, "pwrite", full)
    with pytest.raises(DiskFull, match=f"{name}: the disk is full"):
        release(source, out)
    monkeypatch.undo()
    quantized = stop_after(0, monkeypatch, pipeline, "_make")
    release(source, out)
    assert quantized == []
    assert_same(out, whole)


def test_a_stop_does_not_wait_for_the_checksum_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as f:
        f.truncate(1 << 30)  # a hole, which takes more than half a second to hash
    seen: list[int] = []

    class Stopping:
        def update(self, step: str, done: int, total: int) -> None:
            seen.append(done)
            if len(seen) == 1:
                raise KeyboardInterrupt

        def note(self, text: str) -> None: ...

    record = FileRecord("", "", 1 << 30, "", (), "")
    expected = dict.fromkeys((path, path.with_name("other")), record)
    path.with_name("other").hardlink_to(path)
    with pytest.raises(KeyboardInterrupt):
        checksums.mismatches(expected, 2, Stopping())
    assert len(seen) < (1 << 30) // checksums.BLOCK  # the other one was not hashed to its end


def test_sums_are_taken_as_files_are_written(
    whole: Release, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = stop_after(0, monkeypatch, checksums, "hash_file")
    release(source, tmp_path / "out")
    assert hashed == []
    assert_same(tmp_path / "out", whole)


def test_damage_is_found_in_a_run_that_was_cut_short(
    whole: Release, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped_in_checksums(5, source, out)
    path = out / f"{NAME}-Q2_K.gguf"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert release(source, out).states[path.name] == "made again"
    assert_same(out, whole)


def test_splits_go_on_from_their_journals(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(splits=Splits(max_tensors=20))
    types = ["Q4_0", "Q8_0"]
    made = release(source, tmp_path / "whole", types, request=request, run=Run(threads=1))
    real, done = outputs.os.replace, []

    def replace(source: Path, target: Path) -> None:
        if str(target).endswith(".gguf"):
            done.append(target)
            if len(done) == 3:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(outputs.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        release(source, tmp_path / "out", types, request=request)
    monkeypatch.undo()
    quantized = stop_after(0, monkeypatch, pipeline, "_make")
    assert release(source, tmp_path / "out", types, request=request).manifest == made.manifest
    assert quantized == []
