"""What a release says of how good its files are, and of the importance matrix behind them: records
that its manifest keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Calibration:
    """The importance matrix of a release, which lies beside its files: its file's name and sum; the
    names of its data and its chunks (0: not known), as it tells them; how many tensors of the
    release use it, of how many that could; and how many of its experts (of all layers) its data
    never reached."""

    name: str
    sha256: str
    datasets: tuple[str, ...]
    chunks: int
    covered: int
    wanted: int
    experts: int
    unreached: int

    @classmethod
    def of_data(cls, data: Any) -> Calibration:
        """What `asdict` gave. Raises ValueError, TypeError."""
        found = cls(**{**data, "datasets": tuple(data["datasets"])})
        texts = (found.name, found.sha256, *found.datasets)
        counts = (found.chunks, found.covered, found.wanted, found.experts, found.unreached)
        if not all(isinstance(n, int) for n in counts) or not all(
            isinstance(text, str) for text in texts
        ):
            raise ValueError("'imatrix' is not as a release writes it")
        return found


@dataclass(frozen=True)
class Score:
    """A type over a text: the KL divergence from the source and its standard error, in nats; the
    perplexity; the share of predictions whose likeliest token is the source's."""

    kl: float
    kl_error: float
    perplexity: float
    same_top: float


@dataclass(frozen=True)
class Scores:
    """Types over a text (or several, of the same weight): the names of the texts, their digest, the
    tokens of context, the source's perplexity, and the score of each type."""

    texts: tuple[str, ...]
    sha256: str
    context: int
    perplexity: float
    types: Mapping[str, Score]

    def as_data(self) -> dict[str, Any]:
        """Plain values, as the manifest has them."""
        return asdict(self) | {"texts": list(self.texts)}

    @classmethod
    def of_data(cls, data: Any) -> Scores:
        """What `as_data` gave. Raises ValueError, TypeError."""
        types = {str(kind): Score(**score) for kind, score in data["types"].items()}
        found = cls(**{**data, "texts": tuple(data["texts"]), "types": types})
        numbers = [found.perplexity, *(n for s in types.values() for n in asdict(s).values())]
        if not all(isinstance(n, int | float) and isfinite(n) for n in numbers):
            raise ValueError("'scores' has what is no number")
        if not all(isinstance(text, str) for text in (*found.texts, found.sha256)):
            raise ValueError("'scores' is not as a release writes it")
        return found

    def of(self, kinds: list[str]) -> Scores | None:
        """The scores of some types; None if there is none."""
        types = {kind: self.types[kind] for kind in kinds if kind in self.types}
        return Scores(**{**vars(self), "types": types}) if types else None


@dataclass(frozen=True)
class Test:
    """What `--kl` asks for: the texts by name, their digest, the context; and what runs files (the
    first of each type) in llama.cpp: it gives the source's perplexity and the scores by type."""

    texts: tuple[str, ...]
    sha256: str
    context: int
    run: Callable[[Mapping[str, Path]], tuple[float, Mapping[str, Score]]]


def scores(test: Test | None, before: Scores | None, files: Mapping[str, Path]) -> Scores | None:
    """The scores of a release's types, given the first file of each: those that were measured
    `before` with the same texts stay, those of other files that are here are measured."""
    kinds = list(files)
    if test is None:
        return before.of(kinds) if before else None
    same = before is not None and (before.sha256, before.context) == (test.sha256, test.context)
    known = dict(before.types) if before and same else {}
    perplexity = before.perplexity if before and same else 0.0
    wanted = {kind: path for kind, path in files.items() if kind not in known and path.exists()}
    if wanted:
        perplexity, found = test.run(wanted)
        known |= found
    whole = Scores(test.texts, test.sha256, test.context, perplexity, known)
    return whole.of(kinds)
