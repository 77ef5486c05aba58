"""The calls that a platform may lack: the fallback does the same."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.execution import outputs, pipeline
from quantkit.gguf.splits import Splits
from quantkit.jobs import Run, merge, quantize, split
from quantkit.storage import direct_io, inputs, os_files, windows
from tests.conftest import sha256

ROOT = Path(__file__).parents[2]
TYPES = ["Q4_K_M", "Q8_0"]


MACOS = (
    "O_DIRECT", "posix_fallocate", "posix_fadvise", "copy_file_range", "fdatasync",
    "sync_file_range",
)  # fmt: skip
WINDOWS = (
    *MACOS, "pread", "pwrite", "preadv", "pwritev", "O_NOFOLLOW", "O_NONBLOCK", "sysconf",
    "geteuid", "fcntl",
)  # fmt: skip


@pytest.fixture(scope="module")
def expected(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The sums of what a run makes that has everything."""
    plan = quantize(checkpoint("mixtral-4x"), TYPES, tmp_path_factory.mktemp("whole"))
    return {f.path.name: sha256(f.path) for f in plan.files}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Takes calls of the operating system's away."""

    def take(*names: str) -> None:
        monkeypatch.setattr(outputs, "HELD_BYTES", 1 << 16)
        for name in names:
            if name == "sync_file_range":
                monkeypatch.setattr(os_files, "_sync_file_range", lambda: None)
            elif name == "O_NOFOLLOW":
                monkeypatch.setattr(os_files, "NO_LINK", 0)
            elif name == "fcntl":
                as_on_windows(monkeypatch)
            else:
                monkeypatch.delattr(os, name, raising=False)

    return take


