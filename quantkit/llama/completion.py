"""How llama.cpp goes on with a text."""

from __future__ import annotations

import numpy as np

from quantkit.errors import LlamaError
from quantkit.llama.llama_cpp import Llama


def complete(model: Llama, prompt: str, count: int) -> str:
    """Up to `count` tokens that follow the prompt, always the likeliest; of a model without logits,
    how long a vector it makes. Raises LlamaError."""
    ids = model.tokenize(prompt.encode(), special=True)
    if not 0 < len(ids) <= model.context - count:
        raise LlamaError(
            f"a prompt of {len(ids)} tokens and {count} more do not fit into {model.context}"
        )
    if model.embeds:
        found = model.embed(ids)
        if not np.isfinite(found).all():
            raise LlamaError(f"{model.path}: llama.cpp computes NaN with it")
        return f"(a vector of {found.shape[-1]})"
    if model.translates:
        ids = np.array([model.encode(ids)], np.int32)
    position, answer = 0, list[int]()
    while len(answer) < count:
        logits = model.decode(ids[None], len(ids) - 1, None, position)
        if np.isnan(logits).any():
            raise LlamaError(f"{model.path}: llama.cpp computes NaN with it")
        position += len(ids)
        ids = np.array([logits[0, 0].argmax()], np.int32)
        if model.ends(int(ids[0])):
            break
        answer.append(int(ids[0]))
    return model.text(answer)
