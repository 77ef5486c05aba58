"""How far a model's predictions are from another's: what `llama-perplexity --kl-divergence` prints.

A text is cut into chunks of `context` tokens, each begun anew with the token that begins a text,
where the vocabulary wants one. Only the second half of a chunk counts: every prediction has at
least half a context before it (llama.cpp `tools/perplexity/perplexity.cpp`). The models go through
a chunk side by side, so that no logits are stored and none are rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import LlamaError
from quantkit.llama.llama_cpp import Llama
from quantkit.progress import SILENT, Progress
from quantkit.storage.os_files import read_file

BATCH = 2048  # tokens that are decoded at once (llama-perplexity's default)
LOGITS = 1 << 26  # bytes of a model's logits that are held at once, if a chunk's are not more

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int32]]
Logits = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Divergence:
    """A model against a base, over one text or several (of which it is the plain mean).

    `kl` is the mean Kullback-Leibler divergence from the base's predictions in nats, `kl_error` its
    standard error; `same_top` the share of predictions whose likeliest token is the base's.
    """

    text: str
    tokens: int  # predictions that were compared
    kl: float
    kl_error: float
    kl_max: float
    perplexity: float
    base_perplexity: float
    same_top: float


def divergences(
    models: Sequence[Path],
    base: Path,
    texts: Sequence[Path],
    context: int = 256,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> list[list[Divergence]]:
    """GGUF models against one that is the base, over texts (files in UTF-8): a row for each model,
    in it a text each. All of the models are in memory at once.

    Raises LlamaMissing, LlamaError.
    """
    with Llama(base, 0) as alone:
        n_vocab, bos = alone.n_vocab, alone.bos
        chunks = [
            _chunks(path, alone.tokenize(_text(path), special=True), context) for path in texts
        ]
    at_once = max(min(BATCH, LOGITS // (2 * n_vocab)) // context, 1)
    done, total = 0, sum(map(len, chunks))
    out: list[list[Divergence]] = [[] for _ in models]
    with ExitStack() as stack:
        given = [stack.enter_context(Llama(p, context, at_once, threads)) for p in (*models, base)]
        for model in given:
            if model.n_vocab != n_vocab:
                raise LlamaError(
                    f"{model.path}: {model.n_vocab} tokens in the vocabulary, {n_vocab} in "
                    f"{base}'s; they cannot be compared"
                )
        for path, cut in zip(texts, chunks, strict=True):
            parts = []
            for start in range(0, len(cut), at_once):
                part = cut[start : start + at_once]
                parts.append(_compared(given, part, bos))
                done += len(part)
                progress.update("texts", done, total)
            for row, numbers in zip(out, zip(*parts, strict=True), strict=True):
                row.append(_summary(path.name, np.concatenate(numbers, axis=1)))
    return out


def mean(rows: Sequence[Divergence]) -> Divergence:
    """Several texts as one, each of the same weight; perplexities by their logarithms."""
    n = len(rows)
    return Divergence(
        "mean",
        sum(d.tokens for d in rows),
        sum(d.kl for d in rows) / n,
        sqrt(sum(d.kl_error**2 for d in rows)) / n,
        max(d.kl_max for d in rows),
        exp(sum(np.log(d.perplexity) for d in rows) / n),
        exp(sum(np.log(d.base_perplexity) for d in rows) / n),
        sum(d.same_top for d in rows) / n,
    )


def _text(path: Path) -> bytes:
    """A text as llama.cpp's tools read it: without the newline at its end."""
    return read_file(path).removesuffix(b"\n")


def _chunks(path: Path, ids: Ids, context: int) -> Ids:
    """Token ids as `[chunks, context]`; what does not fill a chunk is left out."""
    if len(ids) < 2 * context:
        raise LlamaError(
            f"{path}: {len(ids)} tokens; a context of {context} needs {2 * context} or more"
        )
    return ids[: len(ids) // context * context].reshape(-1, context)


def _compared(models: Sequence[Llama], chunks: Ids, bos: int | None) -> list[Floats]:
    """Chunks `[n, context]` through the models, of which the last is the base. For each of the
    others `[4, predictions]`: the divergence, the surprise at the token that came, that of the
    base, and whether the likeliest token is the base's."""
    half = chunks.shape[1] // 2
    given = chunks.copy()
    if bos is not None:
        given[:, 0] = bos
    came = chunks[:, half + 1 :]
    *others, base = (model.decode(given, half, -1) for model in models)
    return [
        np.concatenate([_of_chunk(*each) for each in zip(q, base, came, strict=True)], axis=1)
        for q in others
    ]


def _of_chunk(q: Logits, p: Logits, ids: Ids) -> Floats:
    """Logits `[predictions, n_vocab]` of a model and of the base, and the ids that came.

    With q = x - log sum exp x and p alike, the divergence is the sum of exp(p) * (p - q): the
    float32 terms are summed in float64, and the two constants stay out of them.
    """
    rows = np.arange(len(ids))
    top = q.argmax(axis=1) == p.argmax(axis=1)
    q, p = q - q.max(axis=1, keepdims=True), p - p.max(axis=1, keepdims=True)
    log_q = np.log(np.exp(q).sum(axis=1, dtype=np.float64))
    e = np.exp(p)
    sum_p = e.sum(axis=1, dtype=np.float64)
    log_p = np.log(sum_p)
    kl = (e * (p - q)).sum(axis=1, dtype=np.float64) / sum_p + log_q - log_p
    return np.stack([kl, log_q - q[rows, ids], log_p - p[rows, ids], top])


def _summary(text: str, numbers: Floats) -> Divergence:
    n = numbers.shape[1]
    kl, nll, base_nll, top = (float(x) for x in numbers.mean(axis=1))
    return Divergence(
        text,
        n,
        kl,
        float(numbers[0].std()) / sqrt(max(n - 1, 1)),
        float(numbers[0].max()),
        exp(nll),
        exp(base_nll),
        top,
    )
