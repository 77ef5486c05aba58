"""What comes from elsewhere than a model's files: servers, names, modes of files, the terminal."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit import errors
from quantkit.hub import repository
from quantkit.hub.http import Answer
from tests.attacks.small import ARCH, gguf

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
Make = Callable[[str], Path]
posix = pytest.mark.skipif(
    not hasattr(os, "geteuid"), reason="modes and bytes of names are POSIX's"
)


def cli(*arguments: str | bytes, cwd: Path, shell: str = 'exec "$@"') -> tuple[int, str]:
    """The exit code of a command in a shell of its own, and all that it says."""
    program = "from quantkit.cli import main; main()"
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=ENV,
        capture_output=True,
    )
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def test_a_list_of_files_that_does_not_end() -> None:
    answer = Answer(200, "", {}, {}, itertools.repeat(b"[" * (1 << 20)))
    with pytest.raises(errors.SourceUnreachable, match="does not end"):
        repository._listed("hf://org/model", answer)


def test_a_list_of_files_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "LONGEST_LISTING", 0)
    answer = Answer(200, "", {}, {}, itertools.repeat(b" "))
    with pytest.raises(errors.SourceUnreachable, match="does not end"):
        repository._listed("hf://org/model", answer)


@posix
def test_what_is_written_is_the_users_alone(checkpoint: Make, tmp_path: Path) -> None:
    """Under umask 0, and where links wait in the directory."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    out.mkdir()
    for name in ("manifest.json", "README.md", "index.html", "SHA256SUMS", "Modelfile"):
        (out / f".{name}.new").symlink_to(victim)
    source = str(checkpoint("mixtral-4x"))
    code, said = cli("release", source, "-o", "out/new", "--types", "Q8_0", cwd=tmp_path,
                     shell='umask 0; exec "$@"')  # fmt: skip
    assert code == 0, said
    code, said = cli("release", source, "-o", "out", "--types", "Q8_0", cwd=tmp_path)
    assert code == 0, said
    assert victim.read_text() == "mine"
    for path in (out / "new", *(out / "new").iterdir()):
        assert not path.stat().st_mode & 0o002, path
    assert not [path for path in out.iterdir() if path.is_symlink()]


@posix
@pytest.mark.parametrize("name", [b"a\xff.gguf", b"a\n\x1b]0;x.gguf", "ä\u202e.gguf".encode()])
@pytest.mark.parametrize("command", ["inspect", "verify", "report"])
def test_names_of_files(command: str, name: bytes, tmp_path: Path) -> None:
    gguf(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))), [ARCH], b"a\nb")
    code, said = cli(command, name, cwd=tmp_path)
    assert code == 1
    assert "Traceback" not in said
    assert "\x1b]" not in said
    assert "\u202e" not in said


@posix
def test_more_files_than_may_be_open_at_first(checkpoint: Make, tmp_path: Path) -> None:
    """256 on macOS, where a set has hundreds of splits: the limit is raised, or named."""
    source, few = checkpoint("mixtral-4x"), 'ulimit -Sn 16; exec "$@"'
    parts = tmp_path / "parts"
    split = ("convert", source, "-o", parts / "m.gguf", "--split-max-tensors", "1")
    code, said = cli(*map(os.fsencode, split), cwd=tmp_path, shell=few)
    assert code == 0, said
    names = sorted(p.name for p in parts.iterdir())
    assert len(names) > 16
    code, said = cli("merge", f"parts/{names[0]}", "-o", "m.gguf", cwd=tmp_path, shell=few)
    assert code == 0, said
    hard = 'ulimit -n 16; exec "$@"'
    code, said = cli("merge", f"parts/{names[0]}", "-o", "n.gguf", cwd=tmp_path, shell=hard)
    assert code == 1
    assert "Too many open files; allow more (`ulimit -n 4096`) and run it again" in said
    assert "Traceback" not in said
    assert not (tmp_path / "n.gguf").exists()


@posix
def test_a_machine_that_starts_no_threads(checkpoint: Make, tmp_path: Path) -> None:
    """As in a container with few processes: no traceback, and the same command goes on."""
    program = (
        "import threading; from quantkit import cli, jobs\n"
        'def none(self): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = none; cli.main()"
    )
    asked = [sys.executable, "-c", program, "convert", checkpoint("mixtral-4x"), "-o", "m.gguf"]
    done = subprocess.run(asked, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no more threads can be started; give --threads 1" in done.stderr
    code, said = cli("convert", os.fsencode(checkpoint("mixtral-4x")), "-o", "m.gguf", cwd=tmp_path)
    assert code == 0, said


@posix
def test_names_that_are_no_utf8(checkpoint: Make, tmp_path: Path) -> None:
    """Of a directory, and of a GGUF file that is released and run: the bytes are a name all the
    same, and what is written is UTF-8."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff"))
    shutil.copytree(checkpoint("mixtral-4x"), place)
    file = place / os.fsdecode(b"b\xff.gguf")
    for command in (
        ["convert", place, "-o", file],
        ["verify", file],
        ["release", place, "-o", place / "out", "--types", "Q8_0"],
        ["release", file, "-o", place / "other", "--types", "Q8_0"],
        ["release", file, "-o", place / "other", "--types", "Q8_0"],  # reads what it wrote
    ):
        code, said = cli(*map(os.fsencode, command), cwd=tmp_path)
        assert code == 0, said
    for path in (*(place / "out").iterdir(), *(place / "other").iterdir()):
        path.name.encode()
        if path.suffix != ".gguf":
            path.read_bytes().decode()


@posix
@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", ">&- 2>&-"])
def test_closed_streams(streams: str, tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf", [ARCH], b"a\nb")
    code, said = cli("inspect", "a.gguf", cwd=tmp_path, shell=f'exec "$@" {streams}')
    assert code == 1
    assert "Traceback" not in said


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_standard_output(more: list[str], tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf", [ARCH])
    code, said = cli("report", "a.gguf", *more, cwd=tmp_path, shell='exec "$@" >/dev/full')
    assert (code, said.count("\n")) == (1, 1)
    assert "error: input or output: No space left on device" in said


@posix
def test_a_current_directory_that_is_gone(tmp_path: Path) -> None:
    """Its name is what a relative path begins with."""
    gone = 'mkdir gone; cd gone; rmdir ../gone; exec "$@" 2>&1 | grep -v getcwd'
    _, said = cli("convert", "../ckpt", cwd=tmp_path, shell=gone)
    assert said == "error: the current directory is not there any more; change to one that is\n"


@posix
def test_no_room_for_compiled_kernels(checkpoint: Make, tmp_path: Path) -> None:
    """What is to be done is something that a command can do."""
    program = (
        "from pathlib import Path; from quantkit import cli; from quant_types import kernels\n"
        "from quant_types.errors import CacheFull\n"
        "def full(names, threads): raise CacheFull(Path('a\\nb/cache'))\n"
        "kernels.prepare = full; cli.main()"
    )
    asked = ["quantize", checkpoint("mixtral-4x"), "--type", "Q8_0", "-o", "m.gguf"]
    done = subprocess.run(
        [sys.executable, "-c", program, *asked],
        cwd=tmp_path,
        env={**ENV, "QUANTKIT_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "kernels; make room there, or name a directory that has some in QUANTKIT_CACHE_DIR" in (
        done.stderr
    )
    assert "error: a\\nb/cache: no space is left" in done.stderr
    assert not (tmp_path / "m.gguf").exists()
