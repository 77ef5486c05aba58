"""Matrices made in the real llama.cpp: as llama-imatrix makes them, killed, widened, refused."""

from __future__ import annotations

import lzma
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import api, jobs
from quantkit.calibration import measure as measuring
from quantkit.calibration import own_text
from quantkit.calibration.measure import Measured, Options, measure
from quantkit.calibration.run import PREFIX
from quantkit.calibration.statistics import routing
from quantkit.calibration.sums import read_sums
from quantkit.errors import (
    CorruptFile,
    DiskFull,
    ImatrixError,
    JournalMismatch,
    LlamaError,
    LlamaMissing,
    OutputError,
    OutputExists,
    OutputInUse,
    SourceNotFound,
    UnsupportedSource,
    UsageError,
)
from quantkit.gguf.container import read_header
from quantkit.jobs import convert, quantize
from quantkit.llama import llama_cpp
from quantkit.model.open import Reading
from quantkit.progress import Progress
from quantkit.releases import importance
from quantkit.source.gguf_set import open_gguf_set
from quantkit.storage import os_files
from tests.calibration.test_sums import GOLDEN
from tests.checkpoints import DATA
from tests.conftest import sha256

Get = Callable[[str], Path]
TEXT = DATA / "text" / "held-python.txt"
SHORT = Options(context=128, chunks=12)
ROOT = Path(__file__).parents[2]


class Told(Progress):
    def __init__(self) -> None:
        self.counts: list[tuple[str, int, int, str]] = []

    def count(self, step: str, done: int, total: int, told: str = "") -> None:
        self.counts.append((step, done, total, told))


