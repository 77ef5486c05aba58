"""Checkpoints of models that decide, which are known by the files beside their weights and not by
the names in config.json. llama.cpp: the `register_hparams_loader`s of `conversion/*.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantkit.architectures.rules import Config
from quantkit.source.checkpoint_files import CheckpointFiles

# of these llama.cpp's converter makes other encoders than config.json names
OWN_ENCODERS = ("PplxDeciderModel",)
ENCODER = "encoder/config.json"  # of one whose head has a config of its own


def _has(*names: str) -> Callable[[CheckpointFiles, Config], bool]:
    return lambda files, config: all(files.has(name) or name in files.weights for name in names)


def has_head_apart(files: CheckpointFiles) -> bool:
    """Whether it is an encoder with its config in a folder of its own, and a head beside it."""
    agent = files.has("rl_agent_config.json") or files.has("julia_config.json")
    return agent and files.has(ENCODER)


def _d1(files: CheckpointFiles, config: Config) -> bool:
    name: Any = config.find("auto_map.AutoModel")
    return isinstance(name, str) and name.endswith(".D1Model")


_KINDS: tuple[tuple[str, Callable[[CheckpointFiles, Config], bool]], ...] = (
    ("ModernBertDecisionModel", lambda files, config: has_head_apart(files)),
    ("ClefModel", _has("joint_head_config.json")),
    ("D1Model", _d1),
    ("D1OmniModel", lambda files, config: config.find("model_type") == "d1_omni"),
    ("PplxDeciderModel", _has("decision_config.json", "readout.safetensors")),
    ("OpenJevModel", _has("helper/shim.py")),
)


def decision_model(files: CheckpointFiles, config: Config) -> str:
    """The class of llama.cpp's converter for such a checkpoint; none for all others."""
    return next((name for name, is_one in _KINDS if is_one(files, config)), "")
