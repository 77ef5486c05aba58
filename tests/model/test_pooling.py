"""Rerankers and embedding models, by other files than config.json (the goldens among the
architectures hold whole files to llama.cpp's)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import ConfigError, CorruptFile, TokenizerError
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.model import Model
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.checkpoints import read_safetensors, write_safetensors
from tests.damage import edit_config

Broken = Callable[..., Path]


def converted(source: Path) -> Model:
    return from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen2")


def value(model: Model, key: str) -> Any:
    return next((i.value for i in model.kv if i.key == f"{model.arch}.{key}"), None)


def named(source: Path, name: str) -> Path:
    return source.rename(source.with_name(name))


@pytest.mark.parametrize(
    ("name", "card", "config", "found"),
    [
        ("My-Qwen3-Reranker-FT", "", {}, True),
        ("qwen3-vl-reranker-2b", "", {}, True),
        ("judge", "---\nlicense: mit\n---\n# Qwen3-Reranker of a shop\n", {}, True),
        ("judge", "", {"_name_or_path": "Qwen/Qwen3-Reranker-4B"}, True),
        ("judge", "made of Qwen3-Reranker", {}, False),
        ("qwen3-ranker", "", {}, False),
    ],
)
def test_a_reranker_by_name_or_card(
    name: str, card: str, config: dict[str, Any], found: bool, broken: Broken
) -> None:
    source = named(broken("qwen3-reranker"), name)
    (source / "README.md").write_text(card)
    edit_config(source, **config)
    model = converted(source)
    assert (value(model, "pooling_type") == 4) is found
    assert ("cls.output.weight" in {t.name for t in model.tensors}) is found
    assert value(model, "classifier.output_labels") == (["yes", "no"] if found else None)
    assert any("reranker" in note for note in model.notes) is found


def test_an_untied_head_is_replaced(broken: Broken) -> None:
    source = named(broken("qwen3-reranker"), "qwen3-reranker")
    edit_config(source, tie_word_embeddings=False)
    path = source / "model.safetensors"
    tensors = read_safetensors(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(path, dict(sorted(tensors.items())))
    names = [t.name for t in converted(source).tensors]
    assert names[:2] == ["cls.output.weight", "token_embd.weight"]
    assert "output.weight" not in names


def test_a_reranker_without_its_labels(broken: Broken) -> None:
    source = named(broken("qwen3-reranker"), "qwen3-reranker")
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace('"yes"', '"yea"'))
    with pytest.raises(TokenizerError, match="'yes' and 'no'"):
        converted(source)


POOL = "sentence_transformers.models.Pooling"


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, 3),
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode": "lasttoken"}, 3),
        ({"pooling_mode": "mean"}, 1),
        ({"pooling_mode": "cls"}, 2),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode": ["mean", "max"]}, None),
    ],
)
def test_pooling(pooling: dict[str, Any], kind: int | None, broken: Broken) -> None:
    source = broken("qwen3-embedding-st")
    (source / "modules.json").write_text(json.dumps([{"path": "p", "type": POOL}]))
    (source / "p").mkdir()
    (source / "p" / "config.json").write_text(json.dumps(pooling))
    if kind is None:
        with pytest.raises(ConfigError, match="mean, cls or last token"):
            converted(source)
    else:
        assert value(converted(source), "pooling_type") == kind


@pytest.mark.parametrize("case", ["arcee", "qwen35-dense", "qwen3vl-dense", "qwen2-dense"])
def test_architectures_that_are_pooled(case: str, broken: Broken) -> None:
    """Those of which llama.cpp's converter writes it; keys stand where it puts them."""
    source = broken(case)
    (source / "modules.json").write_text(json.dumps([{"path": "p", "type": POOL}]))
    (source / "p").mkdir()
    (source / "p" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    edit_config(source, classifier_pooling="mean", classifier_activation="gelu")
    model = converted(source)
    keys = [item.key.removeprefix(f"{model.arch}.") for item in model.kv]
    pooled = ["pooling_type", "classifier.pooling_type", "classifier.activation"]
    at = keys.index(pooled[0])
    assert keys[at : at + 3] == pooled
    assert [value(model, key) for key in pooled] == [3, 1, "gelu"]
    after = "n_deepstack_layers" if case == "qwen3vl-dense" else "general.quantization_version"
    assert keys[at + 3] == after
    for name, wrong in (("classifier_activation", "relu"), ("classifier_pooling", "max")):
        edit_config(source, **{name: wrong})
        with pytest.raises(ConfigError, match=f"{name}.*{wrong}"):
            converted(source)


def test_a_reranker_that_sees(broken: Broken) -> None:
    source = named(broken("qwen3vl-dense"), "Qwen3-VL-Reranker-2B")
    with pytest.raises(TokenizerError, match="'yes' and 'no'"):
        converted(source)


def test_embedding_config(broken: Broken) -> None:
    source = broken("qwen3-embedding-st")
    (source / "modules.json").unlink()
    (source / "embedding_config.json").write_text('{"pooling": "last_token"}')
    assert value(converted(source), "pooling_type") == 3


OUTSIDE = '[{"path": "../x", "type": "Pooling"}]'


@pytest.mark.parametrize("text", ["{}", "[1]", "[{}]", "nothing", OUTSIDE])
def test_modules_in_which_anything_stands(text: str, broken: Broken) -> None:
    source = broken("qwen3-embedding-st")
    (source / "modules.json").write_text(text)
    if text == "{}":
        assert value(converted(source), "pooling_type") is None
        return
    with pytest.raises(CorruptFile, match=r"modules\.json"):
        converted(source)


def test_an_architecture_that_llama_cpp_does_not_pool_is_told(broken: Broken) -> None:
    source = broken("qwen3moe")
    (source / "modules.json").write_text(json.dumps([{"path": "p", "type": POOL}]))
    (source / "p").mkdir()
    (source / "p" / "config.json").write_text('{"pooling_mode": "mean"}')
    model = from_checkpoint(CheckpointFiles.local(source))
    assert any("--pooling" in note for note in model.notes)
