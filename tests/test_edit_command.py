"""`quantkit edit`: other metadata, the same tensors; what it refuses; a header written in place."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import quantkit
from quantkit import cli, errors
from quantkit.architectures.rules import ConversionOptions
from quantkit.editing import in_place
from quantkit.gguf.container import Header, TensorInfo, header_bytes, read_header, string, uint32
from quantkit.gguf.splits import Splits
from quantkit.jobs import convert, quantize, split
from quantkit.model.open import Reading
from tests import golden
from tests.conftest import sha256
from tests.real_loader import Judge
from tests.told import Told

if TYPE_CHECKING:
    from tests.fake_hub import Hub

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
EOS = "tokenizer.ggml.eos_token_id"


@pytest.fixture(scope="module")
def made(frankenmoe: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "m.gguf"
    quantize(frankenmoe["mergekit"], ["Q4_K_M"], path)
    return path


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "m.gguf"))


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", ["quantkit", "edit", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
    gc.unfreeze()
    return Done(code, out.getvalue(), err.getvalue())


def tensors(path: Path) -> list[tuple[str, str, str]]:
    return [(t["name"], t["type"], t["sha256"]) for t in golden.tensors(path)]


def keys(header: Header) -> dict[str, bytes]:
    return {item.key: item.raw for item in header.kv}


def test_keys_as_asked_and_all_else_as_it_was(file: Path, tmp_path: Path) -> None:
    template, out = tmp_path / "chat.jinja", tmp_path / "new" / "out.gguf"
    template.write_bytes(b"\xef\xbb\xbf" + TEMPLATE.replace("\n", "\r\n").encode())
    before = read_header(file)
    done = run(
        file, "--chat-template", template, "--set", "general.name=int: \u00e9", "--set",
        f"{EOS}=5", "--set", "own.flag=bool:true", "--set", "general.url=str:int:7",
        "--remove", "general.size_label", "-o", out,
    )  # fmt: skip
    assert done.exit_code == 1  # `int:` is a type, and general.name a text
    assert done.stderr == "error: --set general.name: it is STRING in this file, and no int\n"
    assert not out.parent.exists()
    written = quantkit.edit(
        file, out, chat_template=template, remove=["general.size_label"],
        set_kv=["general.name=\u00e9", f"{EOS}=5", "own.flag=bool:true", "general.url=str:int:7"],
    )  # fmt: skip
    assert written.files == [out]
    after = read_header(out)
    changed = {"general.name", EOS, "tokenizer.chat_template"}
    there = [item.key for item in before.kv if item.key != "general.size_label"]
    fresh = [key for key in ("own.flag", "general.url") if key not in there]
    if "tokenizer.chat_template" not in there:
        fresh.append("tokenizer.chat_template")
    assert [item.key for item in after.kv] == there + fresh
    for key in set(there) - changed:
        assert keys(after)[key] == keys(before)[key]
    assert after.get("general.name") == "\u00e9"
    assert (after.get("own.flag"), after.get("general.url")) == (True, "int:7")
    assert after.get("tokenizer.chat_template") == TEMPLATE
    assert after.get(EOS) == 5
    assert keys(after)[EOS][:4] == keys(before)[EOS][:4]  # of the type that it had
    assert tensors(out) == tensors(file)
    with Judge() as judge:
        assert judge.complaint(out) == ""


def test_a_directory_json_and_dry_runs(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = run(file, "--set", f"{EOS}=5", "-o", out, "--dry-run", "--json")
    assert json.loads(dry.stdout)["outputs"][0]["files"][0]["path"] == str(out / "m.gguf")
    assert not out.exists()
    assert run(file, "--set", f"{EOS}=5", "-o", out, "-q")[1:] == ("", "")
    again = run(file, "--set", f"{EOS}=5", "-o", out)
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    assert "exists already; --force" in again.stderr
    assert run(file, "--set", f"{EOS}=6", "-o", out, "--force").exit_code == 0
    assert read_header(out / "m.gguf").get(EOS) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", f"{EOS}=9999999"], "is no id of the"),
        (["--set", "tokenizer.ggml.fim_pre_token_id=int:9999999"], "is no id of the"),
        (["--set", f"{EOS}=many"], "is not a value of type UINT32"),
        (["--set", f"{EOS}=-1"], "is not a value of type UINT32"),
        (["--set", "general.alignment=int:64"], "how the file is laid out"),
        (["--set", "split.count=int:2"], "how the file is laid out"),
        (["--set", "general.architecture=qwen2"], "it says what the tensors are"),
        (["--set", "llama.block_count=9"], "it says what the tensors are"),
        (["--set", "llama.expert_used_count=99"], "llama.cpp would not load it"),
        (["--set", "llama.rope.freq_base=nan"], "is not a value of type FLOAT32"),
        (["--set", "tokenizer.ggml.model=none"], "it says what the tensors are"),
        (["--set", "tokenizer.ggml.tokens=a"], "it is an array of"),
        (["--set", "general.description=int:5"], "general.description is uint32, not text"),
        (["--set", "own key=int:5"], "is no name of a key"),
        (["--set", "tokenizer.ggml.add_bos_token=str:yes"], "BOOL"),
        (["--set", "general.name=a", "--remove", "general.name"], "is named twice"),
        (["--remove", "general.architecture"], "it says what the tensors are"),
        (["--remove", "llama.block_count"], "it says what the tensors are"),
        (["--remove", "llama.attention.layer_norm_rms_epsilon"], "llama.cpp would not load it"),
        (["--remove", "tokenizer.ggml.tokens"], "texts are split with it"),
        (["--remove", "general.alignment"], "how the file is laid out"),
        (["--remove", "general.nam"], "did you mean general.name?"),
        (["--set", "tokenizer.chat_template=str:{% for %}"], "does not compile"),
        (["--set", "tokenizer.chat_template=str:"], "would be empty"),
        (["--chat-template", "nowhere"], "no such file"),
        (["--chat-template", "latin.txt"], "UTF-8 is expected"),
        (["--chat-template", "long.txt"], "no chat template is so long"),
        (["--chat-template", "broken.txt"], "does not compile: "),
        (["--chat-template", "."], "cannot be read"),
    ],
)
def test_refused_before_the_first_byte(
    arguments: list[str], words: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("long.txt").write_bytes(b" " * ((1 << 20) + 1))
    Path("broken.txt").write_text("{{ messages | }}")
    before = {p.name: sha256(p) for p in tmp_path.iterdir()}
    for where in (["-o", "new/out.gguf"], ["--in-place"]):
        done = run(file, *arguments, *where)
        assert done.exit_code in (1, 2)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
        assert {p.name: sha256(p) for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("no_tensor_first", [False, True])
def test_a_set_of_splits(file: Path, tmp_path: Path, no_tensor_first: bool) -> None:
    """Whichever of them is named: the first, which has the keys, is another, and the rest the same,
    in place or as a new set; which is what splitting the edited file gives."""
    layout = Splits(max_tensors=20, no_tensor_first=no_tensor_first)
    parts = [f.path for f in split(file, tmp_path / "cut.gguf", layout).files]
    name = "general.name=" + "x" * 100
    written = quantkit.edit(parts[1], tmp_path / "new", set_kv=[name, f"{EOS}=5"]).files
    assert [p.name for p in written] == [p.name for p in parts]
    quantkit.edit(file, tmp_path / "edited.gguf", set_kv=[name, f"{EOS}=5"])
    wanted = split(tmp_path / "edited.gguf", tmp_path / "wanted.gguf", layout).files
    assert [sha256(p) for p in written] == [sha256(f.path) for f in wanted]
    assert [sha256(p) for p in written[1:]] == [sha256(p) for p in parts[1:]]
    before = [sha256(p) for p in parts]
    done = run(parts[1], "--set", name, "--in-place")
    assert done.exit_code == 1
    assert f"{parts[0]}: the new header takes" in done.stderr
    assert [sha256(p) for p in parts] == before
    changed = quantkit.edit(parts[1], set_kv=[f"{EOS}=5"], in_place=True).files
    assert changed == parts[:1]
    assert read_header(parts[0]).get(EOS) == 5
    assert [sha256(p) for p in parts[1:]] == before[1:]
    with Judge() as judge:
        assert judge.complaint(written[0]) == judge.complaint(parts[0]) == ""


def test_a_file_on_the_hub(hub: Hub, made: Path, tmp_path: Path) -> None:
    repo, source = tmp_path / "repo", "hf://org/model/m.gguf"
    repo.mkdir()
    shutil.copy(made, repo)
    hub.publish("org/model", repo)
    quantkit.edit(source, tmp_path / "there.gguf", set_kv=[f"{EOS}=5"])
    quantkit.edit(made, tmp_path / "here.gguf", set_kv=[f"{EOS}=5"])
    assert sha256(tmp_path / "there.gguf") == sha256(tmp_path / "here.gguf")
    with pytest.raises(errors.UsageError, match="is on the Hub; --in-place is for a file here"):
        quantkit.edit(source, set_kv=[f"{EOS}=5"], in_place=True)


def test_a_million_keys_are_no_reason_to_wait(tmp_path: Path) -> None:
    """Those of a stranger's file: a misspelt key is held against a few of them."""
    kv = [string("general.architecture", "own"), *(uint32(f"own.k{i}", i) for i in range(200_000))]
    infos = [TensorInfo("t", (32,), 0, 0)]
    (tmp_path / "m.gguf").write_bytes(header_bytes(kv, infos) + bytes(128))
    began = time.monotonic()
    with pytest.raises(errors.RecipeError, match="not in this file"):
        quantkit.edit(tmp_path / "m.gguf", tmp_path / "o.gguf", remove=["own.k" + "9" * 40])
    assert time.monotonic() - began < 10


