"""Files that end llama.cpp: what it asserts is a finding, and ours goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import api, errors
from quantkit.gguf.container import array, read_header, replaced, string, uint32
from quantkit.jobs import quantize
from quantkit.llama import apart
from quantkit.verification import verify
from quantkit.verification.llama_run import run
from quantkit.verification.verdict import Verdict
from tests.verification.damage import rewritten

GROUPS = uint32("deepseek2.expert_group_count", 4)  # as many as there are experts


@pytest.fixture(scope="module")
def aborts(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that llama.cpp asserts at, as it loads it."""
    directory = tmp_path_factory.mktemp("aborts")
    good = quantize(checkpoint("deepseek-v3"), ["Q8_0"], directory).files[0].path
    return rewritten(good, directory / "aborts.gguf", kv=lambda kv: replaced(kv, GROUPS))


def test_the_assertion_is_shown(aborts: Path) -> None:
    found = run(Verdict(aborts.name), aborts, "Once")
    (finding,) = found.findings
    assert "llama.cpp ends at it" in finding
    assert "GGML_ASSERT(hparams.n_expert_groups < hparams.n_expert) failed" in finding
    assert "\n" not in finding
    with pytest.raises(errors.LlamaError, match="GGML_ASSERT"):
        apart.ask(aborts, {"context": 64, "threads": 1})


def test_verify_says_it_from_the_header(aborts: Path) -> None:
    """And does not give the file to llama.cpp."""
    verdict = api.verify(aborts, run=True)
    assert any("expert_group_count is 4, of 4 experts" in f for f in verdict.findings)
    assert not verdict.good


@pytest.mark.parametrize(
    ("case", "key", "value", "words"),
    [
        ("qwen3-dense", "tokens", lambda old: [old[5], *old[1:]], "GGML_ASSERT(id_to_token.size"),
        ("qwen3-dense", "model", lambda old: "llama", "std::out_of_range"),
        ("qwen3-dense", "token_type", lambda old: [6] * len(old), "does not load it"),
        ("qwen3-dense", "pre", lambda old: "nothing", "unknown pre-tokenizer type"),
        ("gemma1", "model", lambda old: "bert", "ended by SIGABRT"),
        ("gemma1", "tokens", lambda old: [f"x{i}" for i in range(len(old))], "std::out_of_range"),
    ],
)
def test_vocabularies_that_end_llama_cpp(
    case: str,
    key: str,
    value: Callable[[Any], Any],
    words: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """It aborts, or throws what nobody catches; the verdict names it, and `verify` goes on."""
    good = quantize(checkpoint(case), ["Q8_0"], tmp_path).files[0].path
    key = f"tokenizer.ggml.{key}"
    new = value(read_header(good).get(key))
    item = string(key, new) if isinstance(new, str) else array(key, new)
    bad = rewritten(good, tmp_path / "bad.gguf", kv=lambda kv: replaced(kv, item))
    verdict = run(Verdict(bad.name), bad, "Once upon a time")
    (finding,) = verdict.findings
    assert words in finding
    assert "\n" not in finding
    assert not verdict.good


def test_more_tokens_than_bytes(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The space that stands before a text is three bytes where it is no token."""
    good = quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path).files[0].path
    tokens = read_header(good).get("tokenizer.ggml.tokens")
    kept = [t if t.startswith("<") else f"~{i}" for i, t in enumerate(tokens)]
    item = array("tokenizer.ggml.tokens", kept)
    path = rewritten(good, tmp_path / "bytes.gguf", kv=lambda kv: replaced(kv, item))
    (ids,) = apart.ask(path, {"texts": ["Hello"]})
    assert len(ids) == len("Hello") + 3


def test_nan_is_no_answer(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Every logit of a model whose norm is infinite."""
    from tests.verification.damage import span

    path = quantize(checkpoint("llama-dense"), ["F32"], tmp_path).files[0].path
    bad = rewritten(
        path,
        tmp_path / "bad.gguf",
        lambda header, data: data.__setitem__(
            slice(
                span(header, "output_norm.weight").start,
                span(header, "output_norm.weight").start + 4,
            ),
            b"\x00\x00\xc0\x7f",
        ),
    )
    found = run(Verdict(bad.name), bad, "Once")
    assert any("llama.cpp computes NaN with it" in f for f in found.findings)
    assert any("output_norm.weight has NaN" in f for f in verify.verify(bad).findings)


def test_why_a_process_ended() -> None:
    said = "loading\n/build/llama.cpp/src/llama-model.cpp:1393: GGML_ASSERT(n < 3) failed\n#0 x\n"
    assert apart.reason(-6, said) == "src/llama-model.cpp:1393: GGML_ASSERT(n < 3) failed"
    assert apart.reason(-11, "") == "it was ended by SIGSEGV"
    assert apart.reason(-9, "").endswith("where memory runs out")
    assert apart.reason(1, "a\nlast words\n") == "last words"
    assert apart.reason(1, "") == "no reason is given"
