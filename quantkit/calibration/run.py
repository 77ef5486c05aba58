"""A calibration run: text through a model in llama.cpp, and what it multiplies, summed up.

A program of its own (`measure.py` starts it), since llama.cpp ends the process that it is in where
it asserts something. It is asked on stdin, tells how far it is on stdout, a line of JSON each time,
and ends with the one that asked. What is done lies on the disk every few chunks, in one file that
is replaced whole: sums, counts, and where the run stands. The same question goes on from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import exp, log, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.calibration.collector import Collector, few, lacking
from quantkit.calibration.sums import Entry, Sums, as_gguf, counted, read_exact, write
from quantkit.errors import ImatrixError, JournalMismatch, LlamaError, OutputInUse, QuantkitError
from quantkit.gguf.container import KeyValue, array, read_header, scalar, string, uint32
from quantkit.llama import apart
from quantkit.llama.ahead import Ahead
from quantkit.llama.llama_cpp import Llama, library
from quantkit.storage import os_files
from quantkit.storage.whole import output_error, replace_file

Ids = NDArray[np.int32]
BATCH = 2048  # tokens that are decoded at once (llama-imatrix's default)
PREFIX = "quantkit.imatrix."
_UINT64, _FLOAT64, _STRING = 10, 12, 8  # GGUF's numbers for these kinds
_WIDENED = 16  # times as much text as the least tokens are, before routing is widened again
_ALL = 1 << 30


@dataclass(frozen=True)
class Texts:
    """Texts, and how they are cut into chunks of `context` tokens, from chunk `first` on. Paths are
    absolute; `datasets` as they are named in the matrix; `model` need have nothing but its
    vocabulary."""

    model: str
    texts: tuple[str, ...]
    datasets: tuple[str, ...]
    context: int
    first: int
    special: bool


@dataclass(frozen=True)
class Task(Texts):
    """What is to be done with that many `chunks`. `least`: tokens that every expert is to see;
    `at_once`: chunks that go through a layer together (0: as llama-imatrix has it); `state`: where
    the run keeps what is done, every `every` chunks; `copies`: a copy of the matrix every so many
    (0: none); `made_from`: noted in the matrix, if it is anything; `nextn`: how many layers that
    predict further tokens are run, too, and `to_the_end`: whether to logits of theirs."""

    output: str
    state: str
    identity: str
    chunks: int | None
    outputs: bool
    perplexity: bool
    threads: int | None
    at_once: int
    least: int
    every: int
    copies: int
    dat: bool
    made_from: str
    nextn: int
    to_the_end: bool


@dataclass
class Standing:
    """How far a run is: the stage (0: the text that is asked for; 1: more of it; then, with twice
    as many experts a token each time), chunks done of it, and what the text surprised the model
    by, in nats, over how many predictions. `came`: by stage, its experts a token and chunks."""

    stage: int = 0
    done: int = 0
    nats: float = 0.0
    predictions: int = 0
    came: list[tuple[int, int]] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)  # experts that only a wider routing reached

    def notes(self) -> tuple[KeyValue, ...]:
        """As metadata of the file that a run keeps."""
        return (
            uint32(PREFIX + "stage", self.stage),
            uint32(PREFIX + "done", self.done),
            scalar(PREFIX + "nats", _FLOAT64, self.nats),
            scalar(PREFIX + "predictions", _UINT64, self.predictions),
            array(PREFIX + "came", [json.dumps(pair) for pair in self.came], _STRING),
            array(PREFIX + "reached", sorted(self.reached), _STRING),
        )

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Standing:
        """From that metadata."""
        return cls(
            kept["stage"],
            kept["done"],
            kept["nats"],
            kept["predictions"],
            [tuple(json.loads(text)) for text in kept["came"]],
            set(kept["reached"]),
        )


def usual(context: int, nextn: int = 0) -> int:
    """Chunks that llama-imatrix has in one batch: one, where layers look ahead."""
    return 1 if nextn else max(1, BATCH // context)


def lock_path(state: Path) -> Path:
    """What keeps two runs from making one matrix."""
    return state.with_name(f".{state.name}.lock")


def run(task: Task) -> Iterator[dict[str, Any]]:
    """Do it, and tell how far it is. The matrix is written at the end.

    Raises LlamaError, ImatrixError (text that is too short), JournalMismatch (what was begun there
    is another matrix), OutputInUse, OSError.
    """
    output, state = Path(task.output), Path(task.state)
    lock = lock_path(state)
    try:
        held = os_files.open_locked(lock)
    except BlockingIOError:
        raise OutputInUse(f"{output} is being made by another run") from None
    except OSError as e:
        raise output_error(e, output) from None
    try:
        known, at = _kept(task, state)
        chunks = _chunks(task)
        used, experts, key = _experts(Path(task.model))
        for stage in _stages(task, len(chunks), used, experts):
            if stage.number < at.stage:
                continue
            if stage.number > at.stage:
                at.stage, at.done = stage.number, 0
            known = yield from _pass(task, stage, chunks, known, at, key)
        matrix = _matrix(task, known, at)
        _save(task, state, matrix, at)
        write(output, matrix, task.dat)
        state.unlink()
        yield {"counts": _told(known, at)}
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)


def looked_at(texts: Texts) -> Iterator[dict[str, Any]]:
    """How many chunks there are. Raises LlamaError, ImatrixError: a text fills none."""
    yield {"chunks": len(_chunks(texts))}


@dataclass(frozen=True)
class _Stage:
    """Chunks `first` to `last` with `used` experts a token (0: the model's own); `needy`: only for
    as long as experts lack tokens, `only`: and only those are counted."""

    number: int
    first: int
    last: int
    used: int = 0
    needy: bool = True
    only: bool = True


def _stages(task: Task, there: int, used: int, experts: int) -> Iterator[_Stage]:
    wanted = min(there, task.chunks or there)
    yield _Stage(0, 0, wanted, needy=False, only=False)
    if not task.least or not experts:
        return
    yield _Stage(1, wanted, there, only=False)
    enough = -(-task.least // task.context) * _WIDENED
    number = 2
    while used < experts:
        used = min(2 * used, experts)
        yield _Stage(number, 0, there if used == experts else min(there, enough), used)
        number += 1


def _pass(
    task: Task, stage: _Stage, chunks: Ids, known: Mapping[str, Entry], at: Standing, key: str
) -> Generator[dict[str, Any], None, Mapping[str, Entry]]:
    """One stage, from where it stands. Returns the sums, by `yield from`."""
    first = stage.first + at.done
    wanted = lacking(known, task.least) if stage.needy else None
    if first >= stage.last or (wanted is not None and not wanted):
        return known
    together = usual(task.context, task.nextn)
    if task.at_once:
        together = min(task.at_once, stage.last - first)
    collector = Collector(library(), known, task.outputs, wanted if stage.only else None)
    saved = at.done
    with ExitStack() as open_now:
        model = open_now.enter_context(
            Llama(
                Path(task.model),
                task.context,
                together,
                task.threads,
                at_once=together * task.context if task.at_once else None,
                watch=collector.watch,
                overrides={key: stage.used} if stage.used else {},
                ahead=bool(task.nextn),
            )
        )
        ahead = open_now.enter_context(Ahead(model, task.to_the_end, BATCH)) if task.nextn else None
        for i in range(first, stage.last, together):
            part = chunks[i : min(i + together, stage.last)]
            surprise = _decoded(task, model, ahead, collector, part, i)
            if not stage.number and task.perplexity:
                at.nats += surprise
                at.predictions += len(part) * (task.context - task.context // 2 - 1)
            at.done += len(part)
            known = collector.entries()
            missing = lacking(known, task.least) if stage.needy else {}
            _note(at, stage, wanted, missing)
            if at.done - saved >= task.every:
                saved = at.done
                _save(task, Path(task.state), _matrix(task, known, at), at)
            if task.copies and not stage.number and _passes(at.done, len(part), task.copies):
                copy = Path(f"{task.output}.at_{at.done // task.copies * task.copies}")
                write(copy, _matrix(task, known, at), task.dat)
            yield _progress(at, stage, few(missing.values()))
            if stage.needy and not missing:
                break
            if stage.only:
                collector.wanted = missing
    return known


def _passes(done: int, part: int, step: int) -> bool:
    return done // step > (done - part) // step


def _note(
    at: Standing,
    stage: _Stage,
    wanted: Mapping[str, NDArray[np.bool_]] | None,
    missing: Mapping[str, NDArray[np.bool_]],
) -> None:
    """What came in this stage."""
    at.came = [*at.came[: stage.number], *[(0, 0)] * (stage.number - len(at.came))]
    at.came.append((stage.used, at.done))
    if stage.only and wanted is not None:
        for name, those in wanted.items():
            left = missing.get(name)
            now = those if left is None else those & ~left
            at.reached |= {f"{name} {expert}" for expert in np.flatnonzero(now).tolist()}


def _decoded(
    task: Task, model: Llama, ahead: Ahead | None, collector: Collector, part: Ids, number: int
) -> float:
    """A batch of chunks `[n, context]` through the model; by how much their second halves surprised
    it, in nats. Raises LlamaError: with the chunk, where something is not a number."""
    given = part.copy()
    if model.bos is not None:
        given[:, 0] = model.bos
    logits = _read(model, ahead, collector, given)
    if collector.trouble is not None:
        trouble = collector.trouble
        if not isinstance(trouble, QuantkitError):
            raise trouble
        for offset, row in enumerate(given):
            collector.trouble = None
            _read(model, ahead, collector, row[None])
            if collector.trouble is not None:
                raise LlamaError(f"chunk {task.first + number + offset + 1} of the text: {trouble}")
        raise LlamaError(f"chunk {task.first + number + 1} of the text or one after it: {trouble}")
    if not task.perplexity:
        return 0.0
    half = task.context // 2
    return sum(
        _surprise(each[half:-1], ids[half + 1 :]) for each, ids in zip(logits, part, strict=True)
    )


def _read(model: Llama, ahead: Ahead | None, collector: Collector, rows: Ids) -> Any:
    """Tokens `[n, context]` through all layers, unless there is trouble; the logits."""
    logits = model.decode(rows, 0)
    if ahead is not None and collector.trouble is None:
        collector.outputs, kept = False, collector.outputs  # which is counted for the model's own
        ahead.read(rows)
        collector.outputs = kept
    return logits


def _surprise(logits: NDArray[np.float32], ids: Ids) -> float:
    """Logits float32 `[n, n_vocab]` and the n tokens that came: nats in all."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    came = shifted[np.arange(len(ids)), ids]
    np.exp(shifted, out=shifted)
    return float((np.log(shifted.sum(axis=1, dtype=np.float64)) - came).sum())


def _chunks(task: Texts) -> Ids:
    """Token ids `[chunks, context]`, text after text; what does not fill a chunk is left out.
    Raises ImatrixError: a text that fills none."""
    parts = []
    with Llama(Path(task.model), 0) as model:
        for text, name in zip(task.texts, task.datasets, strict=True):
            data = Path(text).read_bytes().removesuffix(b"\n")
            ids = model.tokenize(data, special=True, parse=task.special)
            if len(ids) < task.context:
                raise ImatrixError(
                    f"{name}: {len(ids)} tokens; a chunk is {task.context}: give more text, or a "
                    "smaller --ctx"
                )
            parts.append(ids[: len(ids) // task.context * task.context].reshape(-1, task.context))
    chunks = np.concatenate(parts)[task.first :]
    if not len(chunks):
        raise ImatrixError(f"the texts have {task.first} chunks or fewer; --from-chunk leaves none")
    return chunks


def _experts(model: Path) -> tuple[int, int, str]:
    """Experts a token, experts, and the key of the former; zeros where it is no mixture."""
    values = {i.key: i for i in read_header(model).kv}
    arch = values["general.architecture"].value
    key = f"{arch}.expert_used_count"
    if key not in values or f"{arch}.expert_count" not in values:
        return 0, 0, key
    return int(values[key].value), int(values[f"{arch}.expert_count"].value), key


def _kept(task: Task, state: Path) -> tuple[Mapping[str, Entry], Standing]:
    """What an earlier run left, and where it stood."""
    try:
        kept = read_exact(state)
    except QuantkitError:  # there is none, or none that can be read
        return {}, Standing()
    values = {i.key.removeprefix(PREFIX): i.value for i in kept.notes}
    try:
        at = Standing.of(values)
    except (KeyError, TypeError, ValueError):
        return {}, Standing()
    if values.get("identity") != task.identity:
        raise JournalMismatch(
            f"{state.name} was begun with another model, text or options; --force begins anew"
        )
    return kept.entries, at


def _save(task: Task, state: Path, matrix: Sums, at: Standing) -> None:
    notes = (string(PREFIX + "identity", task.identity), *at.notes())
    replace_file(state, as_gguf(replace(matrix, notes=notes), exact=True))


def _matrix(task: Task, known: Mapping[str, Entry], at: Standing) -> Sums:
    """As it is written; with what came how, where more was done than was asked for."""
    notes: tuple[KeyValue, ...] = ()
    if task.made_from:
        notes = (string(PREFIX + "made_from", task.made_from),)
    if any(chunks for _, chunks in at.came[1:]):
        text = [f"{used or 'own'} experts a token: {n} chunks" for used, n in at.came[1:] if n]
        notes += (
            uint32(PREFIX + "min_tokens", task.least),
            array(PREFIX + "further", text, _STRING),
            array(PREFIX + "widened", sorted(at.reached), _STRING),
        )
    return counted(Sums(known, task.datasets, task.context, nextn=task.nextn, notes=notes))


def _progress(at: Standing, stage: _Stage, missing: int) -> dict[str, Any]:
    mean = at.nats / at.predictions if at.predictions else nan
    return {
        "stage": stage.number,
        "used": stage.used,
        "done": at.done,
        "total": stage.last - stage.first,
        "perplexity": exp(mean) if mean < log(_ALL) else None,
        "missing": missing,
    }


def _told(known: Mapping[str, Entry], at: Standing) -> dict[str, Any]:
    mean = at.nats / at.predictions if at.predictions else nan
    return {
        "perplexity": exp(mean) if mean < log(_ALL) else None,
        "came": at.came,
        "reached": sorted(at.reached),
    }


def main() -> None:
    """Do the task on stdin, or look at its texts."""

    def work(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for name in ("texts", "datasets"):
            task[name] = tuple(task[name])
        return run(Task(**task)) if "output" in task else looked_at(Texts(**task))

    apart.serve(work)


if __name__ == "__main__":
    main()
