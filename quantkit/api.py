"""quantkit in Python: a function for each command, with the command's options as arguments.

Paths are strings or `os.PathLike`, sizes bytes or text such as "12GB", importance matrices paths or
what `quantkit.read_imatrix` returned; for `quantize` and `release` also "auto": it is made first,
of the texts of `calibration`, or of text that the model writes itself. All functions raise
`quantkit.errors.QuantkitError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import jobs
from quantkit.calibration.imatrix import Imatrix, read_imatrix
from quantkit.editing.edit import edit as edit
from quantkit.errors import UsageError
from quantkit.gguf.splits import NO_SPLITS, Splits, size_in_bytes
from quantkit.hub.push import HubTarget
from quantkit.model.open import AS_IT_IS, Reading, formats_of
from quantkit.planning.build import Request
from quantkit.progress import SILENT, Progress
from quantkit.recipes.choose import NO_OVERRIDES, Overrides
from quantkit.recipes.file_types import named_types, release_types, with_mixture
from quantkit.releases.manifest import use_of
from quantkit.reporting.table import Table, read_rows
from quantkit.reporting.written import Written
from quantkit.source.gguf_set import model_files
from quantkit.source.location import Source, SourceLike

if TYPE_CHECKING:
    from quantkit.calibration.measure import Measured, Options
    from quantkit.fitting.fit import Fit
    from quantkit.releases.release import Release
    from quantkit.reporting.inspection import Inspection
    from quantkit.reporting.survey import Survey
    from quantkit.verification.verdict import Verdict

StrPath = str | os.PathLike[str]
AUTO = "auto"  # an importance matrix that is made first
Size = int | str  # bytes, or text such as "512MB"


def convert(
    source: SourceLike,
    output: StrPath | None = None,
    *,
    outtype: str = "auto",
    reading: Reading = AS_IT_IS,
    splits: Splits = NO_SPLITS,
    dry_run: bool = False,
    threads: int | None = None,
    memory: Size | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Convert a checkpoint directory or `hf://ORG/MODEL` to GGUF, as llama.cpp's converter would.

    A LoRA adapter's directory (PEFT's) becomes the file that llama.cpp takes with `--lora`; `base`
    of the `reading` is its model, where that is not the one that it names. `output` is a `.gguf`
    path or a directory (default: the current one); `outtype` auto (for an adapter f32), f32, f16,
    bf16, q8_0, tq1_0 or tq2_0. The run stays below `memory` bytes, by default below a gigabyte.
    """
    run = _run(dry_run, threads, memory, force, progress)
    plan = jobs.convert(
        source, _path(output), outtype.lower(), reading=reading, splits=splits, run=run
    )
    return Written(plan)


