"""Divergence and perplexity by llama.cpp's logits are what llama-perplexity prints."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.errors import LlamaError, LlamaMissing
from quantkit.jobs import convert, quantize
from quantkit.llama import llama_cpp
from quantkit.llama.completion import complete
from quantkit.llama.llama_cpp import Llama
from quantkit.verification.divergence import _of_chunk, divergences, mean
from tests.checkpoints import DATA
from tests.told import Told

TYPES = ("Q8_0", "Q4_K_M", "Q2_K")
TEXT = DATA / "text"


@pytest.fixture(scope="module")
def files(frankenmoe: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("files")
    plan = quantize(frankenmoe["mergekit"], [*TYPES, "BF16"], out)
    convert(frankenmoe["mergekit"], out / "f32.gguf", "f32")
    return {"f32": out / "f32.gguf", **{o.type: o.files[0].path for o in plan.outputs}}


def test_it_is_what_llama_perplexity_prints(
    files: dict[str, Path], frankenmoe_golden: dict[str, Any]
) -> None:
    texts, progress = [TEXT / "held-prose.txt"], Told()
    found = divergences(
        [files[kind] for kind in TYPES],
        files["f32"],
        texts,
        threads=1,
        progress=progress,
    )
    for kind, (ours,) in zip(TYPES, found, strict=True):
        golden = frankenmoe_golden["quantize"][kind]
        # it keeps the base's logits in 16 bits and prints six places
        assert ours.kl == pytest.approx(golden["kl_divergence"]["prose"], rel=0.004, abs=1e-6)
        assert ours.perplexity == pytest.approx(golden["perplexity"]["prose"], rel=1e-4)
        base = frankenmoe_golden["quantize"]["F32"]["perplexity"]["prose"]
        assert ours.base_perplexity == pytest.approx(base, rel=1e-4)
        assert 0 < ours.kl_error < 0.1 * ours.kl
        assert ours.kl < ours.kl_max
    told = [done / total for _, done, total in progress.updates]
    assert told == sorted(told)
    assert told[-1] == 1
    shares = [ours.same_top for (ours,) in found]
    assert 1 > shares[0] > shares[1] > shares[2] > 0.7


def test_the_divergence_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    q, p = rng.normal(0, 3, (2, 5, 100)).astype(np.float32)
    ids = rng.integers(0, 100, 5).astype(np.int32)
    log_q, log_p = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in np.float64([q, p]))
    kl, nll, base_nll, top = _of_chunk(q, p, ids)
    assert kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(1), rel=1e-6)
    assert nll == pytest.approx(-log_q[range(5), ids], rel=1e-6)
    assert base_nll == pytest.approx(-log_p[range(5), ids], rel=1e-6)
    assert list(top) == list(q.argmax(1) == p.argmax(1))
    assert _of_chunk(p, p, ids)[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.slow
def test_several_texts_weigh_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_bytes((TEXT / "held-c.txt").read_bytes()[:4000])
    long = tmp_path / "long.txt"
    long.write_bytes((TEXT / "held-prose.txt").read_bytes()[:8000])
    (found,) = divergences([files["Q4_K_M"]], files["BF16"], [short, long], context=128)
    whole = mean(found)
    assert [d.text for d in found] == ["short.txt", "long.txt"]
    assert whole.kl == pytest.approx((found[0].kl + found[1].kl) / 2)
    assert whole.perplexity == pytest.approx((found[0].perplexity * found[1].perplexity) ** 0.5)
    assert whole.tokens == found[0].tokens + found[1].tokens
    assert all(d.tokens % 63 == 0 for d in found)
    with pytest.raises(LlamaError, match=r"short.txt: \d+ tokens; a context of 2048 needs 4096"):
        divergences([files["Q4_K_M"]], files["BF16"], [short], context=2048)


def test_models_of_other_vocabularies_are_not_compared(
    files: dict[str, Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    convert(checkpoint("mixtral-4x"), other)
    with pytest.raises(LlamaError, match=r"tokens in the vocabulary, 2048 in .*cannot be compared"):
        divergences([other], files["BF16"], [TEXT / "held-c.txt"])


def test_it_completes_as_llama_cpp_does(
    files: dict[str, Path], frankenmoe_golden: dict[str, Any]
) -> None:
    with Llama(files["BF16"]) as model:
        for expected in frankenmoe_golden["quantize"]["BF16"]["completions"]:
            assert complete(model, expected["prompt"], 24) == expected["text"]
        assert model.text(model.tokenize("Größe\n".encode())) == " Größe\n"
        with pytest.raises(LlamaError, match="do not fit into 512"):
            complete(model, "x " * 600, 8)


def test_what_llama_cpp_does_not_load_is_said(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LlamaError, match=r"no.gguf: llama.cpp does not load it: .*[a-z]{4}"):
        Llama(path)


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    llama_cpp.library.cache_clear()
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(LlamaMissing, match=r"pip install 'quantkit-gguf\[llama\]'"):
        llama_cpp.library()


def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llama_cpp.library.cache_clear()
    moved = {"one_more": (512, ctypes.c_int32), **llama_cpp._CONTEXT}
    kinds = ((name, kind) for name, (_, kind) in moved.items())
    fields = (*kinds, ("rest", ctypes.c_uint64 * 64))
    params = type("params", (ctypes.Structure,), {"_fields_": fields})
    returned = {"llama_context_default_params": (params, ())}
    monkeypatch.setattr(llama_cpp, "_FUNCTIONS", {**llama_cpp._FUNCTIONS, **returned})
    with pytest.raises(LlamaMissing, match=r"another layout .*n_ctx is 2048, not 512"):
        llama_cpp.library()
    empty = tmp_path / "__init__.py"
    empty.write_text("")
    spec = ModuleSpec("xllamacpp", None, origin=str(empty))
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: spec)
    with pytest.raises(LlamaMissing, match=r"no llama\.cpp that can be called"):
        llama_cpp.library()
