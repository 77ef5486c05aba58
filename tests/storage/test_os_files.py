"""The calls that a platform may lack: the fallback does the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.execution import outputs
from quantkit.jobs import Run, quantize
from quantkit.storage import direct_io, inputs, os_files
from tests.conftest import sha256


@pytest.mark.parametrize(
    "lacking",
    [
        (),
        ("O_DIRECT",),
        ("pread", "pwrite"),
        ("posix_fallocate",),
        ("posix_fadvise",),
        ("sync_file_range", "O_DIRECT"),
    ],
)
def test_the_same_file_without_them(
    lacking: tuple[str, ...],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outputs, "HELD_BYTES", 1 << 16)
    for name in lacking:
        if name == "sync_file_range":
            monkeypatch.setattr(os_files, "_sync_file_range", lambda: None)
        else:
            monkeypatch.delattr(os, name)
    quantize(checkpoint("mixtral-4x"), ["Q4_K_M", "Q8_0"], tmp_path, run=Run(threads=3))
    monkeypatch.undo()
    (tmp_path / "whole").mkdir()
    expected = quantize(checkpoint("mixtral-4x"), ["Q4_K_M", "Q8_0"], tmp_path / "whole")
    for f in expected.files:
        path = tmp_path / f.path.name
        assert sha256(path) == sha256(f.path)


def test_reading_past_the_end_is_short(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcdef")
    fd = os_files.open_read(tmp_path / "f")
    try:
        assert os_files.pread(fd, 4, 1) == b"bcde"
        assert os_files.pread(fd, 4, 4) == b"ef"
        assert os_files.pread(fd, 4, 9) == b""
    finally:
        os.close(fd)


def test_writes_that_the_system_cuts_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:3], at))
    fd = os_files.open_new(tmp_path / "f")
    try:
        os_files.pwrite(fd, memoryview(b"0123456789"), 2)
    finally:
        os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"\0\x000123456789"


@pytest.mark.parametrize("least", [1, 1 << 40])
def test_large_sources_leave_memory_as_it_is(
    least: int, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large for the machine; they are read past the cache, or give back what they took of it.
    Where the machine does not tell its memory, it has some."""
    past: list[int] = []
    given: list[int] = []
    read = direct_io.read
    monkeypatch.setattr(direct_io, "read", lambda *a: past.append(a[2]) or read(*a))
    monkeypatch.setattr(os_files, "forget", lambda fd, offset, size: given.append(size))
    monkeypatch.setattr(inputs, "LARGE_READ", least)
    source = checkpoint("mixtral-4x")
    quantize(source, ["Q8_0"], tmp_path / "a.gguf")
    assert not past + given
    size = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    monkeypatch.setattr(os_files, "memory_bytes", lambda: 2 * size)
    quantize(source, ["Q8_0"], tmp_path / "b.gguf")
    assert sum(past + given) >= size // 2
    assert not (given if past else past)
    assert sha256(tmp_path / "a.gguf") == sha256(tmp_path / "b.gguf")
    monkeypatch.undo()
    assert os_files.memory_bytes() > 1 << 28
    monkeypatch.delattr(os, "sysconf")
    assert os_files.memory_bytes() == 8 << 30


def test_all_that_is_read_is_asked_for_before(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever tensors a chunk is made of."""
    asked: dict[int, set[int]] = {}

    def expect(fd: int, offset: int, size: int) -> bool:
        asked.setdefault(os.fstat(fd).st_ino, set()).update(range(offset, offset + size))
        return True

    missed = []
    pread = os_files.pread

    def read(fd: int, size: int, offset: int) -> bytes:
        if (found := asked.get(os.fstat(fd).st_ino)) is not None:
            missed.append(len(set(range(offset, offset + size)) - found))
        return pread(fd, size, offset)

    monkeypatch.setattr(os_files, "expect", expect)
    monkeypatch.setattr(os_files, "pread", read)
    source = checkpoint("mixtral-4x")
    quantize(source, ["Q8_0"], tmp_path)
    assert missed
    assert not any(missed)
    inodes = {path.stat().st_ino for path in source.glob("*.safetensors")}
    assert set(asked) == inodes


def test_reserved_space_reads_as_zeros(tmp_path: Path) -> None:
    fd = os_files.open_new(tmp_path / "f")
    try:
        os_files.reserve(fd, 5000)
    finally:
        os.close(fd)
    assert (tmp_path / "f").read_bytes() == bytes(5000)
