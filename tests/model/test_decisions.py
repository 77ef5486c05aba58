"""Models that decide, known by the files beside their weights (the goldens among the architectures
hold whole files to llama.cpp's)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.errors import ModelError, UnsupportedArchitecture
from quantkit.gguf.container import read_header
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.architectures.test_architectures import convert
from tests.damage import edit_config

Broken = Callable[..., Path]


def test_a_head_that_is_not_converted_is_told(broken: Broken) -> None:
    """And not taken for the model that it stands on."""
    source = broken("qwen35-vl")
    (source / "joint_head_config.json").write_text("{}")
    with pytest.raises(UnsupportedArchitecture, match=r"ClefModel.*a head of its own"):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen35")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("rl_agent_config.json", {"head_layers": 0}, "'head_layers' of the head is 0"),
        ("rl_agent_config.json", {"head_layers": 3}, r"head\.layers\.2.*is not in the checkpoint"),
        ("rl_agent_config.json", {"head_layers": None}, "'decision.head_layers' is missing"),
        ("rl_agent_config.json", {"temperature": 1.0}, "'temperature' of the head is not a list"),
        ("rl_agent_config.json", {"temperature": ["hot"]}, "must be float32"),
        ("rl_agent_config.json", {"temperature_by_options": [1]}, "no table of kinds of questions"),
        ("tokenizer/tokenizer_config.json", {"mask_token": {}}, "mask_token of .* is {}, no text"),
    ],
)
def test_heads_of_laya_that_do_not_fit_are_refused(
    name: str, values: dict[str, Any], words: str, broken: Broken
) -> None:
    path = (source := broken("laya")) / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ModelError, match=words):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "modern-bert")


def test_the_head_counts_before_a_config_of_the_whole(broken: Broken) -> None:
    """As it does for llama.cpp's converter."""
    source = broken("laya")
    (source / "config.json").write_text('{"architectures": ["Another"]}')
    model = from_checkpoint(CheckpointFiles.local(source), "bf16", "modern-bert")
    assert [item.value for item in model.kv if item.key.endswith("decision.type")] == ["laya"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token_ids": [1, 1, 2, 3, 4]}, "must be different ones of 520 tokens"),
        ({"token_ids": [1, 2, 3, 4, 520]}, "must be different ones of 520 tokens"),
        ({"token_ids": []}, "must be different ones"),
        ({"token_ids": None}, "must be different ones"),
        ({"token_ids": [1, 2]}, "shape .* found, .2, 256. expected"),
        ({"temperature": "hot"}, "must be float32"),
        ({"temperature": None}, "'decision.temperature' is missing"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    values: dict[str, Any], words: str, broken: Broken
) -> None:
    source = broken("pplx-decider")
    path = source / "decision_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ModelError, match=words):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen35")


def test_rows_of_labels_are_among_zeros(checkpoint: Broken, tmp_path: Path) -> None:
    source, path = checkpoint("pplx-decider"), tmp_path / "out.gguf"
    convert(source, path, "f32", "qwen35", ConversionOptions())
    labels = json.loads((source / "decision_config.json").read_text())["token_ids"]
    header, data = read_header(path), path.read_bytes()
    t = next(t for t in header.tensors if t.name == "output.weight")
    head = np.frombuffer(data, np.float32, 520 * 256, header.data_offset + t.offset)
    assert [*np.flatnonzero(head.reshape(520, 256).any(axis=1))] == sorted(labels)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_length": 4096}, "'max_length' is 4096; this architecture needs 16384"),
        ({"head_layers": 0}, "'head_layers' is 0"),
        ({"head_layers": 3}, "head.layers.2.*is not in the checkpoint"),
        ({"temperatures": {"a b": 1.0}}, "no table of kinds of questions"),
        ({"temperatures": {"choice": "hot"}}, "must be float32"),
    ],
)
def test_heads_of_d1_omni_that_do_not_fit_are_refused(
    values: dict[str, Any], words: str, broken: Broken
) -> None:
    source = broken("lfm2-d1-omni")
    edit_config(source, **values)
    with pytest.raises(ModelError, match=words):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "lfm2")


def test_half_of_the_files_makes_no_other_model(broken: Broken) -> None:
    source = broken("qwen35-vl")
    (source / "decision_config.json").write_text("{}")
    model = from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen35")
    assert not [item.key for item in model.kv if "decision" in item.key]