def as_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is open is renamed, replaced or removed; locks are of bytes; no descriptor of a
    directory."""
    replace, unlink, open_any = os.replace, os.unlink, os.open
    locked: list[tuple[int, int, int]] = []  # fd, inode, place

    def refuse(path: Any, seen: bool = True) -> None:
        if not os.path.exists(path):
            return
        there = os.stat(path)
        for entry in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(int(entry)), there):
                    raise PermissionError(errno.EACCES, "is open", str(path))

    def replaced(a: Any, b: Any) -> None:
        refuse(a)
        refuse(b)
        replace(a, b)

    def removed(path: Any, **more: Any) -> None:
        refuse(path)
        unlink(path, **more)

    def opened(path: Any, *rest: Any, **more: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "is a directory", str(path))
        return open_any(path, *rest, **more)

    def locking(fd: int, mode: int, size: int) -> None:
        place, inode = os.lseek(fd, 0, os.SEEK_CUR), os.fstat(fd).st_ino
        assert (mode, size) == (2, 1)
        assert os.fstat(fd).st_size <= place < 1 << 31
        for other in locked:
            with contextlib.suppress(OSError):
                if os.fstat(other[0]).st_ino == inode == other[1] and other[0] != fd:
                    raise OSError(errno.EACCES, "locked")
        locked.append((fd, inode, place))

    fake = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "fcntl", None)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "unlink", removed)
    monkeypatch.setattr(os, "open", opened)
    if sys.version_info < (3, 14):  # where pathlib has the function already
        monkeypatch.setattr(Path, "unlink", removed_path(removed))


def removed_path(remove: Callable[..., None]) -> Callable[..., None]:
    def unlink(self: Path, missing_ok: bool = False) -> None:
        try:
            remove(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    return unlink


@pytest.mark.parametrize(
    "lacking",
    [
        ("O_DIRECT",),
        ("pread", "pwrite"),
        ("posix_fallocate",),
        ("posix_fadvise",),
        ("sync_file_range", "O_DIRECT"),
        MACOS,
        pytest.param(WINDOWS, marks=pytest.mark.skipif(sys.platform != "linux", reason="/proc")),
    ],
)
def test_the_same_file_without_them(
    lacking: tuple[str, ...],
    checkpoint: Callable[[str], Path],
    expected: dict[str, str],
    without: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(*lacking)
    quantize(checkpoint("mixtral-4x"), TYPES, tmp_path, run=Run(threads=3))
    split(tmp_path / "ckpt-Q8_0.gguf", tmp_path / "part", Splits(max_tensors=9))
    merge(tmp_path / "part-00001-of-00003.gguf", tmp_path / "joined.gguf")
    monkeypatch.undo()
    left = {p.name: sha256(p) for p in tmp_path.iterdir() if not p.name.startswith("part")}
    assert left == {**expected, "joined.gguf": expected["ckpt-Q8_0.gguf"]}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_stopped_refused_and_gone_on_with_as_on_windows(
    checkpoint: Callable[[str], Path],
    expected: dict[str, str],
    without: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = checkpoint("mixtral-4x")
    without(*WINDOWS)
    write, calls = pipeline._write, iter(range(40))

    def stopping(*args: Any) -> int:
        if (n := next(calls, None)) is None:
            raise KeyboardInterrupt
        if n == 20:
            with pytest.raises(errors.OutputInUse, match="another run"):
                quantize(source, TYPES[:1], tmp_path)
        return write(*args)

    monkeypatch.setattr(pipeline, "_write", stopping)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, TYPES, tmp_path, run=Run(threads=1))
    assert {p.suffix for p in tmp_path.iterdir()} == {".partial", ".journal"}
    monkeypatch.setattr(pipeline, "_write", write)
    quantize(source, TYPES, tmp_path)
    assert {p.name: sha256(p) for p in tmp_path.iterdir()} == expected
    with pytest.raises(errors.OutputExists):
        quantize(source, TYPES, tmp_path)
    monkeypatch.undo()


def test_a_file_in_use_stays_and_leaves_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be renamed in the end is whole, and the next run only renames it."""

    def refused(a: Any, b: Any) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file", str(a))

    source = checkpoint("mixtral-4x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        with pytest.raises(errors.OutputError, match=r"Q8_0\.gguf: cannot be written"):
            quantize(source, ["Q8_0"], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_make", lambda *_: pytest.fail("rows were made again"))
        quantize(source, ["Q8_0"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt-Q8_0.gguf"]


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows writes zeros")
def test_nothing_is_written_to_reserve(tmp_path: Path) -> None:
    before, fd = os_files.free_bytes(tmp_path), os_files.open_new(tmp_path / "f")
    try:
        os_files.reserve(fd, 4 << 30)
        assert os.fstat(fd).st_size == 4 << 30
        assert before - os_files.free_bytes(tmp_path) < 1 << 30
        os_files.pwrite(fd, memoryview(b"end"), (4 << 30) - 3)
        assert os_files.pread(fd, 5, (4 << 30) - 5) == b"\0\0end"
    finally:
        os.close(fd)


@pytest.mark.parametrize("error", [0, 112, 87])
def test_what_windows_is_asked_for(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file with a new end; a full disk is called one."""
    asked: list[tuple[int, int]] = []

    class Kernel:
        def __init__(self, name: str, use_last_error: bool) -> None:
            assert (name, use_last_error) == ("kernel32", True)

        def DeviceIoControl(self, handle: Any, code: int, *rest: Any) -> int:
            asked.append((handle.value, code))
            return 0  # a file system that has no sparse files

        def SetFileInformationByHandle(self, handle: Any, kind: int, data: Any, size: int) -> int:
            assert (kind, size) == (6, 8)
            if not error:
                os.ftruncate(handle.value, data._obj.value)
            return int(not error)

    monkeypatch.setattr(ctypes, "WinDLL", Kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    fake = types.SimpleNamespace(get_osfhandle=lambda fd: fd)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)  # type: ignore[arg-type]
    fd = os_files.open_new(tmp_path / "f")
    try:
        with (
            pytest.raises(OSError, match="Windows error")
            if error
            else contextlib.nullcontext() as caught
        ):
            windows.extend(fd, 1 << 33)
    finally:
        os.close(fd)
    assert asked == [(fd, 0x900C4)]
    assert (tmp_path / "f").stat().st_size == (0 if error else 1 << 33)
    if caught:
        assert caught.value.errno == {112: errno.ENOSPC, 87: errno.EIO}[error]


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
    monkeypatch.delattr(os, "sysconf", raising=False)
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


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_paths_that_the_console_cannot_show(
    encoding: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Neither at the end of the work nor in an error."""
    out = tmp_path / "café 模型"
    out.mkdir()
    command = [sys.executable, "-c", "from quantkit.cli import main; main()", "quantize",
               str(checkpoint("mixtral-4x")), "-t", "Q8_0", "-o", str(out)]  # fmt: skip
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    for code in (0, 1):  # made; there already
        done = subprocess.run(command, env=env, capture_output=True, cwd=ROOT)
        assert done.returncode == code, done.stderr
        said = (done.stderr if code else done.stdout).decode(encoding)
        assert r"\u6a21\u578b" in said
        assert "Traceback" not in said
    assert [p.name for p in out.iterdir()] == ["ckpt-Q8_0.gguf"]
