"""What a model is for, and what its card, its page and its Modelfile say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantkit.releases.modelfile import render
from quantkit.releases.purpose import purpose_of
from quantkit.releases.release import release
from tests.checkpoints import from_recipe


def values(arch: str, **keys: Any) -> dict[str, Any]:
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}}


LABELS = "classifier.output_labels"


@pytest.mark.parametrize(
    ("found", "tensors", "task"),
    [
        (values("llama"), (), None),
        (values("bert", pooling_type=1), (), "feature-extraction"),
        (values("bert"), (), "feature-extraction"),
        (values("bert", pooling_type=2, **{LABELS: ["LABEL_0"]}), (), "feature-extraction"),
        (values("bert", **{LABELS: ["LABEL_0"]}), (), "text-ranking"),
        (values("bert", **{LABELS: ["LABEL_0"]}), ("token_embd.weight",), "feature-extraction"),
        (values("bert", **{LABELS: ["a", "b"]}), ("cls.output.weight",), "text-classification"),
        (values("qwen3", pooling_type=4, **{LABELS: ["yes", "no"]}), (), "text-ranking"),
        (values("qwen3", pooling_type=3), (), "feature-extraction"),
        (values("t5"), (), "text2text-generation"),
        (values("t5encoder"), (), "feature-extraction"),
    ],
)
def test_tasks(found: dict[str, Any], tensors: tuple[str, ...], task: str | None) -> None:
    purpose = purpose_of(found, tensors)
    assert (purpose and purpose.task) == task


def test_pooling_that_no_file_says_is_to_be_chosen() -> None:
    said, unsaid = purpose_of(values("bert", pooling_type=2)), purpose_of(values("bert"))
    assert said is not None
    assert unsaid is not None
    assert "--pooling cls" in said.options
    assert "choose" in unsaid.words


def test_modelfiles() -> None:
    vectors = render("m.gguf", 512, values("bert", pooling_type=1))
    assert vectors == "FROM ./m.gguf\nPARAMETER num_ctx 512\n"
    scores = render("m.gguf", 512, values("bert", **{LABELS: ["LABEL_0"]}))
    assert "Ollama has no command for that" in scores
    assert "TEMPLATE" not in scores
    assert "continues a text" in render("m.gguf", 512, values("llama"))


@pytest.mark.parametrize(
    ("case", "task", "words", "ollama"),
    [
        ("bert-bge", "feature-extraction", "--embedding --pooling cls", True),
        ("xlmr-reranker", "text-ranking", "--rerank", False),
        ("flan-t5", "text2text-generation", "llama-completion", False),
    ],
)
def test_a_release(case: str, task: str, words: str, ollama: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    release(from_recipe(case, tmp_path / "source"), out, ["Q8_0"])
    card, page = ((out / name).read_text() for name in ("README.md", "index.html"))
    assert f"pipeline_tag: {task}" in card
    assert words in card
    assert words in page
    assert ("### Ollama" in card) is ollama
    assert "Once upon a time" not in card
    assert "ollama run" not in card + page
    assert "continues a text" not in (out / "Modelfile").read_text()
