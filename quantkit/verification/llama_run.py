"""A file in the real llama.cpp: what it says, and how far it is from its source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantkit import jobs
from quantkit.errors import LlamaError, LlamaMissing, UnsupportedSource
from quantkit.hub.repository import is_remote, names_file
from quantkit.jobs import Run
from quantkit.model.from_checkpoint import OUTTYPES
from quantkit.model.open import Reading, open_checkpoint
from quantkit.progress import Progress
from quantkit.verification import apart
from quantkit.verification.divergence import Divergence, divergences
from quantkit.verification.structure import first_split
from quantkit.verification.verify import Verdict

TOKENS = 48  # of a completion


def completion(
    file: Path, prompt: str, found: Verdict, threads: int | None = None
) -> dict[str, str]:
    """What the model says after a prompt, the likeliest token each time; a finding where llama.cpp
    does not load the file. Raises LlamaMissing."""
    path, text = first_split(file), ""
    context = max(512, len(prompt.encode()) + 2 + TOKENS)  # no token is shorter than a byte
    try:
        asked = {"prompt": prompt, "count": TOKENS, "context": context}
        text = apart.ask(path, {**asked, "threads": threads})
        found.proven.append("llama.cpp runs it")
    except LlamaMissing:
        raise
    except LlamaError as e:
        found.findings.append(_told(path, e))
    return {"prompt": prompt, "text": text}


def divergence(
    file: Path, against: Path | str, texts: Sequence[Path], context: int, reading: Reading,
    threads: int | None, progress: Progress,
) -> list[Divergence]:  # fmt: skip
    """A file against its source over each text. Raises LlamaMissing, LlamaError, and for a
    checkpoint what converting it raises."""
    path = first_split(file)
    try:  # a file that ends the process ends another one
        apart.ask(path, {"context": 64, "threads": threads})
    except LlamaMissing:
        raise
    except LlamaError as e:
        raise LlamaError(_told(path, e)) from None
    with as_gguf(against, reading, threads, file.parent) as base:
        (found,) = divergences([path], base, texts, context, threads, progress)
    return found


def _told(file: Path, e: LlamaError) -> str:
    return str(e) if str(file) in str(e) else f"{file}: llama.cpp ends as it runs it: {e}"


@contextmanager
def as_gguf(
    source: Path | str, reading: Reading, threads: int | None, near: Path
) -> Iterator[Path]:
    """The source as a GGUF file. A checkpoint is converted for as long as the file is needed, with
    nothing rounded, into a directory of its own in `near`."""
    if is_remote(source) and names_file(source):
        raise UnsupportedSource(f"{source}: llama.cpp reads files on this machine; download it")
    if not is_remote(source) and not Path(source).is_dir():
        yield first_split(Path(source))
        return
    model = open_checkpoint(source, None, reading)
    stated = next(item.value for item in model.kv if item.key == "general.file_type")
    outtype = {number: name for name, (number, _) in OUTTYPES.items()}.get(stated, "bf16")
    with tempfile.TemporaryDirectory(prefix=".quantkit-", dir=near) as directory:
        path = Path(directory) / "source.gguf"
        jobs.convert(source, path, outtype, reading=reading, run=Run(threads=threads))
        yield path
