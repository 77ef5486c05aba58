"""Models of several modes: the text part of their config.json counts, wherever it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles

Broken = Callable[..., Path]
INNER = "DeepseekV3ForCausalLM"


def rewrite(source: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    path = source / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return source


@pytest.mark.parametrize("place", ["llm_config", "lm_config", "language_config", "lfm"])
def test_by_any_name(place: str, broken: Broken, checkpoint: Broken) -> None:
    def move(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, place: config.pop("text_config"), "text_config": {"hidden_size": 1}}

    expected = from_checkpoint(CheckpointFiles.local(checkpoint("kimi-k25-int4")), pre="kimi-k2")
    model = from_checkpoint(
        CheckpointFiles.local(rewrite(broken("kimi-k25-int4"), move)), pre="kimi-k2"
    )
    assert model.kv == expected.kv
    assert model.tensors == expected.tensors


def test_inside_a_thinker(broken: Broken) -> None:
    def move(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "thinker_config": {"text_config": config.pop("text_config")}}

    assert (
        from_checkpoint(
            CheckpointFiles.local(rewrite(broken("kimi-k25-int4"), move)), pre="kimi-k2"
        ).arch
        == "deepseek2"
    )


@pytest.mark.parametrize(
    ("whole", "inner", "found"),
    [
        ("NobodyKnows", [INNER], "deepseek2"),  # the text part's own name
        (INNER, [], "deepseek2"),  # the whole's, where it has none
        (INNER, None, "deepseek2"),
        (INNER, ["NobodyKnows"], "architecture 'NobodyKnows' is not supported"),
        ("Step3p7ForConditionalGeneration", [INNER], "'Step3p7ForConditionalGeneration'"),
        (None, [INNER], "deepseek2"),
        (None, None, "'architectures' does not name the model"),
    ],
)
def test_whose_name_counts(whole: str | None, inner: Any, found: str, broken: Broken) -> None:
    def name(config: dict[str, Any]) -> dict[str, Any]:
        config["architectures"] = [whole] if whole else None
        config["text_config"]["architectures"] = inner
        return config

    source = rewrite(broken("kimi-k25-int4"), name)
    if found == "deepseek2":
        assert from_checkpoint(CheckpointFiles.local(source), pre="kimi-k2").arch == found
        return
    with pytest.raises(errors.QuantkitError, match=found):
        from_checkpoint(CheckpointFiles.local(source))
