"""A file in the real llama.cpp: what it completes, and how far it is from its source."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from quantkit import jobs
from quantkit.errors import (
    LlamaError,
    LlamaMissing,
    SourceNotFound,
    UnsupportedSource,
    UsageError,
)
from quantkit.jobs import Run
from quantkit.llama import apart
from quantkit.llama.llama_cpp import library
from quantkit.loading.kinds import DRAFT, MODEL, kind_of
from quantkit.model.from_checkpoint import OUTTYPES
from quantkit.model.open import Reading, open_checkpoint
from quantkit.progress import Progress
from quantkit.releases.quality import Score, Test
from quantkit.source.gguf_set import open_gguf_set
from quantkit.source.location import Source, SourceLike
from quantkit.verification.divergence import Divergence, divergences, mean
from quantkit.verification.structure import first_split
from quantkit.verification.verdict import Completion, Verdict

TOKENS = 48  # of a completion
CONTEXT = 256  # tokens of it in a release's scores


def run(verdict: Verdict, file: Path, prompt: str, threads: int | None = None) -> Verdict:
    """The verdict with what the model says after a prompt, the likeliest token each time; with a
    finding where llama.cpp does not load the file. Raises LlamaMissing, and UsageError for a file
    that is no model."""
    path, text = first_split(file), ""
    header, tensors = open_gguf_set(path)
    kind = kind_of(header.kv, [t.name for t in tensors])
    if kind not in (MODEL, DRAFT):
        raise UsageError(f"{path} is {kind.words}, which completes no prompt; {kind.use}")
    context = max(512, len(prompt.encode()) + 2 + TOKENS)  # no token is shorter than a byte
    try:
        asked = {"prompt": prompt, "count": TOKENS, "context": context}
        text = apart.ask(path, {**asked, "threads": threads})
        verdict = replace(verdict, proven=[*verdict.proven, "llama.cpp runs it"])
    except LlamaMissing:
        raise
    except LlamaError as e:
        if (words := apart.told(path, e)) not in verdict.findings:
            verdict = replace(verdict, findings=[*verdict.findings, words])
    return replace(verdict, completion=Completion(prompt, text))


def divergence(
    file: Path,
    against: Source,
    texts: Sequence[Path],
    context: int,
    reading: Reading,
    threads: int | None,
    progress: Progress,
) -> list[Divergence]:
    """A file against its source over each text. Raises LlamaMissing, LlamaError, and for a
    checkpoint what converting it raises."""
    path = first_split(file)
    _check_loads(path, threads)
    with as_gguf(against, reading, threads, file.parent) as base:
        (row,) = divergences([path], base, texts, context, threads, progress)
    return row


def release_test(
    source: SourceLike,
    texts: Sequence[Path],
    reading: Reading,
    directory: Path,
    threads: int | None,
    progress: Progress,
) -> Test:
    """What measures the files of a release in `directory` over texts, one after another. Raises
    LlamaMissing, SourceNotFound: before there are files."""
    library()
    digest = hashlib.sha256()
    for path in texts:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as e:
            raise SourceNotFound(f"{path}: cannot be read ({e.strerror})") from None
    against = Source.parse(source)

    def run(files: Mapping[str, Path]) -> tuple[float, dict[str, Score]]:
        found: dict[str, Score] = {}
        with as_gguf(against, reading, threads, directory) as base:
            for kind, path in files.items():
                _check_loads(path, threads)
                rows = divergences([path], base, texts, CONTEXT, threads, progress)[0]
                d = mean(rows)
                found[kind] = Score(d.kl, d.kl_error, d.perplexity, d.same_top)
        return d.base_perplexity, found

    return Test(tuple(path.name for path in texts), digest.hexdigest(), CONTEXT, run)


def _check_loads(path: Path, threads: int | None) -> None:
    """A file that ends the process ends another one. Raises LlamaMissing, LlamaError."""
    try:
        apart.ask(path, {"context": 64, "threads": threads})
    except LlamaMissing:
        raise
    except LlamaError as e:
        raise LlamaError(apart.told(path, e)) from None


@contextmanager
def as_gguf(source: Source, reading: Reading, threads: int | None, near: Path) -> Iterator[Path]:
    """The source as a GGUF file. A checkpoint is converted without rounding, into a temporary
    directory in `near`."""
    if not source.is_checkpoint:
        if source.address:
            raise UnsupportedSource(f"{source}: llama.cpp reads files on this machine; download it")
        yield first_split(source.local())
        return
    model = open_checkpoint(source, None, reading)
    stated = next((item.value for item in model.kv if item.key == "general.file_type"), None)
    outtype = next((name for name, (number, _) in OUTTYPES.items() if number == stated), "bf16")
    with tempfile.TemporaryDirectory(prefix=".quantkit-", dir=near) as directory:
        path = Path(directory) / "source.gguf"
        jobs.convert(source, path, outtype, reading=reading, run=Run(threads=threads))
        yield path
