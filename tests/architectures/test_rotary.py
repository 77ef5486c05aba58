"""Rotary settings: by kind of layer or not, and scaled where the file can say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import ConfigError
from tests.architectures.config_fuzz import Case

PLAIN = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LINEAR = {"type": "linear", "factor": 4.0}


def keys(case: str, parent: Path, rope: dict[str, Any]) -> dict[str, Any]:
    """What is written of positions where config.json has these settings and no others."""
    found = Case.of(case, parent)
    config = json.loads(json.dumps(found.config))
    for name in ("rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct"):
        config.pop(name, None)
    kv = found.convert({**config, "rope_parameters": rope}).kv
    return {item.key.partition(".")[2]: item.value for item in kv if ".rope." in item.key}


@pytest.mark.parametrize(
    "case", ["plamo2", "exaone35", "falcon-11b", "glm-hf", "granite-swa", "gpt-neox-seq", "maple",
             "stablelm-3b", "phi3-yarn-type"]
)  # fmt: skip
def test_settings_by_kind_of_layer_are_those_of_full_attention(case: str, tmp_path: Path) -> None:
    flat = keys(case, tmp_path / "flat", PLAIN)
    by_kind = keys(case, tmp_path / "kinds", {"full_attention": PLAIN})
    length = "rope.scaling.original_context_length"  # Phi-3's, of another key beside a flat table
    assert {**by_kind, length: flat.get(length)} == {length: None, **flat}


@pytest.mark.parametrize("rope", [YARN, LINEAR, {"full_attention": {**YARN, "rope_theta": 1e4}}])
@pytest.mark.parametrize(
    "case", ["falcon-h1", "gemma2-dense", "orion", "phi2", "stablelm-3b", "minicpm3-silent",
             "gpt-neox-seq", "glm-hf", "deci-nas", "phi3-yarn-type"]
)  # fmt: skip
def test_scaling_that_no_key_says_is_refused(case: str, rope: Any, tmp_path: Path) -> None:
    """llama.cpp's converter writes a file of positions that are not scaled."""
    with pytest.raises(ConfigError, match=r"is not one that llama\.cpp runs with"):
        keys(case, tmp_path, rope)


@pytest.mark.parametrize("case", ["jais2", "granite-swa", "granitemoe-swa"])
def test_scaling_that_the_graph_does_is_written(case: str, tmp_path: Path) -> None:
    found = keys(case, tmp_path, {**YARN, "rope_theta": 1e4})
    assert found["rope.scaling.type"] == "yarn"
    assert found["rope.scaling.factor"] == 4.0
    assert found["rope.scaling.original_context_length"] == 1024


def test_families_that_do_not_rotate_pass_settings_over(tmp_path: Path) -> None:
    assert not keys("bloom", tmp_path, YARN)


def test_a_base_beside_no_kind_of_layer(tmp_path: Path) -> None:
    """Step 3.5's stands in a list of its own, or by kind of layer."""
    assert (
        keys("step35", tmp_path, {**PLAIN, "partial_rotary_factor": 0.5})["rope.freq_base"] == 5e5
    )
