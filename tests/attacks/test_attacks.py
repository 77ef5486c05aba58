"""Small files of a stranger's, each of which once ran code, hung, took all memory or ended in a
traceback. The numbers are those of the kinds in docs/security.md."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quant_types import isolated, kernels
from quantkit import errors, plain_text
from quantkit.gguf import tensor_names
from quantkit.gguf.container import MAX_ITEMS, read_header
from quantkit.recipes.choose import choose
from quantkit.recipes.facts import ModelFacts
from quantkit.recipes.file_types import find_recipe
from quantkit.source.safetensors import read_entries
from quantkit.source.torch_zip import read_torch_entries
from quantkit.storage import child, os_files
from quantkit.storage.parse import parse_json, parse_yaml
from quantkit.tokenizer import tiktoken, trial
from quantkit.tokenizer.chat_template import read_turns
from tests.attacks import small
from tests.attacks.small import ARCH, gguf, number, pickled, text

ROOT = Path(__file__).parents[2]
Make = Callable[[str], Path]


# 1, 2: code of others


def test_a_child_takes_no_module_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "runpy.py", "jinja2.py", "numpy.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(tmp_path)])
    assert read_turns("{% for m in messages %}{{ m.content }}{% endfor %}", {}) is not None
    assert not (tmp_path / "ran").exists()
    assert str(tmp_path) not in " ".join(isolated.command("x"))


def test_no_process_is_begun_by_module_name() -> None:
    """`-m` alone puts the current directory before the standard library."""
    for package in ("quantkit", "quant_types"):
        for path in (ROOT / package).rglob("*.py"):
            assert 'sys.executable, "-m"' not in path.read_text(), path


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners are of POSIX")
@pytest.mark.parametrize("how", ["writable", "link", "not ours"])
def test_a_kernel_cache_of_others_is_not_used(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path))
    find = kernels.cache_dir.__wrapped__
    folder = find()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    if how == "writable":
        folder.chmod(0o777)
    elif how == "link":
        folder.rmdir()
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert find().parent != tmp_path
    assert "is not used" in capsys.readouterr().err


def test_a_kernel_that_others_may_write_is_not_loaded(tmp_path: Path) -> None:
    kernels.keep(tmp_path / "a.kernel", b"code")
    assert kernels._kept(tmp_path / "a.kernel") == b"code"
    (tmp_path / "link.kernel").symlink_to(tmp_path / "a.kernel")
    assert kernels._kept(tmp_path / "link.kernel") is None
    (tmp_path / "a.kernel").chmod(0o666)
    assert kernels._kept(tmp_path / "a.kernel") is None


# 3: pickles


@pytest.mark.parametrize(
    "pickle",
    [
        b"\x80\x02})" + b"\x85" * 2_000_000 + b"Ns.",  # deep
        b"\x80\x02Nr\xff\xff\xff\x07.",  # a memo of a hundred million
        b"\x80\x02}" + b"N0" * 3_000_000 + b".",  # many
        b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.",  # code
        b"\x80\x02(((.", b"\x80\x02}(u.", b"\x80\x02}.}.}.", b"", b"\x80\x02R.", b"\x80\x02]]s.",
    ],
)  # fmt: skip
def test_pickles(pickle: bytes, tmp_path: Path) -> None:
    began = time.process_time()
    with contextlib.suppress(errors.CorruptFile):
        assert read_torch_entries(pickled(tmp_path / "m.bin", pickle)) == []
    assert time.process_time() - began < 10


def test_records_are_bounded(tmp_path: Path) -> None:
    path = pickled(tmp_path / "m.bin", b"\x80\x02}.", byteorder=b" " * 10_000_000)
    with pytest.raises(errors.CorruptFile, match="10000000 bytes"):
        read_torch_entries(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"data.pkl") + 8
    data[at] ^= 255
    path.write_bytes(data)
    with pytest.raises(errors.CorruptFile):
        read_torch_entries(path)


# 4: counts


def test_axes(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**64 - 1] * 200_000, "data_offsets": [0, 0]}
    head = json.dumps({"a": entry}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(errors.CorruptFile, match="200000 axes"):
        read_entries(path)


@pytest.mark.parametrize(
    "value",
    [
        b"\x09\0\0\0\x00\0\0\0" + (MAX_ITEMS + 1).to_bytes(8, "little"),
        b"\x09\0\0\0\x00\0\0\0" + (2**63).to_bytes(8, "little"),
        b"\x09\0\0\0\x08\0\0\0" + (MAX_ITEMS).to_bytes(8, "little"),
        b"\x08\0\0\0" + (2**63).to_bytes(8, "little"),
    ],
)
def test_a_count_larger_than_the_file(value: bytes, tmp_path: Path) -> None:
    with pytest.raises(errors.CorruptFile):
        read_header(gguf(tmp_path / "a.gguf", [ARCH, (b"x", value)]))


@pytest.mark.parametrize("key", ["block_count", "context_length", "embedding_length", "vocab_size"])
def test_a_list_for_one_number(key: str, tmp_path: Path) -> None:
    several = b"\x09\0\0\0\x04\0\0\0" + (2).to_bytes(8, "little") + bytes([8, 0, 0, 0] * 2)
    kv = [(b"general.architecture", text(b"llama")), (f"llama.{key}".encode(), several)]
    for look in quantkit.inspect, quantkit.report:
        with pytest.raises(errors.CorruptFile, match=f"{key} is a list of uint32, not one number"):
            look(gguf(tmp_path / "a.gguf", kv))


def test_more_tensors_than_there_is_room_for(tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    data = bytearray(path.read_bytes())
    data[8:16] = (1 << 23).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(errors.CorruptFile, match=r"cannot be right.*truncated or damaged"):
        read_header(path)


@pytest.mark.parametrize(
    ("kv", "name"),
    [
        ([ARCH], b"blk.0.ffn_up.99999999999.weight"),
        ([ARCH], b"blk." + b"1" * 5000 + b".x"),
        ([ARCH], b"blk.4294967295.attn_k.weight"),
        ([(b"general.architecture", text(b"gemma2")), (b"gemma2.block_count", number(2**32 - 1)),
          (b"gemma2.attention.sliding_window", number(9))], b"a"),
        ([ARCH, (b"general.base_model.count", number(2**32 - 1))], b"a"),
    ],
)  # fmt: skip
def test_numbers_that_are_loops(kv: list[small.Entry], name: bytes, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf", kv, name)
    began = time.process_time()
    for look in quantkit.inspect, quantkit.report:
        try:
            look(path)
        except errors.QuantkitError:
            continue
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 2**32 - 1}, {"num_hidden_layers": 90_000}, {"head_dim": [8]},
     {"rope_scaling": {"type": [1]}}, {"rope_scaling": {"factor": {"a": {"b": 1}}}},
     {"num_hidden_layers": [1]}, {"vocab_size": "many"}],
)  # fmt: skip
def test_configs(changes: Mapping[str, Any], checkpoint: Make, tmp_path: Path) -> None:
    source = small.with_config(checkpoint("mixtral-4x"), tmp_path / "c", **changes)
    with pytest.raises(errors.ModelError):
        quantkit.convert(source, tmp_path / "out.gguf", dry_run=True)


# 5: templates


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ '%2000000000d' % 1 }}",
        "{{ lipsum(n=100000) }}",
        "{{ messages[0].content }}\ud800",
        "{" * 100_000,
    ],
)
def test_templates_end(template: str) -> None:
    began = time.monotonic()
    assert read_turns(template, {}) is None
    assert time.monotonic() - began < 30


# 6: YAML and JSON


@pytest.mark.parametrize(
    "document",
    [small.alias_bomb(), "a: &a [*a]", "x: 2024-13-45", "[" * 5000, "? {a: b}\n: c\n? [x]\n: y",
     "a: !!python/object/apply:os.system [id]", "n: " + "1" * 5000, "x" * (1 << 21), "\x00",
     "a: !!int x", "a: !!timestamp x", "a: !!binary é", "<<: 1"],
    ids=range(13),
)  # fmt: skip
def test_yaml(document: str) -> None:
    began = time.process_time()
    with contextlib.suppress(errors.CorruptFile):
        parse_yaml(document, "f")
    assert time.process_time() - began < 5


def test_yaml_that_people_write() -> None:
    assert parse_yaml("b: &x {a: 1}\nc: [*x, *x]", "f") == {"b": {"a": 1}, "c": [{"a": 1}] * 2}
    with pytest.raises(errors.CorruptFile, match="100000 values"):
        parse_yaml(small.alias_bomb(), "f")


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' + b"1" * 5000 + b"}", b"\xff", b"{"])
def test_json(data: bytes) -> None:
    with pytest.raises(errors.CorruptFile):
        parse_json(data, "f")


@pytest.mark.parametrize("front", [small.alias_bomb() + "tags: *i\n", "date: 2024-13-45\n"])
def test_a_card(front: str, checkpoint: Make, tmp_path: Path) -> None:
    source = small.checkpoint(
        checkpoint("mixtral-4x"), tmp_path / "c", "README.md", f"---\n{front}---\n"
    )
    with pytest.raises(errors.CorruptFile, match="README"):
        quantkit.convert(source, tmp_path / "out.gguf", dry_run=True)


# 7: tokenizers


def test_what_is_known_of_tokenizers() -> None:
    doubling = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    exploding = {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated"}
    assert trial.is_known_to_end({"normalizer": {"type": "NFC"}, "pre_tokenizer": None})
    assert not trial.is_known_to_end({"normalizer": doubling})
    assert not trial.is_known_to_end({"pre_tokenizer": exploding})
    inside = {"type": "Sequence", "pretokenizers": [exploding]}
    assert not trial.is_known_to_end({"pre_tokenizer": inside})
    assert not trial.is_known_to_end({"normalizer": [1]})


def test_a_child_is_ended_at_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    question = {"template": loop, "tokens": {}}
    with pytest.raises(child.ChildFailed):
        child.ask("quantkit.tokenizer.chat_template", question, seconds=2)


def test_a_long_word_in_ranks() -> None:
    import base64

    line = base64.b64encode(b"a" * 100_000) + b" 5\n"
    with pytest.raises(errors.TokenizerError, match="line 1"):
        tiktoken._read_ranks(line, "f")


# 8: planning is linear


def test_many_tensors_are_planned_in_linear_time() -> None:
    facts = ModelFacts("llama", 20_000, 0, 8, 8, tied=False)
    tensors = [(f"blk.{i}.attn_v.weight", (2, 256), "F16") for i in range(20_000)]
    began = time.process_time()
    assert len(choose(find_recipe("Q4_K_M"), facts, tensors)) == 20_000
    assert time.process_time() - began < 5  # it was 30 s


# 12: kinds of values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"split.count", text(b"5")),
        (b"llama.context_length", text(b"x")),
        (b"llama.block_count", b"\x06\0\0\0\0\0\xc0\x7f"),  # NaN
        (b"llama.block_count", b"\x09\0\0\0\x04\0\0\0" + bytes(8)),  # []
        (b"tokenizer.ggml.tokens", number(1)),
        (b"tokenizer.ggml.scores", number(1)),
        (b"tokenizer.ggml.merges", number(2)),
        (b"tokenizer.chat_template", number(1)),
        (b"general.name", number(1)),
        (b"general.tags", text(b"x")),
        (b"general.file_type", text(b"x")),
    ],
)  # fmt: skip
def test_kinds(key: bytes, value: bytes, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf", [ARCH, (key, value)])
    for look in quantkit.inspect, lambda p: quantkit.report([p]):
        with pytest.raises(errors.CorruptFile, match=key.decode()):
            look(path)


@pytest.mark.parametrize("name", [b"", b"a\nb", b"\x1b]0;x\x07"])
def test_names(name: bytes, tmp_path: Path) -> None:
    with pytest.raises(errors.CorruptFile) as caught:
        read_header(gguf(tmp_path / "a.gguf", [ARCH], name))
    assert str(caught.value).isprintable()


def test_every_text_is_a_name() -> None:
    assert tensor_names.parse("") == ("", None, "")
    assert tensor_names.parse("a\nb.weight").role == "a\nb"
    assert tensor_names.parse("blk.9999999.x").bid is None


# 13: what is shown


def test_errors_are_one_line() -> None:
    error = errors.CorruptFile("a\nerror: b\x1b]0;c\x07 \u202ed " + "x" * 100_000)
    assert str(error).isprintable()
    assert len(str(error)) <= plain_text.LONGEST + 100
    assert str(errors.UsageError("Größe, 今日 👩‍💻")) == "Größe, 今日 👩‍💻"


def test_texts_keep_their_lines_and_their_json() -> None:
    shown = plain_text.lines('{"a": "\u202eb\U000e0041"}\n\tc\r\x9b')
    assert shown.isascii()
    first, second = shown.split("\n")
    assert json.loads(first) == {"a": "\u202eb\U000e0041"}
    assert second == "\tc\\r\\u009b"


# 14: small


def test_links_are_not_written_through(checkpoint: Make, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for ending in ("partial", "journal"):
        (tmp_path / f"out.gguf.{ending}").symlink_to(victim)
        with pytest.raises(errors.OutputError):
            quantkit.convert(checkpoint("mixtral-4x"), tmp_path / "out.gguf", force=True)
        assert victim.read_text() == "mine"
        (tmp_path / f"out.gguf.{ending}").unlink(missing_ok=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are of POSIX")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    with pytest.raises(OSError, match="a pipe"):
        os_files.open_read(tmp_path / "a.gguf")


def test_closed_streams(tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf", [ARCH], b"a\nb")
    program = "from quantkit.cli import main; main()"
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{program}" report a.gguf 2>&-'],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("journal", ["[]\n", "null\n", "[" * 100_000 + "\n", '{"plan": 1}\n'])
def test_journals(journal: str, checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "out.gguf.journal").write_text(journal)
    try:
        quantkit.convert(checkpoint("mixtral-4x"), tmp_path / "out.gguf")
    except errors.JournalMismatch:
        return
    assert read_header(tmp_path / "out.gguf").tensors
