"""Mixtures of experts whose config and tensors contradict each other, or ask for what llama.cpp
cannot compute: each is refused with a name, before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.execution.rows import torch_sum
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.checkpoints import architectures
from tests.damage import edit_config, edit_tensors

Broken = Callable[..., Path]


def convert(case: str, source: Path) -> Any:
    return from_checkpoint(
        CheckpointFiles.local(source), "bf16", architectures()[case]["golden"]["pre"]
    )


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("k2-horizon-mova", {"mlp_only_layers": [1]}, r"'mlp_only_layers' is \[1\]"),
        ("k2-horizon-mova", {"mova_num_experts_per_tok": 5}, "5 experts of values are used of 4"),
        ("laguna", {"gating": "per-layer"}, "'gating' must be per-head or per-element"),
        ("laguna", {"gating": True, "gating_types": ["per-element"] * 2}, "say per-element there"),
        ("laguna", {"mlp_layer_types": ["sparse", "dense"]}, "dense layers, then sparse"),
        ("laguna", {"num_attention_heads_per_layer": [4]}, "a number for each of 2 layers"),
        ("phimoe", {"rope_scaling": {"type": "yarn", "long_factor": [1.5] * 32,
                                     "short_factor": [1.0] * 32}}, "rope_type must be longrope"),
        ("hy4", {"indexer_types": ["shared", "full", "full"]}, "full for the first"),
        ("dots3-note", {"swa_q_lora_rank": 64}, "'q_lora_rank' and 'swa_q_lora_rank' must be"),
        ("dots3-note", {"layer_types": ["full_attention"]}, "names fewer than 3 layers"),
        ("ling3-flash", {"no_kda_lora": False}, "'no_kda_lora' is False"),
        ("deepseek-v4", {"compress_ratios": [0] * 4}, "llama.cpp divides by zero"),
        ("nemotron-h-mtp", {"num_nextn_predict_layers": 2}, "'num_nextn_predict_layers' is 2"),
        ("mimo-v25", {"swa_head_dim": 64}, "'swa_head_dim' and 'head_dim' must be the same"),
        ("phimoe", {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 32}},
         "'long_factor' stands without 'short_factor'"),
        ("qwen3moe", {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 64}},
         "yarn and no 'factor'.* grew from 64 to"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(
    case: str, changes: dict[str, Any], words: str, broken: Broken
) -> None:
    source = broken(case)
    edit_config(source, **changes)
    with pytest.raises(errors.ConfigError, match=words):
        convert(case, source)


@pytest.mark.parametrize(
    ("case", "name", "error"),
    [
        ("nemotron-h-mtp", "mtp.layers.1.mixer.experts.2.up_proj.weight", errors.TensorMissing),
        ("exaone-moe-mtp", "mtp.fc.weight", errors.TensorMissing),
        ("qwen2-dense", "model.layers.1.self_attn.k_proj.bias", errors.TensorMissing),
        ("k2-horizon-mova", "model.layers.1.self_attn.v_experts.3.weight", errors.TensorMissing),
        ("qwen38-flash-next", "mtp.fc_hidden.weight", errors.TensorMissing),
        (
            "qwen38-flash-next",
            "model.language_model.layers.0.ple.ple_embedding.ngram_embedding.shard_2.weight",
            errors.TensorMissing,
        ),
    ],
)
def test_a_missing_part_is_named(
    case: str, name: str, error: type[Exception], broken: Broken
) -> None:
    source = broken(case)
    edit_tensors(source, lambda tensors: tensors.pop(name))
    with pytest.raises(error, match=r"is not in the checkpoint"):
        convert(case, source)


@pytest.mark.parametrize(
    ("n", "total"),
    [(7, -0.9152469038963318), (30, -5.003716945648193), (1000, -2.4199705123901367)],
)
def test_sums_are_torchs(n: int, total: float) -> None:
    """torch 2.13's sum of the same float32 vectors, on x86."""
    x = np.sin(np.arange(n, dtype=np.float64) ** 2).astype(np.float32)
    assert float(torch_sum(x)) == total


def test_n_grams_at_a_layer_that_llama_cpp_does_not_run(broken: Broken) -> None:
    source = broken("qwen4-ple2")
    text = json.loads((source / "config.json").read_text())["text_config"]
    edit_config(source, text_config={**text, "ple_layer_ids": [2]})
    with pytest.raises(errors.ConfigError, match="'ple_layer_ids' names a layer with full"):
        convert("qwen4-ple2", source)
