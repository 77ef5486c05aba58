"""The command, and files that run in llama.cpp."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantkit.cli import app
from quantkit.errors import LlamaMissing
from quantkit.gguf.container import header_bytes, read_header
from quantkit.verification import tokenization
from quantkit.verification.verdict import MatrixErrors, TensorErrors, Verdict
from quantkit.verification.verify import verify
from tests.checkpoints import DATA
from tests.verification.damage import rewritten, swap, without

run = CliRunner().invoke


def test_the_command(
    files: dict[str, Path], source: Path, tmp_path: Path, frankenmoe_golden: dict[str, Any]
) -> None:
    file = str(files["Q4_K_M"])
    expected = frankenmoe_golden["quantize"]["Q4_K_M"]
    asked = ["--run", "--prompt", expected["completions"][0]["prompt"]]
    text = tmp_path / "text.txt"
    text.write_bytes((DATA / "text" / "held-prose.txt").read_bytes()[:6000])
    drawn = tmp_path / "errors.svg"
    arguments = ["verify", file, "--against", str(source), "--kl", str(text), "--ctx", "128"]
    result = run(app, [*arguments, *asked, "--json", "--picture", str(drawn)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["verdict"] == "good"
    assert told["run"]["text"].startswith(expected["completions"][0]["text"])
    (kl,) = told["kl"]
    assert 0.002 < kl["kl"] < 0.008
    assert drawn.read_text().startswith("<svg")
    assert all(row in drawn.read_text() for row in ("attn_q", "ffn_up_exps 0", "ffn_up_exps 3"))
    assert [p.name for p in files["Q4_K_M"].parent.glob(".quantkit*")] == []
    lines = run(app, arguments).stdout.splitlines()
    assert lines[0].startswith("good: frankenmoe-4x-Q4_K_M.gguf: the structure of 33 tensors")
    assert any(line.startswith("text.txt") and f"{kl['kl']:.6f}" in line for line in lines)
    table = lines.index("Tensor" + lines[-11].removeprefix("Tensor"))
    assert lines[table].split() == [
        "Tensor",
        "Format",
        "Error",
        "Expected",
        "Cosine",
        "Worst",
        "block",
        "Bytes",
    ]
    errors = [float(line.split()[2]) for line in lines[table + 1 :]]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 10


def test_divergence_from_another_file(files: dict[str, Path], tmp_path: Path) -> None:
    """That it is no copy of it is found, and how far it is from it is told all the same."""
    text = tmp_path / "text.txt"
    text.write_bytes((DATA / "text" / "held-c.txt").read_bytes()[:3000])
    file, other = str(files["Q4_K_M"]), str(files["Q2_K"])
    result = run(app, ["verify", file, "--against", other, "--kl", str(text), "--json"])
    told = json.loads(result.stdout)
    assert told["verdict"] == "bad"
    assert told["sound"]
    assert 0.05 < told["kl"][0]["kl"] < 0.2
    path = rewritten(files["Q4_K_M"], tmp_path / "bad.gguf", kv=without("tokenizer.ggml.scores"))
    result = run(app, ["verify", str(path), "--against", other, "--kl", str(text), "--json"])
    told = json.loads(result.stdout)
    assert not told["sound"]
    assert "kl" not in told


def test_what_llama_cpp_does_not_run_is_bad(files: dict[str, Path], tmp_path: Path) -> None:
    header, bad = read_header(files["Q2_K"]), tmp_path / "bad.gguf"
    data = files["Q2_K"].read_bytes()[header.data_offset :]
    shapes = {"blk.0.ffn_norm.weight": (2, 128)}  # which it alone knows
    infos = [replace(t, shape=shapes.get(t.name, t.shape)) for t in header.tensors]
    bad.write_bytes(header_bytes(header.kv, infos) + data)
    for more in (), ("--run",):
        result = run(app, ["verify", str(bad), *more])
        assert result.exit_code == 1
        assert result.stdout.startswith("bad: bad.gguf: 1 finding\n")
        assert "llama.cpp does not load it" in result.stdout
        assert "blk.0.ffn_norm.weight" in result.stdout


def test_the_command_says_what_is_bad(files: dict[str, Path], source: Path, tmp_path: Path) -> None:
    bad = rewritten(files["Q2_K"], tmp_path / "bad.gguf", swap("blk.0.ffn_up_exps.weight", 0, 1))
    result = run(app, ["verify", str(bad), "--against", str(source)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "bad: bad.gguf: 1 finding",
        "  experts 0 and 1 are swapped in blk.0.ffn_up_exps.weight",
    ]
    assert lines[4].split()[:2] == ["blk.0.ffn_up_exps.weight", "Q2_K"]
    missing = run(app, ["verify", str(bad), "--kl", "x.txt"])
    assert missing.exit_code == 2
    missing = run(app, ["verify", str(tmp_path / "none.gguf")])
    assert missing.exit_code == 1
    assert "no such file" in str(missing.exception)


def test_without_llama_cpp(
    files: dict[str, Path], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.llama import llama_cpp

    llama_cpp.library.cache_clear()
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    found = verify(files["Q2_K"], source)
    assert found.good
    assert found.notes == [
        "llama.cpp was not asked whether it loads the file: llama.cpp is not installed; "
        "pip install 'quantkit-gguf[llama]'",
        "texts were not split in llama.cpp: llama.cpp is not installed; "
        "pip install 'quantkit-gguf[llama]'",
    ]
    result = run(app, ["verify", str(files["Q2_K"]), "--run"])
    assert isinstance(result.exception, LlamaMissing)
    monkeypatch.undo()
    llama_cpp.library.cache_clear()


def test_a_tokenizer_that_its_library_does_not_read(
    files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    other = tmp_path / source.name
    shutil.copytree(source, other)
    text = (other / "tokenizer.json").read_text()
    assert '"single_word"' in text
    (other / "tokenizer.json").write_text(text.replace('"single_word"', '"single"'))
    found = verify(files["Q2_K"], other)
    assert found.good
    assert len(found.notes) == 1
    assert "texts were not split in llama.cpp" in found.notes[0]
    assert "missing field `single_word`" in found.notes[0]


def test_the_reference_is_the_checkpoint_s_own(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        (frankenmoe["classic"] / "tokenizer.model").read_bytes()
    )
    by_model, by_json = (tokenization.reference(d) for d in (tmp_path, frankenmoe["mergekit"]))
    assert by_model is not None
    assert by_json is not None
    assert by_json.added == {0: "<unk>", 1: "<s>", 2: "</s>"}
    assert tokenization.differences(by_json.tokenize, by_model, 2048) == []
    assert tokenization.reference(tmp_path / "nothing") is None


def test_a_table_in_a_notebook() -> None:
    errors = MatrixErrors(0.5, None, None, 0.9, 1.0, False)
    tensor = TensorErrors("<b>t</b>", "Q8_0", (2, 32), errors)
    bad = Verdict("m.gguf", ["<script>alert(1)</script>"], ["a & b"], tensors=[tensor])
    text = bad._repr_html_()
    assert text.startswith("<p>bad: m.gguf: 1 finding</p>\n<ul><li>&lt;script&gt;alert(1)")
    assert "<li>note: a &amp; b</li>" in text
    assert "<td>&lt;b&gt;t&lt;/b&gt;</td><td>Q8_0</td><td>0.5000</td><td>?</td>" in text
    assert "<script" not in text
    assert Verdict("<i>.gguf", proven=["a"])._repr_html_() == "<p>good: &lt;i&gt;.gguf: a</p>"