def test_named_templates_are_told_of(
    checkpoint: Callable[[str], Path], file: Path, tmp_path: Path
) -> None:
    key, told = "tokenizer.chat_template.tool_use", Told()
    quantkit.edit(file, tmp_path / "a.gguf", set_kv=[f"{key}=str:{TEMPLATE}"])
    quantkit.edit(
        tmp_path / "a.gguf", tmp_path / "b.gguf", progress=told,
        set_kv=[f"tokenizer.chat_template=str:{TEMPLATE}"],
    )  # fmt: skip
    assert any(key in note for note in told.notes)
    assert read_header(tmp_path / "b.gguf").get(key) == TEMPLATE


# --- in place -------------------------------------------------------------------------------------


def test_in_place_is_the_file_that_o_writes(file: Path, tmp_path: Path) -> None:
    inode = file.stat().st_ino
    assert run(file, "--set", f"{EOS}=5", "-o", tmp_path / "out.gguf").exit_code == 0
    assert run(file, "--set", f"{EOS}=5", "--in-place", "--dry-run").exit_code == 0
    assert sha256(file) != sha256(tmp_path / "out.gguf")
    done = run(file, "--set", f"{EOS}=5", "--in-place")
    assert done.exit_code == 0, done.stderr
    assert sha256(file) == sha256(tmp_path / "out.gguf")
    assert file.stat().st_ino == inode
    assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "out.gguf"}


