"""Text that a model writes for its own calibration: no data from outside, and what it knows.

Williams, Chrysostomou and Aletras, "Self-calibration for Language Model Quantization and Pruning"
(NAACL 2025, arXiv:2410.17170): a model's own text, sampled from the token that begins one, stands
in for what it was trained on. Here half of the sequences begin so, and half with the words that a
chat begins with, where the model has a template; all at temperature 1, nothing cut off. Where a
text ends, the sequence begins anew.

A program of its own, as `run.py` is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import LlamaError
from quantkit.llama import apart
from quantkit.llama.llama_cpp import Llama
from quantkit.progress import SILENT, Progress
from quantkit.storage.whole import replace_file

TOGETHER = 16  # sequences that are written at once
CHUNKS = 128  # of calibration, as many as most of what is published were made with


@dataclass(frozen=True)
class Wish:
    """What is to be written: `sequences` of `tokens` each, into files of TOGETHER sequences in
    `directory`; `beginnings`: with which words, in turn ("": none)."""

    model: str
    directory: str
    sequences: int
    tokens: int
    beginnings: tuple[str, ...]
    threads: int | None


def write(
    model: Path,
    directory: Path,
    sequences: int,
    tokens: int,
    beginnings: Sequence[str] = ("",),
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> list[Path]:
    """Have a GGUF model write text in UTF-8, control tokens spelled. Files that are there already
    are kept. Raises LlamaMissing, LlamaError."""
    wish = Wish(
        str(model.absolute()),
        str(directory.absolute()),
        sequences,
        tokens,
        tuple(beginnings),
        threads,
    )
    if not all(p.exists() for p in _files(directory, sequences)):
        for told in apart.tell("quantkit.calibration.own_text", asdict(wish), wish.model):
            progress.count("tokens of its own", told["done"], told["total"])
    return _files(directory, sequences)


def _files(directory: Path, sequences: int) -> list[Path]:
    return [directory / f"own-{i}.txt" for i in range(-(-sequences // TOGETHER))]


def _written(wish: Wish) -> Iterator[dict[str, int]]:
    total = wish.sequences * wish.tokens
    with Llama(Path(wish.model), wish.tokens, TOGETHER, wish.threads) as model:
        for number, path in enumerate(_files(Path(wish.directory), wish.sequences)):
            before = number * TOGETHER * wish.tokens
            if not path.exists():
                rows = yield from _sampled(model, wish, number, before, total)
                count = min(TOGETHER, wish.sequences - number * TOGETHER)
                text = "\n".join(model.text(row, special=True) for row in rows[:count].tolist())
                replace_file(path, [text.encode()])
            yield {"done": min(before + TOGETHER * wish.tokens, total), "total": total}


def _sampled(model: Llama, wish: Wish, number: int, before: int, total: int) -> Any:
    """Token ids int32 `[TOGETHER, tokens - 1]`, the first of which are given."""
    rng = np.random.default_rng(number)
    given = [
        model.tokenize(wish.beginnings[i % len(wish.beginnings)].encode(), parse=True)
        for i in range(TOGETHER)
    ]
    out = np.empty((TOGETHER, wish.tokens), np.int32)
    out[:, 0] = model.start
    for at in range(wish.tokens - 1):
        logits = model.decode(out[:, at : at + 1], 0, None, at)[:, 0]
        if not np.isfinite(logits.max(axis=1)).all():
            raise LlamaError(f"{wish.model}: llama.cpp computes NaN with it")
        drawn = _drawn(logits, rng)
        for i, words in enumerate(given):
            if at < len(words):
                drawn[i] = words[at]
            elif model.ends(int(out[i, at])):
                drawn[i] = model.start
        out[:, at + 1] = drawn
        if at % 32 == 0:
            yield {"done": min(before + at * TOGETHER, total), "total": total}
    return out[:, 1:]


def _drawn(logits: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int32]:
    """A token of each row `[n, n_vocab]` by its probability: the largest of the logits with Gumbel
    noise."""
    drawn: NDArray[np.intp] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return drawn.astype(np.int32)


def main() -> None:
    """Do the task on stdin."""

    def work(wish: dict[str, Any]) -> Iterator[dict[str, int]]:
        return _written(Wish(**{**wish, "beginnings": tuple(wish["beginnings"])}))

    apart.serve(work)


if __name__ == "__main__":
    main()
