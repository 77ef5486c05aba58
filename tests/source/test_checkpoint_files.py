"""The small files of a checkpoint: each is opened once, and errors name it as a person does."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quantkit.errors import (
    CorruptFile,
    SourceError,
    SourceNotFound,
    UnsupportedSource,
    malformed,
)
from quantkit.model.open import open_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.vocabularies import vocabulary, write_files

Get = Callable[[str], Path]
GGUF_READS = ("README.md", "config.json", "generation_config.json")  # by itself (Metadata.load)


@contextmanager
def opened(directory: Path) -> Iterator[Counter[str]]:
    """How often each file of a directory is opened, by libraries too: the system counts."""
    libc = ctypes.CDLL(None, use_errno=True)
    in_open, in_close = 0x20, 0x18  # both: the kernel merges events that are the same
    counts: Counter[str] = Counter()
    fd = libc.inotify_init1(os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(fd, os.fsencode(directory), in_open | in_close) >= 0
        yield counts
        data = os.read(fd, 1 << 20)
        while data:
            _, mask, _, size = struct.unpack_from("iIII", data)
            name = data[16 : 16 + size].rstrip(b"\0").decode()
            counts[name] += bool(mask & in_open) and bool(name)
            data = data[16 + size :]
    finally:
        os.close(fd)


linux = pytest.mark.skipif(sys.platform != "linux", reason="counts with inotify")


@linux
def test_the_count_sees_every_opening(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with opened(tmp_path) as counts:
        for _ in range(3):
            (tmp_path / "a").read_text()
    assert counts["a"] == 3


@linux
@pytest.mark.parametrize(
    "case",
    ["llama-dense", "mixtral-4x", "mixtral-4x-hfvocab", "mixtral-4x-sharded", "phimoe",
     "qwen2-dense-slowtok", "kimi-k2"],
)  # fmt: skip
def test_a_conversion_opens_each_small_file_once(case: str, checkpoint: Get) -> None:
    directory = checkpoint(case)
    with opened(directory) as counts:
        open_checkpoint(directory, "auto")
    small = {name: n for name, n in counts.items() if not name.endswith((".safetensors", ".bin"))}
    assert small["config.json"] == 2
    assert len(small) > 2
    assert [name for name, n in small.items() if n > 1 + (name in GGUF_READS)] == []


@linux
@pytest.mark.parametrize("case", ["vocab-gemma1", "meta-llama3-4x8b-instruct-v2"])
def test_a_vocabulary_opens_each_file_once(case: str, tmp_path: Path) -> None:
    directory = write_files(case, tmp_path)
    with opened(directory) as counts:
        vocabulary(directory)
    counts["config.json"] -= 1  # the test's own reading
    assert counts["tokenizer.json"] == 1
    assert max(counts.values()) == 1


def test_what_is_asked_for_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": [1]}')
    files = CheckpointFiles.local(tmp_path)
    value = files.json("a.json")
    (tmp_path / "a.json").unlink()
    assert value == {"b": [1]}
    assert files.json("a.json") is value
    assert files.text("a.json") == '{"b": [1]}'
    assert not files.has("a.json")


def test_text_has_the_lines_of_any_system(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_bytes("a b\r\nö d\re".encode())
    assert CheckpointFiles.local(tmp_path).text("merges.txt") == "a b\nö d\ne"


def test_its_name_and_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "Some-7B"
    (directory / "inner").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(directory)
    files = CheckpointFiles.local(Path())
    assert (files.name, files.where) == ("Some-7B", ".")
    assert files.weights == {"model.safetensors": Path("model.safetensors")}


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (None, SourceNotFound, "no such file"),
        (b"", CorruptFile, r"not JSON \(empty\); mend it, or download it again"),
        (b"{", CorruptFile, "not JSON"),
        (b'{"a": "\xff"}', CorruptFile, "not JSON"),
        (b"\xef\xbb\xbf{}", CorruptFile, "not JSON"),
        (b"[" * 100_000, CorruptFile, "not JSON"),
        (b"[1]", CorruptFile, "a JSON object is expected, not list"),
    ],
)
def test_what_is_no_object(
    data: bytes | None, error: type[SourceError], words: str, tmp_path: Path
) -> None:
    """Errors name the file as a person knows it, not where it lies."""
    if data is not None:
        (tmp_path / "a.json").write_bytes(data)
    files = CheckpointFiles(tmp_path, "hf://org/model", {})
    with pytest.raises(error, match=f"^hf://org/model/a.json: {words}") as caught:
        files.json("a.json")
    assert str(tmp_path) not in str(caught.value)
    assert (files.optional("a.json") is None) if data is None else files.has("a.json")


def test_what_is_too_large(tmp_path: Path) -> None:
    """Nothing of some gigabytes is read into memory for a small file."""
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(3 << 30)
    files = CheckpointFiles(tmp_path, "hf://org/model", {})
    with pytest.raises(UnsupportedSource, match=r"^hf://org/model/tokenizer\.json: 3221225472 byt"):
        files.json("tokenizer.json")


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    files = CheckpointFiles(tmp_path, "hf://org/model", {})
    with pytest.raises(CorruptFile, match=r"^hf://org/model/merges\.txt: not UTF-8"):
        files.text("merges.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=r"^hf://org/model/folder: cannot be read"):
        files.text("folder")


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such directory"):
        CheckpointFiles.local(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes are of POSIX")
@pytest.mark.parametrize(
    ("there", "words"), [("link", "a link to a file that is not there; download it again"),
                         ("directory", "a directory; a file is expected"),
                         ("pipe", "a pipe or a device; a file is expected")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "README.md"])
def test_a_name_without_its_file(there: str, words: str, name: str, broken: Get) -> None:
    """As in a cache that was half downloaded: without the file it would be another model."""
    source = broken("mixtral-4x")
    path = source / name
    path.unlink(missing_ok=True)
    if there == "link":
        path.symlink_to("../blobs/nowhere")
    elif there == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(SourceError, match=words) as caught:
        open_checkpoint(source, "auto")
    assert str(caught.value).startswith(str(path))


def test_a_lack_of_memory_is_no_fault_of_a_file() -> None:
    with pytest.raises(MemoryError), malformed(CorruptFile, "a file"):
        raise MemoryError
