"""The importance matrix of a model: made in llama.cpp from a source of any kind, and released."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import jobs
from quantkit.calibration import ahead, own_text
from quantkit.calibration.imatrix import Imatrix, read_imatrix, takes_importance
from quantkit.calibration.measure import (
    Measured,
    Options,
    check_length,
    check_text,
    measure,
    sampled,
)
from quantkit.calibration.run import PREFIX, usual
from quantkit.calibration.statistics import routing
from quantkit.calibration.sums import check_matrix, hub_file, read_sums
from quantkit.errors import OutputExists, SourceNotFound, UnsupportedSource, UsageError
from quantkit.execution.journal import identities
from quantkit.execution.outputs import check_outputs
from quantkit.gguf.container import KeyValue, header_bytes, read_header
from quantkit.gguf.splits import split_siblings
from quantkit.gguf.types import tensor_bytes
from quantkit.hub.http import SCHEME
from quantkit.jobs import Job, Run
from quantkit.model.model import Model
from quantkit.model.open import AS_IT_IS, Reading, open_source
from quantkit.recipes.facts import category
from quantkit.releases.modelfile import turns_of
from quantkit.releases.names import stem
from quantkit.releases.previous import MATRIX
from quantkit.releases.quality import Calibration
from quantkit.reporting.llama_memory import UBATCH
from quantkit.reporting.table import memory_of
from quantkit.source.gguf_set import open_gguf_set
from quantkit.source.location import Source, SourceLike
from quantkit.storage.os_files import real
from quantkit.storage.whole import (
    made_directories,
    make_directory,
    replace_file,
    write_text,
)

Ask = Callable[..., object]
Look = Callable[[Sequence[KeyValue]], None]  # at the keys of a file before it is made
SELF = "self"  # the word for no text
OWN = "text of its own"  # what the matrix says that it was made with, where that is so
MOST = 256  # chunks, which are sequences to llama.cpp (LLAMA_MAX_SEQ)
OURS = 200_000_000  # bytes of both processes, and of sums
TYPE = "Q8_0"  # of the file that is made of a checkpoint, unless another is asked for


def make(
    source: SourceLike,
    texts: Sequence[Path],
    output: Path,
    options: Options | None = None,
    *,
    with_type: str | None = None,
    reading: Reading = AS_IT_IS,
    run: Run,
) -> Measured:
    """Make the matrix of a GGUF file, or of a checkpoint by way of a file of `with_type` (TYPE),
    from texts, or (none given) from text that the model writes itself.

    That file lies in a hidden directory beside the output until the matrix is there. Raises as
    `measure` does, for a checkpoint what quantizing it raises, and UsageError: a GGUF file, which
    is read as it is, was to be read otherwise.
    """
    check_matrix(output, run.force or output.with_name(f"{output.name}.partial").exists())
    source, options, texts = Source.parse(source), options or Options(), _given(texts)
    if not source.is_checkpoint:
        _check_file(source, with_type, reading)
    if options.nextn:  # before a file is made
        ahead.wanted(_ahead(open_source(source, reading)), source)
    made, look = made_directories([output.parent]), _look_at(texts, options)
    with made, as_file(source, with_type or TYPE, output, reading, run, look) as model:
        if run.memory:
            at_once = chunks_at_once(model, options.context, run.memory, options.nextn)
            options = replace(options, at_once=at_once)
        return _measured(model, texts, output, options, run)


def _given(texts: Sequence[Path]) -> Sequence[Path]:
    """The texts, of which the word `self` is none, unless there is a file of that name. Raises
    SourceNotFound, ImatrixError: one that is empty, or not UTF-8, before a model is made for it."""
    if list(texts) == [Path(SELF)] and not Path(SELF).exists():
        return ()
    for path in texts:
        check_text(path)
    return texts


def _check_file(source: Source, with_type: str | None, reading: Reading) -> None:
    """Refuse what a GGUF file cannot be asked for, and one that is no model."""
    if with_type is not None:
        raise UsageError(f"{source}: a GGUF file is read as it is; --with goes with a checkpoint")
    if reading != AS_IT_IS:
        raise UsageError(
            f"{source}: a GGUF file is read as it is; make the model otherwise first (quantkit "
            "quantize), or give the checkpoint"
        )
    if not source.address and read_header(source.local()).get("general.type") == "imatrix":
        raise UnsupportedSource(f"{source} is an importance matrix already; give a model")


def _ahead(model: Model) -> ahead.Found:
    return ahead.found(model.arch, model.kv, model.infos)


def chunks_at_once(model: Path, context: int, most: int, nextn: bool = False) -> int:
    """Chunks that go through a layer together within `most` bytes: 0, as llama-imatrix has it,
    where the whole model is there at once; of one that is larger, as many as there is room for, so
    that its weights come from the disk seldom. Raises UsageError."""
    header, tensors = open_gguf_set(model)
    need_of = memory_of(header, tensors)
    tables = (t.shape for t in tensors if t.name == "token_embd.weight")
    vocabulary, width = next(tables, (0, 0))
    sizes = [tensor_bytes(t.shape, t.ggml.name) for t in tensors]
    largest = max(sizes)  # stays while it is computed with

    def taken(chunks: int, batch: int) -> int:
        need = need_of(chunks * context, batch)
        logits = 4 * vocabulary * chunks * context
        # what runs ahead has as much again, at most, but for the cache of all other layers
        twice = need.compute + logits + 8 * width * chunks * context if nextn else 0
        return OURS + need.copies + need.cache + need.compute + need.rest + logits + twice

    if sum(sizes) + taken(usual(context, nextn), UBATCH) <= most:
        return 0
    counts = range(1, MOST + 1)
    fit = bisect_right(counts, most - largest, key=lambda n: taken(n, n * context))
    if not fit:
        least = (largest + taken(1, context)) / 1e6
        raise UsageError(
            f"--memory {most / 1e6:.0f}MB is too little: a chunk of {context} tokens takes "
            f"{least:.0f}MB; give more, or a smaller --ctx"
        )
    return fit


def _measured(
    model: Path,
    texts: Sequence[Path],
    output: Path,
    options: Options,
    run: Run,
    made_from: str = "",
) -> Measured:
    """From texts, or (none given) from what the model writes, which lies in a hidden directory
    beside the output until the matrix is there."""
    place = output.with_name(f".{output.name}.text")
    names = [p.name if made_from else str(p) for p in texts]  # what is published has no paths
    if not texts:
        make_directory(place)
        values = {item.key: item.value for item in read_header(model).kv}
        texts = own_text.write(
            model,
            place,
            own_text.CHUNKS,
            options.context + 1,
            _beginnings(values),
            threads=run.threads,
            progress=run.progress,
        )
        names, options = [OWN] * len(texts), replace(options, special=True)
    made = measure(
        model,
        texts,
        output,
        options,
        names=names,
        made_from=made_from,
        threads=run.threads,
        force=run.force,
        progress=run.progress,
    )
    shutil.rmtree(place, ignore_errors=True)
    return made


def _look_at(texts: Sequence[Path], options: Options) -> Look:
    """Whether texts are long enough, by the keys of a file that is to be made."""

    def look(kv: Sequence[KeyValue]) -> None:
        if not texts:  # the model writes as much as is needed
            return
        with tempfile.TemporaryDirectory(prefix="quantkit-") as place:
            vocabulary = Path(place) / "vocabulary.gguf"
            replace_file(vocabulary, [header_bytes(kv, [])])
            check_length(vocabulary, texts, list(map(str, texts)), options)

    return look


@contextmanager
def as_file(
    source: Source, with_type: str, output: Path, reading: Reading, run: Run, look: Look
) -> Iterator[Path]:
    """The source as a file that llama.cpp reads. What is made of a checkpoint stays beside `output`
    if the work is interrupted, and is used again; its keys are looked at before it is made."""
    directory = output.with_name(f".{output.name}.model")
    if not source.is_checkpoint:
        if source.address:
            raise UnsupportedSource(f"{source}: llama.cpp reads files on this machine; download it")
        path = source.local()
        yield path.with_name(split_siblings(path.name)[0])
        return
    path, note = directory / "model.gguf", directory / "made-from"
    job = jobs.prepare(source, [with_type], path, reading=reading)
    identity = identities(job.plan, job.importance)[path]
    made_from = f"{identity.plan} {identity.source}"
    if not (path.exists() and note.exists() and note.read_text() == made_from):
        if note.exists() and note.read_text() != made_from:
            shutil.rmtree(directory)
        check_outputs(job.plan, force=True)
        look(job.plan.files[0].kv)
        make_directory(directory)
        write_text(note, made_from)
        if not path.exists():
            jobs.carry_out(job, replace(run, force=True, dry=False, cluster=None))
    yield path
    shutil.rmtree(directory)


def auto(
    source: SourceLike,
    calibration: Sequence[Path],
    directory: Path,
    reading: Reading,
    run: Run,
    ask: Ask | None = None,
) -> Imatrix:
    """A matrix for a set of files in `directory`, from texts, or (none given) from text that the
    model writes itself. One that an earlier run made so is used again.

    It is of the whole model, whatever experts are to be kept, and of the layers that predict
    further tokens where llama.cpp runs them. `ask` is given, before the work, a matrix with data
    for all that calibration can see, and raises what else would be found out after it. Raises as
    `make` does; UsageError: a dry run would need it.
    """
    source, calibration = Source.parse(source), _given(calibration)
    reading = replace(reading, keep_experts=())
    model = open_source(source, reading)
    output = directory / f"{stem(model)}{MATRIX}"
    options = Options(nextn=not _ahead(model).why)
    made_from = _made_from(source, calibration, reading, options.nextn)
    if output.exists() and not run.force:
        if _note(output) != made_from:
            raise OutputExists(
                f"{output} is of another model or text; remove it, or overwrite it with --force"
            )
        return _published(output)
    if run.dry:
        raise UsageError(
            "--imatrix auto makes the matrix first: run without --dry-run, or make it with "
            "`quantkit imatrix`"
        )
    if ask is not None:
        ask(imatrix=_foreseen(model, output))
    look = _look_at(calibration, options)
    with made_directories([directory]), as_file(source, TYPE, output, reading, run, look) as file:
        _measured(file, calibration, output, options, replace(run, force=True), made_from)
    return _published(output)


def _published(path: Path) -> Imatrix:
    """A matrix that is part of a set: its files name it without the path of this machine, and are
    the same wherever they are made."""
    return replace(read_imatrix(path), name=path.name)


def _foreseen(model: Model, output: Path) -> Imatrix:
    """A matrix that has something for each tensor that calibration can see."""
    unseen = ahead.unseen(model.arch, model.kv, model.infos)
    some = np.float32(2)
    values = {
        t.name: np.broadcast_to(some, ((t.shape[-3] if len(t.shape) > 2 else 1) * t.shape[-1],))
        for t in model.tensors
        if t.name not in unseen
    }
    return Imatrix(f"{output.name}, before it is made", values, (), 0)


def _made_from(source: Source, calibration: Sequence[Path], reading: Reading, nextn: bool) -> str:
    """What tells a matrix from that of another model or text, or one of fewer layers."""
    digest = hashlib.sha256(b"nextn" if nextn else b"")
    if source.is_checkpoint:
        with tempfile.TemporaryDirectory() as place:
            job = jobs.prepare(source, [TYPE], Path(place) / "model.gguf", reading=reading)
            (identity,) = identities(job.plan, {}).values()
        digest.update(f"{identity.plan} {identity.source}".encode())
    else:
        digest.update(sampled(source.local()))
    for path in calibration:
        if not path.is_file():
            raise SourceNotFound(f"{path}: no such file")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _note(path: Path) -> str | None:
    key = f"{PREFIX}made_from"
    return next((str(i.value) for i in read_sums(path).notes if i.key == key), None)


def _beginnings(values: Mapping[str, Any]) -> list[str]:
    """With what a model's own texts begin: nothing, and a question where it has a chat template."""
    turns = turns_of(values) if "tokenizer.chat_template" in values else None
    return ["", turns.start] if turns and turns.start else [""]


def shipped(imatrix: Imatrix, directory: Path, job: Job) -> Calibration:
    """The matrix in the directory of a release, as it was read, and what the outputs of a job take
    of it. Raises SourceError: it is gone."""
    from_hub = imatrix.file.startswith(SCHEME)
    path = hub_file(imatrix.file) if from_hub else Path(imatrix.file)
    sums, name = read_sums(path), stem(job.model)
    target = directory / (f"{name}.imatrix.dat" if sums.is_dat else f"{name}{MATRIX}")
    if real(path) != real(target):
        replace_file(target, [path.read_bytes()])
    made = [t for output in job.plan.outputs for t in output.by_name.values()]
    using = {t.name for t in made if takes_importance(t.format)}
    covered = using & job.importance.keys()
    # calibration does not see embedding and output
    wanted = covered | {n for n in using if category(n) not in ("token_embd", "output")}
    told = routing(sums.entries).values()
    return Calibration(
        target.name,
        hashlib.sha256(target.read_bytes()).hexdigest(),
        tuple(dict.fromkeys(sums.datasets)),
        sums.chunks,
        len(covered),
        len(wanted),
        sum(r.tokens.size for r in told),
        sum(len(r.below(1)) for r in told),
    )
