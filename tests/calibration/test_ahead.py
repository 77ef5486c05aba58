"""Matrices with layers that predict further tokens: llama.cpp runs them in their own context."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from quantkit import api
from quantkit.architectures.rules import ConversionOptions
from quantkit.calibration import ahead, run
from quantkit.calibration.measure import Options, measure
from quantkit.calibration.run import Task
from quantkit.calibration.sums import Sums, read_sums
from quantkit.errors import ImatrixError, LlamaError, LlamaMissing
from quantkit.gguf.container import read_header, replaced, uint32
from quantkit.jobs import convert
from quantkit.llama import ahead as llama_ahead
from quantkit.loading.ahead import ALONE
from quantkit.model.open import Reading
from tests.checkpoints import DATA
from tests.conftest import sha256
from tests.loading.test_model import infos

Get = Callable[[str], Path]
TEXT = DATA / "text" / "held-python.txt"
CHUNKS, CONTEXT = 3, 64
SHORT = Options(context=CONTEXT, chunks=CHUNKS, nextn=True)
# of llama.cpp's tools/imatrix (b11549), which ends at an assertion with --nextn: the two lines that
# give the layers their state were mended as common/speculative.cpp has them
GOLDEN = DATA / "imatrix" / "llama-imatrix-nextn-glm4moe.gguf.xz"
# a golden of each architecture of which it runs such a layer
CASES = [
    "cohere-mtp", "deepseek-v32", "glm4moe", "glm4moelite", "glm5", "glm53-flash", "hy3",
    "ling3-flash", "nemotron-h-mtp", "qwen35-dense", "qwen35moe", "qwen3next", "qwen4-mtp",
    "step35",
]  # fmt: skip


@pytest.fixture(scope="session")
def models(checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> Get:
    made: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp(case) / "m.gguf"
            convert(checkpoint(case), made[case], "bf16")
        return made[case]

    return get


def of_last(sums: Sums) -> dict[str, int]:
    """Rows that the tensors of the last layer were counted for."""
    last = max(int(name.split(".")[1]) for name in sums.entries if name.startswith("blk."))
    return {n: int(e.counts.sum()) for n, e in sums.entries.items() if f"blk.{last}." in n}


@pytest.mark.parametrize("case", CASES)
def test_the_layers_see_every_token_but_the_first(case: str, models: Get, tmp_path: Path) -> None:
    """And the others what they see without them."""
    model = models(case)
    found = read_sums(measure(model, [TEXT], tmp_path / "a.gguf", SHORT, threads=1).path)
    alone = replace(SHORT, nextn=False, at_once=1)
    plain = read_sums(measure(model, [TEXT], tmp_path / "b.gguf", alone, threads=1).path)
    assert (found.nextn, plain.nextn, found.chunks) == (1, 0, CHUNKS)
    counts, rows = of_last(found), CHUNKS * (CONTEXT - 1)
    used = {n: 2 if "_exps." in n else 1 for n in counts}  # of four experts, two a token
    assert counts == {n: rows * times for n, times in used.items()}
    assert any(".nextn." in n for n in counts) or case == "qwen4-mtp"
    assert any(".ffn_" in n for n in counts)
    assert found.entries.keys() - plain.entries.keys() == counts.keys()
    for name, e in plain.entries.items():
        assert np.array_equal(found.entries[name].squares, e.squares), name


def test_every_architecture_has_a_case(models: Get) -> None:
    found = {str(read_header(models(case)).get("general.architecture")) for case in CASES}
    # as DeepSeek V4's are not converted; without experts; three layers
    assert ALONE - found == {"deepseek4", "nemotron_h", "mimo2"}


def test_it_is_llama_imatrix_s(models: Get, tmp_path: Path) -> None:
    """Another build of llama.cpp rounds otherwise, and a token may go to another expert."""
    golden = tmp_path / "golden.gguf"
    golden.write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    options = replace(SHORT, outputs=True)
    made = measure(
        models("glm4moe"), [TEXT], tmp_path / "m.gguf", options, names=[TEXT.name], threads=1
    )
    keys = [(i.key, i.value) for i in read_header(made.path).kv]
    assert keys == [(i.key, i.value) for i in read_header(golden).kv]
    found, expected = read_sums(made.path), read_sums(golden)
    assert found.entries.keys() == expected.entries.keys()
    for name, e in expected.entries.items():
        own = found.entries[name]
        assert np.abs(own.counts - e.counts).sum() <= 4, name
        np.testing.assert_allclose(own.squares.sum(), e.squares.sum(), rtol=2e-3)


def task(model: Path, out: Path, options: Options, every: int = 1) -> Task:
    return Task(
        model=str(model), texts=(str(TEXT),), datasets=("text",), output=str(out),
        state=f"{out}.partial", identity="", threads=1, every=every, made_from="",
        to_the_end=ahead.of_file(model).outputs, **asdict(options) | {"nextn": 1},
    )  # fmt: skip


@pytest.mark.parametrize("case", ["glm4moe", "qwen3next"])
def test_stopped_it_goes_on_to_the_same_matrix(case: str, models: Get, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.gguf", tmp_path / "m.gguf"
    options = replace(SHORT, context=32, chunks=4)
    list(run.run(task(models(case), whole, options)))
    for _ in range(2):
        begun = run.run(task(models(case), out, options))
        next(begun)
        begun.close()  # type: ignore[attr-defined]
        assert not out.exists()
    list(run.run(task(models(case), out, options)))
    assert sha256(out) == sha256(whole)


def test_chunks_together_and_longer_than_a_batch(models: Get, tmp_path: Path) -> None:
    model = models("glm4moe")
    one = read_sums(measure(model, [TEXT], tmp_path / "a.gguf", SHORT, threads=1).path)
    together = replace(SHORT, at_once=CHUNKS)
    all_ = read_sums(measure(model, [TEXT], tmp_path / "b.gguf", together, threads=1).path)
    assert of_last(all_) == of_last(one)
    for name, e in one.entries.items():
        np.testing.assert_allclose(all_.entries[name].squares.sum(), e.squares.sum(), rtol=2e-3)
    long, again = (tmp_path / name for name in ("c.gguf", "d.gguf"))
    options = Options(context=192, chunks=1, nextn=True)
    list(run.run(task(model, long, options)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "BATCH", 64)
        list(run.run(task(model, again, options)))
    assert of_last(read_sums(again)) == of_last(read_sums(long))


def test_experts_ahead_are_reached(models: Get, tmp_path: Path) -> None:
    few = replace(SHORT, context=32, chunks=1, least=200)
    made = measure(models("glm4moe"), [TEXT], tmp_path / "m.gguf", few, threads=1)
    found = read_sums(made.path).entries
    assert all(e.counts.min() >= 200 for n, e in found.items() if "_exps." in n)


def test_what_is_not_run_is_refused(models: Get, checkpoint: Get, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    for case, why in {
        "exaone-moe": "the model has no layers that predict further tokens",
        "mimo-v25": "there are 3 layers that predict further tokens; it runs one",
    }.items():
        with pytest.raises(LlamaError, match=f"{why}; leave out --nextn"):
            measure(models(case), [TEXT], out, SHORT)
        with pytest.raises(LlamaError, match=f"{why}; leave out --nextn"):
            api.imatrix(checkpoint(case), [TEXT], out, options=SHORT)  # before a file is made
    assert list(tmp_path.iterdir()) == []
    header = read_header(models("glm4moe"))
    other = [
        replace(i, key=i.key.replace("glm4moe.", "exaone-moe."))
        for i in replaced(header.kv, uint32("glm4moe.nextn_predict_layers", 1))
    ]
    assert ahead.found("exaone-moe", other, infos(header)).why == (
        "llama.cpp does not run those of exaone-moe"
    )
    lone = tmp_path / "ahead.gguf"
    convert(checkpoint("glm4moe"), lone, reading=Reading(options=ConversionOptions(mtp="only")))
    with pytest.raises(LlamaError, match="it has nothing but layers that predict further tokens"):
        measure(lone, [TEXT], out, SHORT)


def test_a_library_without_the_functions(
    models: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_ahead, "_KEPT", "_Z26llama_get_embeddings_nextn")
    with pytest.raises(LlamaMissing, match=r"leave them out \(no --nextn\)"):
        list(run.run(task(models("glm4moe"), tmp_path / "m.gguf", SHORT)))


def test_a_release_with_such_layers(checkpoint: Get, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:6000])
    out = tmp_path / "out"
    made = api.release(
        checkpoint("qwen3next"), out, ["IQ2_XXS"], imatrix="auto", calibration=[text], threads=1
    )
    assert made.manifest.imatrix is not None
    assert read_sums(out / made.manifest.imatrix.name).nextn == 1
    # before calibration, not after it
    with pytest.raises(
        ImatrixError,
        match=r"^\S+, before it is made: .*nextn\.embed_tokens.*--tensor-type.*--no-mtp",
    ):
        api.release(
            checkpoint("glm4moe"), tmp_path / "b", ["IQ2_XXS"], imatrix="auto",
            calibration=[text], threads=1,
        )  # fmt: skip
    with pytest.raises(ImatrixError, match=r"before it is made: no importances for blk\.3\."):
        api.quantize(checkpoint("mimo-v25"), "IQ2_XXS", tmp_path / "b", imatrix="auto")
    assert not (tmp_path / "b").exists()
