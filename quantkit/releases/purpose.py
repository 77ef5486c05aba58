"""What a model gives back, where it is not a text that goes on: a vector, scores, or a text for a
text; and so how it is run. Tasks are the Hub's (https://huggingface.co/docs/hub/models-tasks).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.loading.patterns import ENCODERS

_POOLS = ("none", "mean", "cls", "last", "rank")  # llama.h `llama_pooling_type`
_HEAD = "cls.output.weight"


@dataclass(frozen=True)
class Purpose:
    """`task`: the Hub's name for it. `words`: a sentence for people. `program`, `options` and
    `prompt` run a file, `serve` are the options of llama-server, or nothing where that has none.
    `ollama`: whether Ollama runs such models."""

    task: str
    words: str
    program: str
    options: str
    prompt: str
    serve: str
    ollama: bool = False


def purpose_of(values: Mapping[str, Any], tensors: Collection[str] = ()) -> Purpose | None:
    """What a model is for, by its metadata and the names of its `tensors` (none: not known); None
    if it continues a text."""
    arch = values.get("general.architecture")
    pooling, labels = (
        values.get(f"{arch}.pooling_type"),
        values.get(f"{arch}.classifier.output_labels"),
    )
    if arch == "t5":
        return Purpose(
            "text2text-generation",
            "An encoder and a decoder: it answers a text with another.",
            "llama-completion", "", "translate English to German: Good morning.", "",
        )  # fmt: skip
    if arch not in ENCODERS and pooling is None:
        return None
    head = _HEAD in tensors if tensors else pooling is None
    if pooling == _POOLS.index("rank") or (labels and head and pooling is None):
        named = list(labels or ("",))
        ranks = len(named) == 1 or named == ["yes", "no"]
        what = "one score for a question and a text" if ranks else f"{len(named)} scores for a text"
        listed = "" if ranks else f" ({', '.join(map(str, named))})"
        return Purpose(
            "text-ranking" if ranks else "text-classification",
            f"A {'reranker' if ranks else 'classifier'}: it gives {what}{listed}.",
            "llama-embedding",
            "--pooling rank --embd-normalize -1",
            "question\\ttext" if ranks else "text",
            "--rerank" if ranks else "",
        )
    name = _POOLS[pooling] if isinstance(pooling, int) and 0 < pooling < len(_POOLS) else ""
    chosen = (
        ""
        if name
        else "; its file does not say how they are pooled, so choose as the model's card says"
    )
    return Purpose(
        "feature-extraction",
        f"An embedding model: it makes a vector of a text{chosen}.",
        "llama-embedding",
        f"--pooling {name or 'mean'}",
        "text",
        f"--embedding --pooling {name or 'mean'}",
        ollama=True,
    )