def quantize(
    source: SourceLike,
    types: str | Iterable[str],
    output: StrPath | None = None,
    *,
    recipe: str | None = None,
    overrides: Overrides = NO_OVERRIDES,
    imatrix: StrPath | Imatrix | None = None,
    imatrix_strict: bool = False,
    calibration: Sequence[StrPath] = (),
    prune_layers: Sequence[int] = (),
    override_kv: Sequence[str] = (),
    allow_requantize: bool = False,
    keep_split: bool = False,
    splits: Splits = NO_SPLITS,
    only_splits: Sequence[int] = (),
    strict: bool = False,
    cluster: str | None = None,
    reading: Reading = AS_IT_IS,
    dry_run: bool = False,
    threads: int | None = None,
    memory: Size | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Quantize a checkpoint directory, a GGUF file or `hf://...`: every type from one read.

    `output` is a `.gguf` path for one type, or a directory (default: the current one) that gets
    `<name>-<TYPE>.gguf` for each. `override_kv` are texts KEY=TYPE:VALUE. `recipe` "moe" divides
    the bytes of each type anew for mixtures of experts; a GGUF file (here or `hf://...`) gives each
    tensor the format that the tensor of its name has there.
    """
    if formats := formats_of(recipe):
        recipe, overrides = None, replace(overrides, formats=formats)
    request = Request(
        overrides,
        splits=splits,
        only_splits=tuple(only_splits),
        keep_split=keep_split,
        allow_requantize=allow_requantize,
        strict=strict,
    )
    run = _run(dry_run, threads, memory, force, progress, cluster)
    place = Path(output or ".")
    place = place.parent if place.suffix == ".gguf" else place
    wanted = with_mixture(_types(types), recipe)
    asked: dict[str, Any] = {"request": request, "prune": prune_layers, "reading": reading}
    asked["override_kv"] = override_kv
    ask = partial(jobs.prepare, source, wanted, **asked)
    matrix = _matrix(source, imatrix, calibration, place, reading, run, ask)
    strict = imatrix_strict
    return Written(
        jobs.quantize(
            source, wanted, _path(output), imatrix=matrix, imatrix_strict=strict, run=run, **asked
        )
    )


def split(
    source: SourceLike,
    output: StrPath | None = None,
    *,
    splits: Splits,
    dry_run: bool = False,
    threads: int | None = None,
    memory: Size | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Cut a GGUF file into splits, its bytes as they are. `output` names them without
    `-00001-of-` (default: the name of the source, in the current directory)."""
    run = _run(dry_run, threads, memory, force, progress)
    return Written(jobs.split(source, _path(output), splits, run))


def merge(
    first: SourceLike,
    output: StrPath,
    *,
    dry_run: bool = False,
    threads: int | None = None,
    memory: Size | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Join a set of splits, of which `first` is any, into the file `output`."""
    run = _run(dry_run, threads, memory, force, progress)
    return Written(jobs.merge(first, Path(output), run))


def plan(
    source: SourceLike,
    types: str | Iterable[str] = (),
    *,
    context: int | None = None,
    ram: Size | None = None,
    disk: Size | None = None,
    allow_requantize: bool = False,
    splits: Splits = NO_SPLITS,
    reading: Reading = AS_IT_IS,
) -> Survey:
    """What `quantize` would make of a source, from headers alone: of all types if none is named.
    Rows are marked with whether `ram` and `disk` have room for them."""
    from quantkit.reporting.survey import survey

    return survey(
        source,
        _types(types),
        context,
        ram=size_in_bytes(ram),
        disk=size_in_bytes(disk),
        reading=reading,
        request=Request(splits=splits, allow_requantize=allow_requantize),
    )


def inspect(source: SourceLike, *, weights: bool = True, progress: Progress = SILENT) -> Inspection:
    """What a model is, and what is wrong with it. With `weights`, every weight is read once."""
    from quantkit.reporting import inspection

    return inspection.inspect(source, weights=weights, progress=progress)


def report(files: StrPath | Iterable[StrPath], *, context: int | None = None) -> Table:
    """The table of a model card for GGUF files (or directories of them), a row for each file or set
    of splits. Max RAM is for `context` tokens (default: the model's own, at most 4096)."""
    paths = [files] if isinstance(files, str | os.PathLike) else list(files)
    models = [file for path in paths for file in model_files(Path(path))]
    return Table(tuple(read_rows(models, context, use_of)))


def fit(
    source: SourceLike,
    *,
    size: Size | None = None,
    ram: Size | None = None,
    bits_per_weight: float | None = None,
    context: int | None = None,
    formats: Sequence[str] | None = None,
    imatrix: StrPath | Imatrix | None = None,
    reading: Reading = AS_IT_IS,
    threads: int | None = None,
    progress: Progress = SILENT,
    ready: Callable[[str], None] = lambda name: None,
) -> Fit:
    """Choose a format for every tensor: the least error within one of `size` (of the file), `ram`
    (to run it, with `context` tokens) and `bits_per_weight`.

    `quantize(source, fit.base, overrides=fit.overrides)` makes the file; `ready(name)` goes before.
    """
    from quantkit.fitting import fit as fitting

    if sum(budget is not None for budget in (size, ram, bits_per_weight)) != 1:
        raise UsageError("give one of --size 12GB, --ram 16GB and --bpw 4.5")
    budget = fitting.Budget(size_in_bytes(size), size_in_bytes(ram), bits_per_weight, context)
    among, matrix = formats or (), _imatrix(imatrix)
    return fitting.fit(
        source, budget, among, imatrix=matrix, reading=reading, threads=threads, progress=progress,
        ready=ready)  # fmt: skip


def imatrix(
    source: SourceLike,
    texts: StrPath | Iterable[StrPath],
    output: StrPath,
    *,
    options: Options | None = None,
    with_type: str | None = None,
    reading: Reading = AS_IT_IS,
    threads: int | None = None,
    memory: Size | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Measured:
    """Make the importance matrix of a GGUF file, or of a checkpoint by way of a file of
    `with_type` (Q8_0), in llama.cpp (needs the `llama` extra): from texts in UTF-8, or, with none
    or "self", from text that the model writes itself.

    `options` are `quantkit.calibration.measure.Options`, by default what llama-imatrix does.
    `memory`: what there is, for a model that may be larger. A run that was stopped goes on.
    """
    from quantkit.releases.importance import make

    given = list(map(Path, [texts] if isinstance(texts, str | os.PathLike) else texts))
    run = _run(False, threads, memory, force, progress)
    return make(source, given, Path(output), options, with_type=with_type, reading=reading, run=run)


def merge_imatrix(
    files: Iterable[StrPath], output: StrPath, *, dat: bool = False, force: bool = False
) -> None:
    """Add importance matrices of one model up, or write one in the other format (`dat`: the older
    one)."""
    from quantkit.calibration.sums import check_matrix, merged, read_sums, write

    path = Path(output)
    check_matrix(path, force)
    write(path, merged([(os.fspath(file), read_sums(file)) for file in files]), dat)


def release(
    source: SourceLike,
    output: StrPath,
    types: str | Iterable[str] | None = None,
    *,
    recipe: str | None = None,
    push: str | HubTarget | None = None,
    discard: bool = False,
    base_model: str | None = None,
    kl: Sequence[StrPath] = (),
    share: tuple[int, int] | None = None,
    join: Sequence[StrPath] = (),
    drop: str | Iterable[str] = (),
    context: int | None = None,
    imatrix: StrPath | Imatrix | None = None,
    calibration: Sequence[StrPath] = (),
    allow_requantize: bool = False,
    splits: Splits = NO_SPLITS,
    reading: Reading = AS_IT_IS,
    dry_run: bool = False,
    threads: int | None = None,
    memory: Size | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Release:
    """Make every type of a source in the directory `output`, with model card, page, Modelfile,
    checksums and manifest; the same call again makes only what is missing or damaged.

    `push` (ORG/NAME) brings it to the Hub; with `discard` no file stays here once it is there.
    `share` (which, of how many) makes only some of the files, and no card: `join` names the
    directories of all shares. What earlier runs made stays in the release, but for the types to
    `drop`; without `types`, those to drop are all that changes. `kl` are texts over which the KL
    divergence of each file from the source is measured, for the card (the `llama` extra).
    """
    from quantkit.releases.release import release as make
    from quantkit.releases.small_disk import release_in_parts
    from quantkit.verification.llama_run import release_test

    target = HubTarget(push) if isinstance(push, str) else push
    if discard and (target is None or share or join):
        raise UsageError("--discard goes with --push, and without --share and --join")
    if kl and (discard or share or join):
        raise UsageError("--kl needs all files here: without --discard, --share and --join")
    gone = _types(drop)
    if gone and share:
        raise UsageError("--drop goes without --share")
    overrides = Overrides(formats=formats_of(recipe))
    recipe = None if overrides.formats else recipe
    usual = [] if gone else release_types(recipe)
    wanted = usual if types is None else with_mixture(_types(types), recipe)
    if overrides.formats and len(wanted) != 1:
        raise UsageError("a file as --recipe is for one type; name it, for instance --type Q4_K_M")
    directory, run = Path(output), _run(dry_run, threads, memory, force, progress)
    texts = list(map(Path, kl))
    test = release_test(source, texts, reading, directory, threads, progress) if kl else None
    request = Request(overrides, splits=splits, allow_requantize=allow_requantize)
    ask = partial(jobs.prepare, source, wanted, request=request, reading=reading)
    options: dict[str, Any] = {
        "request": request,
        "imatrix": _matrix(source, imatrix, calibration, directory, reading, run, ask),
        "reading": reading,
        "context": context,
        "base_model": base_model,
        "drop": gone,
        "run": run,
    }
    if target and discard:
        return release_in_parts(source, directory, wanted, target=target, **options)
    options |= {"share": share, "join": list(map(Path, join)), "test": test}
    return make(source, directory, wanted, target=target, **options)


def verify(
    file: StrPath,
    against: SourceLike | None = None,
    *,
    imatrix: StrPath | Imatrix | None = None,
    run: bool = False,
    prompt: str = "Once upon a time",
    kl: Sequence[StrPath] = (),
    context: int = 256,
    reading: Reading = AS_IT_IS,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Verdict:
    """Verify a GGUF file (or the set of splits that it is one of): its bytes, structure, metadata
    and weights, `against` the source that it was made from.

    `run` completes a prompt in llama.cpp; `kl` are texts over which the KL divergence from the
    source is taken, with `context` tokens (both need the `llama` extra).
    """
    from quantkit.verification import llama_run
    from quantkit.verification.verify import verify as judge

    if against is None and (kl or imatrix):
        raise UsageError("--kl and --imatrix need --against SOURCE")
    path, source = Path(file), None if against is None else Source.parse(against)
    verdict = judge(
        path, source, reading=reading, imatrix=_imatrix(imatrix), threads=threads, progress=progress
    )
    if run and verdict.sound:
        verdict = llama_run.run(verdict, path, prompt, threads)
    if kl and source is not None and verdict.sound:
        texts = list(map(Path, kl))
        rows = llama_run.divergence(path, source, texts, context, reading, threads, progress)
        verdict = replace(verdict, divergences=rows)
    return verdict


def _path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)


def _types(types: str | Iterable[str]) -> list[str]:
    return named_types([types] if isinstance(types, str) else types)


def _imatrix(imatrix: StrPath | Imatrix | None) -> Imatrix | None:
    return imatrix if imatrix is None or isinstance(imatrix, Imatrix) else read_imatrix(imatrix)


def _matrix(
    source: SourceLike,
    imatrix: StrPath | Imatrix | None,
    calibration: Sequence[StrPath],
    *where: Any,
) -> Imatrix | None:
    """The matrix that is given; of "auto", the one that is made for a source."""
    if imatrix == AUTO:
        from quantkit.releases.importance import auto

        return auto(source, list(map(Path, calibration)), *where)
    if calibration:
        raise UsageError("--calibration goes with --imatrix auto")
    return _imatrix(imatrix)


def _run(
    dry_run: bool,
    threads: int | None,
    memory: Size | None,
    force: bool,
    progress: Progress,
    cluster: str | None = None,
) -> jobs.Run:
    return jobs.Run(force, dry_run, threads, size_in_bytes(memory), cluster, progress)
