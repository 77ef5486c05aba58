"""Configs in which anything may stand: converted to what a golden is, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.errors import ModelError
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.architectures.config_fuzz import Case, mutations, run, smallest
from tests.damage import edit_config

# mutations of each; the whole walk is `python -m tests.architectures.config_fuzz`
MANY = [6, pytest.param(80, marks=pytest.mark.slow)]


@pytest.mark.parametrize("many", MANY)
def test_no_key_of_any_architecture_ends_in_a_traceback(many: int, tmp_path: Path) -> None:
    """Of every third, a part of the walk, a different one each."""
    tried = refused = 0
    names = smallest()[::3]
    for name in names:
        tally = run(Case.of(name, tmp_path / name), many, skip=hash_of(name))
        assert not tally.unnamed, tally.unnamed
        tried, refused = tried + tally.tried, refused + tally.refused
    assert tried == many * len(names)
    assert tried // 4 < refused < tried


def hash_of(name: str) -> int:
    """Where a case's part begins."""
    return sum(map(ord, name)) * 7 % 400


def test_the_walk_is_whole(tmp_path: Path) -> None:
    case = Case.of("qwen3moe", tmp_path)
    first = [next(iter(c)) for c, _ in zip(mutations(case, 0), range(600), strict=False)]
    assert {(key,) for key in case.config} <= {*first}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": [4, 3]}, "expert"),
        ({"num_attention_heads": [4, 4, 4]}, "is 3 values, one for each of 2"),
        ({"max_position_embeddings": [1, 2]}, "is one number"),
        ({"num_hidden_layers": 1 << 31}, "1 to 512"),
        ({"num_hidden_layers": 0}, "1 to 512"),
        ({"rope_scaling": {"type": None, "factor": []}}, ""),
        ({"rms_norm_eps": float("inf")}, "which no model has"),
    ],
)
def test_by_name(changes: dict[str, object], words: str, broken: Callable[..., Path]) -> None:
    source = broken("qwen3moe")
    edit_config(source, **changes)
    if not words:
        from_checkpoint(CheckpointFiles.local(source))
        return
    with pytest.raises(ModelError, match=words):
        from_checkpoint(CheckpointFiles.local(source))


@pytest.mark.parametrize("length", [0, 1, 3, 5, 9])
def test_lists_of_another_length(length: int, broken: Callable[..., Path]) -> None:
    """`layer_types`, as passthrough merges leave it."""
    source = broken("qwen35moe")
    config = CheckpointFiles.local(source).json("config.json")
    text = {**config.get("text_config", config)}
    text["layer_types"] = ["linear_attention"] * length
    edit_config(source, **({"text_config": text} if "text_config" in config else text))
    with pytest.raises(ModelError, match="layer"):
        from_checkpoint(CheckpointFiles.local(source))
