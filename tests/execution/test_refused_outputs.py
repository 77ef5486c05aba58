"""Places that cannot be written to, or must not be: refused by name, and nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.jobs import Run, convert, quantize
from quantkit.releases.release import release
from quantkit.storage import os_files
from tests.damage import Broken, edit_tensors, fails


def test_no_room_is_known_before_the_first_byte(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os_files, "free_bytes", lambda directory: 1_000_000)
    monkeypatch.setattr(os_files, "open_locked", lambda path: pytest.fail("something was opened"))
    fails(errors.DiskFull, "needed & bytes free", broken(), tmp_path / "out")


def test_a_disk_that_fills_up_on_the_way(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(fd: int, data: memoryview, offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = broken()
    monkeypatch.setattr(os_files, "pwrite", full)
    fails(errors.DiskFull, "the disk is full", source, tmp_path / "out")


def test_a_file_that_is_wrong_leaves_nothing(broken: Broken, tmp_path: Path) -> None:
    """What is only found as rows are read, too: groups of GPTQ that there are not."""
    source = broken("qwen3-gptq")

    def past(tensors: Any) -> None:
        for name, (kind, shape, data) in list(tensors.items()):
            if name.endswith("g_idx"):
                tensors[name] = kind, shape, b"\xff\xff\0\0" * (len(data) // 4)

    edit_tensors(source, past)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(errors.CorruptFile, match="names a group that is not there"):
        convert(source, out / "m.gguf")
    assert list(out.iterdir()) == []


def test_output_that_exists(broken: Broken, tmp_path: Path) -> None:
    source, out = broken(), tmp_path / "m.gguf"
    out.write_text("precious")
    with pytest.raises(errors.OutputExists, match="--force"):
        quantize(source, ["Q8_0"], out)
    with pytest.raises(errors.OutputExists, match="--force"):
        convert(source, out)
    assert out.read_text() == "precious"
    quantize(source, ["Q8_0"], out, run=Run(force=True))
    assert out.read_bytes()[:4] == b"GGUF"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt", "m.gguf"]


def test_output_that_is_the_input(broken: Broken, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    convert(broken(), path)
    before = path.read_bytes()
    with pytest.raises(errors.OutputError, match="is the input"):
        quantize(path, ["Q8_0"], path, run=Run(force=True))
    assert path.read_bytes() == before


def test_output_directory_that_is_not_there(broken: Broken, tmp_path: Path) -> None:
    quantize(broken(), ["Q8_0"], tmp_path / "new" / "er" / "m.gguf")
    assert [p.name for p in (tmp_path / "new" / "er").iterdir()] == ["m.gguf"]


def test_a_file_where_a_directory_should_be(broken: Broken, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.OutputError, match="is a file, and no directory"):
        quantize(broken(), ["Q8_0"], tmp_path / "file" / "new" / "m.gguf")


def test_nothing_is_left_of_a_directory_that_was_made_in_vain(
    broken: Broken, tmp_path: Path
) -> None:
    source = broken()

    def spoil(tensors: dict[str, Any]) -> None:
        name = next(n for n in tensors if n.endswith("k_proj.weight"))
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, b"\xff" * len(data))

    edit_tensors(source, spoil)
    with pytest.raises(errors.NonFiniteWeight):
        quantize(source, ["Q8_0"], tmp_path / "new" / "er" / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


@pytest.mark.skipif(sys.platform == "win32", reason="links are for administrators")
def test_a_link_is_replaced_and_one_without_end_is_named(broken: Broken, tmp_path: Path) -> None:
    source, away, loop = broken(), tmp_path / "away", tmp_path / "loop.gguf"
    loop.symlink_to(loop.name)
    quantize(source, ["Q8_0"], loop)
    assert not loop.is_symlink()
    (tmp_path / "m.gguf").symlink_to(away / "m.gguf")
    quantize(source, ["Q8_0"], tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == loop.read_bytes()
    assert not away.exists()
    (tmp_path / "folder").symlink_to("folder")
    for place in (tmp_path / "folder", tmp_path / "folder" / "m.gguf"):
        with pytest.raises(OSError, match=r"symbolic links|File exists"):
            quantize(source, ["Q8_0"], place)
    with pytest.raises(OSError, match="symbolic links"):
        release(source, tmp_path / "folder", ["Q8_0"])


def test_two_types_into_one_file(broken: Broken, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="give -o a directory"):
        quantize(broken(), ["Q8_0", "F16"], tmp_path / "m.gguf")