def test_a_vocabulary_without_a_model(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    path, other = tmp_path / "v.gguf", tmp_path / "o.gguf"
    convert(
        frankenmoe["mergekit"], path, reading=Reading(options=ConversionOptions(vocab_only=True))
    )
    before = read_header(path)
    done = run(path, "--set", "tokenizer.ggml.eos_token_id=5", "-o", other)
    assert done.exit_code == 0, done.stderr
    changed = {item.key for item in {*before.kv} ^ {*read_header(other).kv}}
    assert changed == {"tokenizer.ggml.eos_token_id"}
    assert run(path, "--set", "tokenizer.ggml.eos_token_id=5", "--in-place").exit_code == 0
    assert path.read_bytes() == other.read_bytes()
    assert "room for" in run(path, "--set", "general.name=longer", "--in-place").stderr


def test_in_place_there_has_to_be_room(file: Path, tmp_path: Path) -> None:
    before = sha256(file)
    done = run(file, "--set", f"general.name={'x' * 500}", "--in-place")
    assert done.exit_code == 1
    assert "there is room for just" in done.stderr
    assert sha256(file) == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_in_place_no_link_is_written_through(file: Path, tmp_path: Path) -> None:
    before, link = sha256(file), tmp_path / "link.gguf"
    for make in (os.symlink, os.link):
        make(file, link)
        done = run(link, "--set", f"{EOS}=5", "--in-place")
        assert done.exit_code == 1
        assert "is a link, or has another name" in done.stderr
        link.unlink()
    assert sha256(file) == before


class PowerCut(Exception):
    """The machine stops."""


@pytest.mark.parametrize("written", [0, 100, 1000, -1])
def test_in_place_interrupted(
    written: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of the header was written, the next edit begins with the old one."""
    before = sha256(file)
    call = in_place.os_files.pwrite

    def cut(fd: int, data: memoryview, offset: int) -> None:
        call(fd, data[:written] if written >= 0 else data, offset)
        raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(in_place.os_files, "pwrite", cut)
        with pytest.raises(PowerCut):
            quantkit.edit(file, set_kv=[f"{EOS}=5", "general.file_type=1"], in_place=True)
    record = in_place.record_path(file)
    assert record.exists()
    dry = run(file, "--set", f"{EOS}=6", "-o", tmp_path / "o.gguf", "--dry-run")
    assert (dry.exit_code, "was interrupted" in dry.stderr) == (1, True)
    done = run(file, "--set", f"{EOS}=6", "-o", tmp_path / "o.gguf")
    assert done.exit_code == 0, done.stderr
    assert "its header is the old one again" in done.stderr
    assert not record.exists()
    assert sha256(file) == before
    assert read_header(tmp_path / "o.gguf").get("general.file_type") != 1


def test_a_record_of_another_file_is_not_used(
    file: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(in_place.os_files, "pwrite", lambda *_: (_ for _ in ()).throw(PowerCut()))
        with pytest.raises(PowerCut):
            quantkit.edit(file, set_kv=[f"{EOS}=5"], in_place=True)
    quantkit.edit(made, tmp_path / "other.gguf", set_kv=["general.name=another one"])
    os.replace(tmp_path / "other.gguf", file)  # downloaded again
    before = sha256(file)
    record = in_place.record_path(file)
    damaged = record.read_bytes()[:-1] + b"?"
    for data, words in (
        (record.read_bytes(), "of an edit of another file"),
        (damaged, "of an edit of another file"),
        (b"notes of mine", "is in the way"),
    ):
        record.write_bytes(data)
        with pytest.raises(errors.OutputError, match=words):
            quantkit.edit(file, set_kv=[f"{EOS}=5"], in_place=True)
        assert sha256(file) == before
        assert record.read_bytes() == data


def test_one_edit_at_a_time(file: Path) -> None:
    with in_place.opened(file), pytest.raises(errors.OutputInUse, match="another run edits it"):
        quantkit.edit(file, set_kv=[f"{EOS}=5"], in_place=True)


def test_sums_of_a_release_follow(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """In place, and by a file of another layout written over the one that is listed; then the
    release keeps what was edited."""
    told = Told()
    source, out = checkpoint("mixtral-4x"), tmp_path / "out"
    quantkit.release(source, out, ["Q8_0", "Q4_0"])
    q8, q4 = (next(out.glob(f"*-{kind}.gguf")) for kind in ("Q8_0", "Q4_0"))
    quantkit.edit(q8, set_kv=[f"{EOS}=1"], in_place=True, progress=told)
    quantkit.edit(q4, tmp_path, set_kv=["general.description=str:" + 99 * "long "])
    quantkit.edit(tmp_path / q4.name, q4, set_kv=["general.name=Other"], force=True, progress=told)
    assert [note.split(" have the new sums of ")[1].split(";")[0] for note in told.notes] == [
        q8.name, q4.name,
    ]  # fmt: skip
    edited = {file: sha256(file) for file in (q8, q4)}
    for file in edited:
        assert quantkit.verify(file).good
    sums = (out / "SHA256SUMS").read_text().split()
    assert set(edited.values()) <= set(sums)
    again = quantkit.release(source, out, ["Q8_0", "Q4_0"])
    assert {file: sha256(file) for file in edited} == edited
    assert set(again.states.values()) == {"kept"}


def test_other_layouts_are_not_edited_in_place(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    convert(checkpoint("mixtral-4x"), file)
    with open(file, "ab") as f:
        f.write(b"more")
    with pytest.raises(errors.OutputError, match="do not lie as they are written today"):
        quantkit.edit(file, set_kv=[f"{EOS}=1"], in_place=True)