@pytest.fixture(scope="session")
def model(checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "qwen3moe.gguf"
    convert(checkpoint("qwen3moe"), path, "bf16")
    return path


@pytest.fixture(scope="session")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    out = tmp_path_factory.mktemp("matrix") / "m.gguf"
    return measure(model, [TEXT], out, SHORT, names=[TEXT.name], threads=1)


def test_it_is_llama_imatrix_s(whole: Measured, tmp_path: Path) -> None:
    """Another build of llama.cpp rounds otherwise, and a token may go to another expert."""
    golden = tmp_path / "golden.gguf"
    golden.write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    expected, found = read_sums(golden), read_sums(whole.path)
    keys = [(i.key, i.value) for i in read_header(whole.path).kv]
    assert keys == [(i.key, i.value) for i in read_header(golden).kv]
    assert whole.perplexity == pytest.approx(720.2031, rel=1e-3)
    assert found.entries.keys() == expected.entries.keys()
    for name, e in expected.entries.items():
        own = found.entries[name]
        assert np.abs(own.counts - e.counts).sum() <= 8, name
        rows, wanted = (x.squares.reshape(x.counts.size, -1) for x in (own, e))
        same = own.counts == e.counts
        np.testing.assert_allclose(rows[same], wanted[same], rtol=0.02)
        np.testing.assert_allclose(rows.sum(), wanted.sum(), rtol=1e-3)


def test_threads_and_batches_change_nothing_that_counts(
    model: Path, whole: Measured, tmp_path: Path
) -> None:
    again = measure(model, [TEXT], tmp_path / "b.gguf", SHORT, names=[TEXT.name], threads=2)
    assert sha256(again.path) == sha256(whole.path)
    together = replace(SHORT, at_once=12)
    wide = read_sums(measure(model, [TEXT], tmp_path / "c.gguf", together, threads=1).path)
    for name, e in read_sums(whole.path).entries.items():
        np.testing.assert_allclose(wide.entries[name].squares.sum(), e.squares.sum(), rtol=1e-3)


def test_as_many_chunks_at_once_as_memory_allows(model: Path) -> None:
    """Of a model that is there whole, llama-imatrix's; of a larger one, more with more memory."""
    tensors = [
        replace(t, shape=(t.shape[0] * 10_000, *t.shape[1:])) if "exps" in t.name else t
        for t in open_gguf_set(model)[1]
    ]
    with pytest.MonkeyPatch.context() as patch:
        header = open_gguf_set(model)[0]
        patch.setattr(importance, "open_gguf_set", lambda path: (header, tensors))
        sizes = (5.6, 5.8, 6.5, 40)
        found = [importance.chunks_at_once(model, 512, int(most * 1e9)) for most in sizes]
        with pytest.raises(
            UsageError, match=r"--memory 200MB is too little: a chunk of 512 tokens"
        ):
            importance.chunks_at_once(model, 512, 200_000_000)
    assert found[-1] == 0
    assert 0 < found[0] < found[1] < found[2] <= importance.MOST


def test_it_tells_how_far_it_is(model: Path, tmp_path: Path) -> None:
    told = Told()
    measure(model, [TEXT], tmp_path / "m.gguf", replace(SHORT, chunks=32), progress=told, threads=1)
    steps = [(step, done, total) for step, done, total, _ in told.counts]
    assert steps == [("chunks", 16, 32), ("chunks", 32, 32)]
    assert all(words.startswith("perplexity ") for *_, words in told.counts)


def test_options_are_llama_imatrix_s(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.dat"
    options = Options(context=128, chunks=16, first=2, outputs=True, dat=True, copies=16)
    made = measure(model, [TEXT, TEXT], out, replace(options, perplexity=False), threads=1)
    assert made.perplexity is None
    sums = read_sums(out)
    assert sums.is_dat
    assert sums.chunks == 16
    assert "output.weight" in sums.entries or "token_embd.weight" in sums.entries
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.dat", "m.dat.at_16"]
    assert (tmp_path / "m.dat.at_16").read_bytes() == out.read_bytes()


def test_a_checkpoint_goes_by_way_of_a_file(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("qwen3moe")
    quantize(source, ["Q8_0"], tmp_path / "q8.gguf")
    options = replace(SHORT, chunks=4)
    made = api.imatrix(source, TEXT, tmp_path / "a.gguf", options=options, threads=1)
    other = api.imatrix(tmp_path / "q8.gguf", TEXT, tmp_path / "b.gguf", options=options, threads=1)
    assert sha256(made.path) == sha256(other.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "q8.gguf"]


def command(model: Path, out: Path) -> list[str]:
    args = [
        "imatrix",
        str(model),
        "-f",
        str(TEXT),
        "-o",
        str(out),
        "--ctx",
        "128",
        "--threads",
        "1",
    ]
    return [sys.executable, "-m", "quantkit.cli", *args, "--chunks", "96", "--json"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is nothing as hard to stop with")
def test_killed_runs_go_on_to_the_same_matrix(model: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected.gguf"
    subprocess.run(command(model, expected), check=True, cwd=ROOT, capture_output=True)
    out = tmp_path / "m.gguf"
    state, seen = out.with_name("m.gguf.partial"), -1
    for _ in range(3):
        run = subprocess.Popen(
            command(model, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while run.poll() is None and stamp(state) == seen:
            time.sleep(0.005)
        run.kill()
        run.wait()
        seen = stamp(state)
    subprocess.run(command(model, out), check=True, cwd=ROOT, capture_output=True)
    assert out.read_bytes() == expected.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"expected.gguf", "m.gguf"}


def stamp(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return -1


def test_another_run_s_beginning_is_not_gone_on_with(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    state = tmp_path / "m.gguf.partial"
    measure(model, [TEXT], out, SHORT, threads=1)
    kept = kept_state(model, out, state)
    with pytest.raises(JournalMismatch, match=r"m\.gguf\.partial was begun with another model"):
        measure(model, [TEXT], out, replace(SHORT, chunks=16), threads=1)
    assert state.read_bytes() == kept
    with pytest.raises(JournalMismatch):
        measure(model, [DATA / "text" / "held-c.txt"], out, SHORT, threads=1)
    measure(model, [TEXT], out, replace(SHORT, chunks=16), threads=1, force=True)
    assert read_sums(out).chunks == 16
    assert not state.exists()
    with pytest.raises(OutputExists, match=r"m\.gguf exists"):
        measure(model, [TEXT], out, SHORT, threads=1)


def kept_state(model: Path, out: Path, state: Path) -> bytes:
    """What SHORT's run keeps when it is done but has not put its matrix in place."""
    from quantkit.calibration import run

    task = task_of(model, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write", failing)
        with pytest.raises(OSError, match="no room"):
            list(run.run(task))
    return state.read_bytes()


def failing(*_: Any) -> None:
    raise OSError(28, "no room")


def task_of(model: Path, out: Path) -> Any:
    """The task that SHORT is."""
    from quantkit.calibration import measure as module

    found: list[Any] = []

    def caught(task: Any, progress: Progress) -> dict[str, Any]:
        found.append(task)
        return {"perplexity": None, "came": [], "reached": []}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_carried_out", caught)
        measure(model, [TEXT], out, SHORT, threads=1, force=True)
    return found[0]


def test_no_two_runs_make_the_same_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    held = os_files.open_locked(tmp_path / ".m.gguf.partial.lock")
    with pytest.raises(OutputInUse, match="being made by another run"):
        measure(model, [TEXT], out, SHORT, threads=1)
    os.close(held)


def test_every_expert_is_reached(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text(TEXT.read_text()[:900])
    few = Options(context=32, chunks=1)
    plain = measure(model, [text], tmp_path / "a.gguf", few, threads=1)
    least = min(int(r.tokens.min()) for r in routing(read_sums(plain.path).entries).values())
    assert not [k for k in read_header(plain.path).kv if k.key.startswith(PREFIX)]
    more = replace(few, least=least + 40)
    further = measure(model, [text], tmp_path / "b.gguf", more, threads=1)
    assert further.further == ((0, further.further[0][1]),)  # more of the text was enough
    assert not further.reached
    wide = measure(model, [text], tmp_path / "c.gguf", replace(few, least=600), threads=1)
    assert wide.further[-1][0] == 4  # all of the experts see every token
    assert wide.reached
    for made, wanted in ((further, more.least), (wide, 600)):
        sums = read_sums(made.path)
        assert all(r.tokens.min() >= wanted for r in routing(sums.entries).values())
        notes = {i.key: i.value for i in sums.notes}
        assert notes[f"{PREFIX}min_tokens"] == wanted
        assert notes[f"{PREFIX}widened"] == list(made.reached)
    dense = "blk.0.attn_q.weight"  # is not looked at with another routing
    assert read_sums(wide.path).entries[dense].counts[0] <= 900


def test_what_a_model_writes_itself(model: Path, tmp_path: Path) -> None:
    texts = own_text.write(model, tmp_path, 20, 33, ["", "def "], threads=1)
    assert [p.name for p in texts] == ["own-0.txt", "own-1.txt"]
    first = [p.read_bytes() for p in texts]
    texts[1].unlink()
    own_text.write(model, tmp_path, 20, 33, ["", "def "], threads=1)
    assert [p.read_bytes() for p in texts] == first  # and the same again
    assert first[0].decode().split("\n")[1].startswith("def ") or b"def " in first[0]
    made = measure(model, texts, tmp_path / "m.gguf", Options(context=32), threads=1)
    assert read_sums(made.path).chunks > 2


def test_a_gguf_file_is_read_as_it_is(model: Path, whole: Measured, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    for asked in ({"with_type": "Q4_0"}, {"reading": Reading(keep_experts=(0, 1))}):
        with pytest.raises(UsageError, match=r"qwen3moe\.gguf: a GGUF file is read as it is; "):
            api.imatrix(model, TEXT, out, options=SHORT, **asked)
    with pytest.raises(UnsupportedSource, match="is an importance matrix already; give a model"):
        api.imatrix(whole.path, TEXT, out)
    assert list(tmp_path.iterdir()) == []


def test_without_a_text_the_model_writes_one(model: Path, tmp_path: Path) -> None:
    made = api.imatrix(model, [], tmp_path / "m.gguf", options=Options(context=32), threads=1)
    sums = read_sums(made.path)
    assert set(sums.datasets) == {"text of its own"}
    assert sums.chunks > 64  # of the 128 that were written; what they are split into is less
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    with pytest.raises(OutputExists, match=r"m\.gguf exists"):
        api.imatrix(model, [], made.path, threads=1)
    options = Options(context=32)
    same = api.imatrix(model, ["self"], tmp_path / "n.gguf", options=options, threads=1)
    assert sha256(same.path) == sha256(made.path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty text"),
        (b" \n", "an empty text"),
        (b"abc \xff def", "not UTF-8: byte 0xff at 4"),
        (b"a few words", "tokens; a chunk is 128: give more text, or a smaller --ctx"),
    ],
)
def test_texts_that_are_none(model: Path, tmp_path: Path, data: bytes, message: str) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(data)
    with pytest.raises(ImatrixError, match=rf"text\.txt: .*{message}"):
        measure(model, [text], tmp_path / "m.gguf", SHORT, threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_a_short_text_is_found_before_a_model_is_made(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "carry_out", None)
    text = tmp_path / "text.txt"
    text.write_text("a few words")
    short = r"text\.txt: \d+ tokens; a chunk is 512"
    with pytest.raises(ImatrixError, match=short):
        api.imatrix(checkpoint("qwen3moe"), text, tmp_path / "m.gguf")
    with pytest.raises(ImatrixError, match=short):
        api.quantize(checkpoint("qwen3moe"), "Q4_0", tmp_path, imatrix="auto", calibration=[text])
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_what_else_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.gguf"
    with pytest.raises(SourceNotFound, match=r"none\.txt: cannot be read"):
        measure(model, [tmp_path / "none.txt"], out)
    with pytest.raises(ImatrixError, match="--from-chunk leaves none"):
        measure(model, [TEXT], out, replace(SHORT, first=10**6), threads=1)
    data = model.read_bytes()
    (tmp_path / "model.gguf").write_bytes(data[:-1000])
    with pytest.raises(CorruptFile, match="it is truncated"):
        measure(tmp_path / "model.gguf", [TEXT], out, SHORT, threads=1)
    (tmp_path / "model.gguf").write_bytes(data.replace(b"qwen3moe", b"qwen3mop", 1))
    with pytest.raises(LlamaError, match=r"model\.gguf: llama\.cpp does not load it"):
        measure(tmp_path / "model.gguf", [TEXT], out, SHORT, threads=1)
    llama_cpp.library.cache_clear()
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(LlamaMissing, match=r"pip install 'quantkit-gguf\[llama\]'"):
        measure(model, [TEXT], out)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_a_run_that_is_stopped_leaves_no_lock(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / ".m.gguf.partial.lock"

    def stopped(*_: Any) -> Any:
        lock.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring.apart, "tell", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(model, [TEXT], tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
    held = os_files.open_locked(lock)  # another run's
    with pytest.raises(KeyboardInterrupt):
        measure(model, [TEXT], tmp_path / "m.gguf")
    assert lock.exists()
    os.close(held)


def test_a_full_disk_is_told_before_the_text_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os_files, "free_bytes", lambda directory: 1000)
    monkeypatch.setattr(measuring, "_carried_out", lambda *_: pytest.fail("it is begun"))
    with pytest.raises(DiskFull, match=r"bytes needed, 1,000 free; make room"):
        measure(model, [TEXT], tmp_path / "m.gguf")
    with pytest.raises(OutputError, match="give a shorter one"):
        measure(model, [TEXT], tmp_path / f"{'m' * 245}.gguf")


def test_activations_that_are_no_numbers_are_named(model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    data = bytearray(model.read_bytes())
    header = read_header(model)
    norm = next(t for t in header.tensors if t.name == "blk.1.ffn_norm.weight")
    at = header.data_offset + norm.offset
    data[at : at + 4] = np.float32(np.nan).tobytes()
    bad.write_bytes(data)
    with pytest.raises(LlamaError, match=r"^chunk 1 of the text: blk\.1\.ffn_\S+: activations"):
        measure(bad, [TEXT], tmp_path / "m.gguf", SHORT, threads=1)


def test_a_release_makes_and_ships_its_matrix(checkpoint: Get, tmp_path: Path) -> None:
    source, out = checkpoint("qwen3moe"), tmp_path / "out"
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:8000])
    options: dict[str, Any] = {"imatrix": "auto", "calibration": [text], "threads": 1}
    with pytest.raises(UsageError, match="run without --dry-run"):
        api.release(source, out, ["IQ2_XXS"], dry_run=True, **options)
    made = api.release(source, out, ["IQ2_XXS", "Q4_K_M"], **options)
    matrix = made.manifest.imatrix
    assert matrix is not None
    assert matrix.datasets == ("text.txt",)
    assert (matrix.experts, matrix.unreached) == (8, 0)
    assert f"{matrix.sha256}  {matrix.name}\n" in (out / "SHA256SUMS").read_text()
    assert sha256(out / matrix.name) == matrix.sha256
    card = (out / "README.md").read_text()
    assert f"| Importance matrix | [{matrix.name}](./{matrix.name}) |" in card
    assert f"| Its data | text.txt, {matrix.chunks} chunks |" in card
    assert "tensors; all of 8 experts |" in card
    assert matrix.name in (out / "index.html").read_text()
    file = next(p for p in out.glob("*IQ2_XXS.gguf"))
    assert read_header(file).get("quantize.imatrix.dataset") == "text.txt"
    assert read_header(file).get("quantize.imatrix.file") == matrix.name
    again = api.release(source, out, ["IQ2_XXS", "Q4_K_M"], **options)
    assert set(again.states.values()) == {"kept"}
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    text.write_text("x" * 9000)
    with pytest.raises(OutputExists, match="is of another model or text"):
        api.release(source, out, ["IQ2_XXS"], **options)
    with pytest.raises(UsageError, match="--calibration goes with --imatrix auto"):
        api.quantize(source, "Q4_K_M", out, calibration=[text])


def test_a_matrix_that_is_given_is_shipped(
    checkpoint: Get, whole: Measured, tmp_path: Path
) -> None:
    made = api.release(checkpoint("qwen3moe"), tmp_path, ["Q2_K"], imatrix=whole.path)
    assert made.manifest.imatrix is not None
    assert (tmp_path / made.manifest.imatrix.name).read_bytes() == whole.path.read_bytes()
