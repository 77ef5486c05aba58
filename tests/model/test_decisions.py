"""Models that decide, known by the files beside their weights (the goldens among the architectures
hold whole files to llama.cpp's)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.errors import UnsupportedArchitecture
from quantkit.model.encoder import encoder_from_checkpoint
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.test_errors import edit_config

Broken = Callable[..., Path]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["joint_head_config.json"], "ClefModel.*a head of its own"),
        (["decision_config.json", "readout.safetensors"], "PplxDeciderModel.*a head of its own"),
        (["rl_agent_config.json", "encoder/config.json"], "ModernBertDecisionModel"),
        (["julia_config.json", "encoder/config.json"], "ModernBertDecisionModel"),
    ],
)
def test_heads_that_are_not_converted_are_told(
    names: list[str], words: str, broken: Broken
) -> None:
    """And not taken for the model that they stand on."""
    source = broken("qwen35-vl")
    for name in names:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    with pytest.raises(UnsupportedArchitecture, match=words):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen35")
    if "decision_config.json" in names:
        with pytest.raises(UnsupportedArchitecture, match="PplxDeciderModel"):
            encoder_from_checkpoint(CheckpointFiles.local(source))


def test_an_omni_model_that_decides_is_told(broken: Broken) -> None:
    source = broken("lfm2vl")
    edit_config(source, model_type="d1_omni")
    files = CheckpointFiles.local(source)
    with pytest.raises(UnsupportedArchitecture, match="D1OmniModel"):
        from_checkpoint(files, "bf16", "lfm2")


def test_half_of_the_files_makes_no_other_model(broken: Broken) -> None:
    source = broken("qwen35-vl")
    (source / "decision_config.json").write_text("{}")
    model = from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen35")
    assert not [item.key for item in model.kv if "decision" in item.key]
