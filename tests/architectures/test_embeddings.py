"""Vectors and scores that llama.cpp makes with our files, against transformers' own models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.jobs import convert, quantize
from quantkit.llama.llama_cpp import Llama
from quantkit.model.open import Reading
from tests.checkpoints import architectures
from tests.damage import edit_config

pytest.importorskip("transformers")
# transformers and torch warn of their own matters
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

IDS = [3, 141, 59, 265, 358, 97, 93, 238, 46, 264, 338, 327, 95, 28, 84, 197]
MEAN, FIRST, EACH = (lambda x: x.mean(0)), (lambda x: x[0]), (lambda x: x)
# ggml takes GELU from a table of 16-bit floats, and attention keeps keys and values in such: 4.2e-3
# was the most that was measured
TABLE = 6e-3
# llama.cpp takes the width of a head for what queries are scaled by, as in the released model
SCALED = {"query_pre_attn_scalar": 64}


def converted(case: str, source: Path, path: Path) -> Path:
    pre = architectures()[case]["golden"]["pre"]
    convert(source, path, "f32", reading=Reading(pre, ConversionOptions()))
    return path


def vector(path: Path) -> np.ndarray[Any, Any]:
    with Llama(path, 64, threads=1) as model:
        return model.embed(np.array(IDS, np.int32))


@pytest.mark.parametrize(
    ("case", "pool", "changes"),
    [
        ("bert-bge", FIRST, {}),
        ("bert-minilm", MEAN, {}),
        ("roberta", MEAN, {}),
        ("xlmr-bge-m3", FIRST, {}),
        ("distilbert", FIRST, {}),
        ("modernbert-embed", MEAN, {}),
        ("embeddinggemma", MEAN, SCALED),
        ("eurobert", EACH, {"pad_token_id": 0}),
    ],
)
def test_same_vectors(
    case: str, pool: Any, changes: dict[str, Any], broken: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel

    source = broken(case)
    edit_config(source, **changes)
    model = AutoModel.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        states = model(torch.tensor([IDS])).last_hidden_state[0].numpy()
    found = vector(converted(case, source, tmp_path / "model.gguf"))
    assert np.abs(found - pool(states)).max() < TABLE


@pytest.mark.parametrize(
    "case",
    ["xlmr-reranker", "roberta-sentiment", "modernbert-reranker", "bert-reranker", "bert-labels"],
)
def test_same_scores(case: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    source = checkpoint(case)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    path, ranks = converted(case, source, tmp_path / "model.gguf"), tmp_path / "ranks.gguf"
    arch = "modern-bert" if case.startswith("modern") else "bert"
    quantize(path, ["F32"], ranks, override_kv=[f"{arch}.pooling_type=int:4"])
    found = vector(ranks)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TABLE
