"""Recipes of LoRA adapters, made of the recipe of the model that they are for.

An adapter's directory has `adapter_config.json`, its weights, and the config of the base in `base/`
(llama.cpp wants nothing else of it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

BASE = "base"  # the folder of the base's config


def recipe(
    base: dict[str, Any],
    case: str,
    pattern: str,
    rank: int = 4,
    dtype: str = "F32",
    settings: dict[str, Any] | None = None,
    weights: str = "adapter_model.safetensors",
) -> dict[str, Any]:
    """An adapter of the matrices of `base` whose names `pattern` finds, and of tables of tokens
    among them; `settings` are more of its config."""
    tensors = [t for file in base["weights"].values() for t in file["tensors"]]
    found = [t for t in tensors if len(t["shape"]) == 2 and re.search(pattern, t["name"])]
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM",
        "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({t["name"].split(".")[-2] for t in found}),
        **(settings or {}),
    }  # fmt: skip
    turned = "GPT2LMHeadModel" in base["files"]["config.json"]
    tensors = list(pairs(found, rank, dtype, turned))
    return {
        "case": case,
        "dir": "tiny-adapter",
        "files": {
            "adapter_config.json": json.dumps(config, indent=1),
            f"{BASE}/config.json": base["files"]["config.json"],
        },
        "tokenizer_files": {},
        "weights": {weights: {"tensors": tensors, "metadata": None}},
    }


def pairs(
    matrices: Iterable[dict[str, Any]], rank: int, dtype: str, turned: bool = False
) -> Iterable[dict[str, Any]]:
    """Both halves for each matrix, in the order of their names; of matrices that are kept
    `[in, out]` where they are `turned`."""
    made = []
    for t in matrices:
        out, into = t["shape"]
        name = f"base_model.model.{t['name'].removesuffix('.weight')}"
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        if re.search(r"(embed_tokens|wte|word_embeddings)\.weight$", t["name"]):
            a, b = f"{name}.lora_embedding_A", f"{name}.lora_embedding_B"
            out, into = into, out
        elif turned:
            out, into = into, out
        for half, shape in ((a, [rank, into]), (b, [out, rank])):
            how = {"mean": 0.0, "std": 0.1}
            made.append({"name": half, "dtype": dtype, "shape": shape, "how": how})
    return sorted(made, key=lambda t: str(t["name"]))
