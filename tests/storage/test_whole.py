"""Small files: whole or not at all, and what could not be written is named."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from quantkit import errors
from quantkit.storage import os_files
from quantkit.storage.whole import (
    made_directories,
    make_directory,
    making,
    output_error,
    replace_file,
    write_text,
)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "card.md"
    write_text(path, "old")
    real, left = os_files.pwrite, iter([1])

    def full(fd: int, data: memoryview, offset: int) -> None:
        if next(left, 0):
            real(fd, data, offset)
        else:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os_files, "pwrite", full)
    with pytest.raises(errors.DiskFull, match=r"card\.md: the disk is full .* run it again"):
        replace_file(path, [b"new", b"er"])
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "old"


def test_a_place_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(errors.OutputError, match=r"no/x: cannot be written"):
        write_text(tmp_path / "no" / "x", "text")


@pytest.mark.skipif(sys.platform == "win32", reason="no such places")
def test_devices_and_pipes_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is root could put a file in place of /dev/null."""
    monkeypatch.setattr(os_files, "open_new", lambda path: pytest.fail("something was opened"))
    monkeypatch.setattr(os, "replace", lambda a, b: pytest.fail("something was replaced"))
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    places = "/dev/null", "/dev/stdout", "/dev/fd/1", "/dev/nowhere", "/proc/self/x", pipe, link
    for place in map(Path, places):
        with pytest.raises(errors.OutputError, match=f"{place} is no place for a file; name"):
            write_text(place, "text")
    for place in Path(), tmp_path:
        with pytest.raises(errors.OutputError, match=f"{place} is a directory; name a file"):
            write_text(place, "text")


def test_directories_where_there_can_be_none(tmp_path: Path) -> None:
    file, inside = tmp_path / "file", tmp_path / "a" / "b"
    file.touch()
    with pytest.raises(errors.OutputError, match=r"file/x: cannot be written"):
        make_directory(file / "x")
    with (
        pytest.raises(errors.OutputError, match=r"x: cannot be written"),
        made_directories([inside, file / "x"]),
    ):
        pytest.fail("nothing was made")
    assert [*tmp_path.iterdir()] == [file]


def test_files_that_are_too_many(tmp_path: Path) -> None:
    said = str(output_error(OSError(errno.EMFILE, "Too many open files"), tmp_path / "x"))
    assert said.endswith("x: Too many open files; allow more (`ulimit -n 4096`) and run it again")


def test_what_a_killed_run_left_and_links(tmp_path: Path) -> None:
    path, victim = tmp_path / "x", tmp_path / "victim"
    victim.write_text("precious")
    making(path).symlink_to(victim)
    write_text(path, "text")
    stamp = path.stat().st_mtime_ns
    making(path).write_text("half")
    write_text(path, "text")  # the same: left alone
    assert path.stat().st_mtime_ns == stamp
    assert victim.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["victim", "x"]
