"""The importance matrix of a model, made here: from a source of any kind, in llama.cpp."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from quantkit import jobs
from quantkit.calibration.measure import Measured, Options, measure
from quantkit.errors import UnsupportedSource
from quantkit.execution.journal import identities
from quantkit.gguf.splits import split_siblings
from quantkit.jobs import Run
from quantkit.model.open import AS_IT_IS, Reading
from quantkit.source.location import Source, SourceLike

TYPE = "Q8_0"  # of the file that is made of a checkpoint, unless another is asked for


def make(
    source: SourceLike,
    texts: Sequence[Path],
    output: Path,
    options: Options,
    *,
    with_type: str = TYPE,
    reading: Reading = AS_IT_IS,
    run: Run,
) -> Measured:
    """Make the matrix of a GGUF file, or of a checkpoint by way of a file of `with_type`.

    That file lies in a hidden directory beside the output until the matrix is there. Raises as
    `measure` does, and for a checkpoint what quantizing it raises.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with as_file(Source.parse(source), with_type, output, reading, run) as model:
        return measure(
            model,
            texts,
            output,
            options,
            threads=run.threads,
            force=run.force,
            progress=run.progress,
        )


@contextmanager
def as_file(
    source: Source, with_type: str, output: Path, reading: Reading, run: Run
) -> Iterator[Path]:
    """The source as a file that llama.cpp reads. What is made of a checkpoint stays beside `output`
    if the work is interrupted, and is used again."""
    if not source.is_checkpoint:
        if source.address:
            raise UnsupportedSource(f"{source}: llama.cpp reads files on this machine; download it")
        path = source.local()
        yield path.with_name(split_siblings(path.name)[0])
        return
    directory = output.with_name(f".{output.name}.model")
    path, note = directory / "model.gguf", directory / "made-from"
    job = jobs.prepare(source, [with_type], path, reading=reading)
    identity = identities(job.plan, job.importance)[path]
    made_from = f"{identity.plan} {identity.source}"
    if not (path.exists() and note.exists() and note.read_text() == made_from):
        if note.exists() and note.read_text() != made_from:
            shutil.rmtree(directory)
        directory.mkdir(exist_ok=True)
        note.write_text(made_from)
        if not path.exists():
            jobs.carry_out(job, replace(run, force=True, dry=False, cluster=None))
    yield path
    shutil.rmtree(directory)
