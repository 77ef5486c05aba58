"""Models of several modes: the text part of their config.json counts, wherever it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.model import Model
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.damage import edit_tensors

Broken = Callable[..., Path]
INNER = "DeepseekV3ForCausalLM"


def read(source: Path, pre: str | None = None) -> Model:
    return from_checkpoint(CheckpointFiles.local(source), pre=pre)


def rewrite(source: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    path = source / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return source


@pytest.mark.parametrize("place", ["llm_config", "lm_config", "language_config", "lfm"])
def test_by_any_name(place: str, broken: Broken, checkpoint: Broken) -> None:
    def move(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, place: config.pop("text_config"), "text_config": {"hidden_size": 1}}

    expected = read(checkpoint("kimi-k25-int4"), pre="kimi-k2")
    model = read(rewrite(broken("kimi-k25-int4"), move), pre="kimi-k2")
    assert model.kv == expected.kv
    assert model.tensors == expected.tensors


def test_inside_a_thinker(broken: Broken) -> None:
    def move(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "thinker_config": {"text_config": config.pop("text_config")}}

    assert read(rewrite(broken("kimi-k25-int4"), move), pre="kimi-k2").arch == "deepseek2"


@pytest.mark.parametrize(
    ("whole", "inner", "found"),
    [
        ("NobodyKnows", [INNER], "deepseek2"),  # the text part's own name
        (INNER, [], "deepseek2"),  # the whole's, where it has none
        (INNER, None, "deepseek2"),
        (INNER, ["NobodyKnows"], "architecture 'NobodyKnows' is not supported"),
        ("Sarashina2VisionForCausalLM", [INNER], "no place in Sarashina2VisionForCausalLM"),
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
        assert read(source, pre="kimi-k2").arch == found
        return
    with pytest.raises(errors.QuantkitError, match=found):
        read(source)


def test_an_image_tower_taller_than_the_model_predicts_nothing(broken: Broken) -> None:
    """Numbers in the names of parts that are left out are not those of layers."""
    source = broken("glm53-flash")  # three layers, and one that predicts

    def edit(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.3." in name]:
            tensors.pop(name)
        for name in [name for name in tensors if "visual.blocks.0." in name]:
            tensors[name.replace("blocks.0", "blocks.3")] = tensors.pop(name)

    edit_tensors(source, edit)
    model = read(source, pre="glm4")
    keys = {item.key: item.value for item in model.kv}
    assert keys["glm5-next.nextn_predict_layers"] == 1  # as config.json promises
    assert not any(t.name.startswith("blk.3.") for t in model.tensors)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([[-2, 7]], None),  # the first is embedded as text is
        ([[-4, 0], [-2, 7]], "no layer 7 is there for images to go to"),
        ([[-4, 0], 1], "'deepstack_layer_map' is not a list of pairs of layers"),
    ],
)
def test_layers_that_images_reach(layers: list[Any], words: str | None, broken: Broken) -> None:
    def move(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "deepstack_layer_map": layers, "spatial_target_layers": []}

    source = rewrite(broken("granite-vision-text"), move)
    if words is None:
        (found,) = (
            i.value for i in read(source, "qwen2").kv if i.key.endswith("deepstack_mapping")
        )
        assert found == [-1, -1]
        return
    with pytest.raises(errors.ConfigError, match=words):
        read(source, "qwen2")
