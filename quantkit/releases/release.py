"""A release: a directory of GGUF files made from one read of the source, and what goes with them.

Files that are there and right are kept, so that the same command resumes where it was stopped, and
mends what was damaged since.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit import __version__
from quantkit.errors import UsageError
from quantkit.execution.journal import model_digest
from quantkit.execution.outputs import check_names, check_outputs
from quantkit.execution.stages import default_threads
from quantkit.execution.sums import FileSums, NoteSums
from quantkit.hub import push
from quantkit.jobs import ONCE, Job, Run, carry_out, prepare
from quantkit.loading.kinds import PREFIX
from quantkit.model.open import AS_IT_IS, Reading
from quantkit.planning.build import PLAIN, Request
from quantkit.planning.plan import Plan, PlannedFile
from quantkit.recipes.file_types import RELEASE_TYPES, find_recipe
from quantkit.releases import beside, checksums, importance, manifest, previous
from quantkit.releases.by_type import errors_of, in_order, rows_of
from quantkit.releases.manifest import BegunFile, FileRecord, MadeFrom, Manifest
from quantkit.releases.names import stem as stem
from quantkit.releases.projector import check_has_words, check_is_model, identified, projector_job
from quantkit.releases.quality import Test, scores
from quantkit.reporting import inspection
from quantkit.reporting.inspection import Description
from quantkit.reporting.numbers import gigabytes
from quantkit.reporting.table import Row, html_table
from quantkit.source.location import Source, SourceLike
from quantkit.storage.whole import make_directory, write_text

if TYPE_CHECKING:
    from quantkit.calibration.imatrix import Imatrix

NOTHING_LEFT = "nothing would be left of the release; name types, or remove its directory"


@dataclass(frozen=True)
class Release:
    """What a run leaves, or (dry) would leave. `states` say of each file, by name, whether it was
    made, kept, or made again because it was damaged; `notes` are for people; `pushed` names the
    files that were sent to the Hub."""

    directory: Path
    manifest: Manifest
    rows: Sequence[Row]
    states: Mapping[str, str]
    notes: Sequence[str] = ()
    pushed: Sequence[str] = ()

    def _repr_html_(self) -> str:
        lines = [
            (f.name, f.type, gigabytes(f.nbytes), self.states[f.name]) for f in self.manifest.files
        ]
        return html_table(("File", "Type", "Size", "State"), lines)


def release(
    source: SourceLike,
    directory: Path,
    types: Sequence[str] = RELEASE_TYPES,
    *,
    request: Request = PLAIN,
    imatrix: Imatrix | None = None,
    reading: Reading = AS_IT_IS,
    context: int | None = None,
    base_model: str | None = None,
    target: push.HubTarget | None = None,
    share: tuple[int, int] | None = None,
    join: Sequence[Path] = (),
    drop: Sequence[str] = (),
    test: Test | None = None,
    run: Run = ONCE,
) -> Release:
    """Make every type of a source in `directory`, with card, page, checksums and manifest.

    The release holds what earlier runs made, too (in the directory, or in the repository of a
    push), as far as it is whole; but for the types to `drop`, whose files are removed. The table's
    Max RAM is for `context` tokens; `base_model` is the model's own name on the Hub (ORG/NAME), if
    it is there; with a `target`, the release is pushed. A `share` (which, of how many) makes only
    some of the files, and no card: a run that is given the directories of all shares in `join`
    makes it. A `test` measures the files in llama.cpp. Raises QuantkitError; OtherRelease if a
    directory holds another release, before anything is touched.
    """
    source = Source.parse(source)
    for name in (base_model, target.repo if target else None):
        if name is not None:
            push.check_name(name)
    check_is_model(source)
    if target and not run.dry:
        push.check_login(target)
    earlier = previous.read(directory, join, anew=run.force)
    previous.check_place(source, directory, earlier, run.force)
    if target and not share:
        earlier = replace(earlier, published=previous.read_published(target))

    def plan(kinds: Sequence[str]) -> Job:
        return prepare(
            source, kinds, directory, request=request, imatrix=imatrix, reading=reading, name=stem
        )

    drop = [find_recipe(kind).name for kind in drop]
    job, kinds = plan_types(plan, types, drop, earlier)
    check_has_words(source, job.model.kv)
    encoders, lacking = projector_job(source, directory, job.model.name, reading)
    if lacking:
        job = replace(job, model=replace(job.model, notes=(*job.model.notes, lacking)))
    jobs = [job, *([encoders] if encoders else [])]
    description = inspection.describe(job.model, source, reading.keep_experts)
    this, plans = _begin_manifest(source, jobs, description)
    if kinds and encoders:
        kinds = (*kinds, *(output.type for output in encoders.plan.outputs))
    if run.force:
        earlier = previous.begun_anew(earlier, this, kinds)
    whole = earlier.whole
    this = replace(
        this,
        base_model=base_model or source.model_on_hub or (whole.base_model if whole else None),
        repo=target.repo if target else whole.repo if whole else None,
    )
    if not kinds:
        jobs, plans = [replace(each, plan=_part(each.plan, frozenset())) for each in jobs], []
    previous.check_same(earlier, this, plans)
    earlier = previous.comparable(earlier, this, plans)
    others, dropped = ({}, ()) if share else previous.other_files(earlier, kinds, drop)
    if share:
        mine = shared([each.plan for each in jobs], *share)
        jobs = [replace(each, plan=_part(each.plan, mine)) for each in jobs]
        names = {path.name for path in mine}
        plans = [begun for begun in plans if begun.name in names]
    if run.dry:
        dry = _dry_run(directory, jobs, this, plans, others, earlier, target, run)
        return replace(dry, rows=rows_of(dry.manifest, jobs, context))
    if target:
        push.create(target)
    made = _make_files(directory, jobs, this, plans, others, earlier, target, run)
    this = made.manifest
    if not (this.texts or share):
        raise UsageError(NOTHING_LEFT)
    rows = rows_of(this, jobs, context)
    uploads = [push.Upload(directory / f.name, f.sha256) for f in this.files]
    make_directory(directory)
    if share:
        record = manifest.as_json(replace(this, begun=tuple(plans)))
        write_text(manifest.partial_path(directory), record)
    else:
        this = replace(this, errors=errors_of(this.texts, jobs[0], plan, earlier, run))
        first = {kind: directory / this.first_file(kind) for kind in this.texts}
        this = replace(this, scores=scores(test, whole.scores if whole else None, first))
        if imatrix:
            matrix = importance.shipped(imatrix, directory, job)
            this = replace(this, imatrix=matrix)
            uploads.append(push.Upload(directory / matrix.name, matrix.sha256))
        if this.made_from.quantized:  # what the type would be good for is not known
            rows = [
                replace(row, use_case=this.use_case(row.type)) if row.type in this.texts else row
                for row in rows
            ]
        written = beside.write(directory, this, rows, description, job.model)
        for name in dropped:
            (directory / name).unlink(missing_ok=True)
        uploads += [push.Upload(directory / name) for name in written]
        dropped = (*dropped, *(name for name in previous.BESIDE if name not in written))
    sent = push.push(target, uploads, dropped, run.progress) if target else []
    return replace(made, manifest=this, rows=rows, pushed=sent)


def plan_types(
    plan: Callable[[Sequence[str]], Job],
    types: Sequence[str],
    drop: Sequence[str],
    earlier: previous.Earlier,
) -> tuple[Job, tuple[str, ...]]:
    """The job of the types that are asked for, and their names. Where none is, since some are only
    to be dropped, the job is of one that stays: the model is to be known. Raises UsageError."""
    previous.check_drop(earlier, drop)
    staying = [
        r.type
        for r in earlier.records.values()
        if r.type not in drop and not r.type.startswith(PREFIX)
    ]
    if not types and not staying:
        raise UsageError(NOTHING_LEFT)
    job = plan(types or staying[:1])
    kinds = tuple(output.type for output in job.plan.outputs)
    if both := set(kinds) & set(drop):
        raise UsageError(f"{min(both)} is to be made and to be dropped; say one of both")
    return job, kinds if types else ()


def parse_share(text: str) -> tuple[int, int]:
    """`3/16` as (3, 16). Raises UsageError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"{text!r} is not a share, such as 3/16: the third of sixteen")
    return int(match[1]), int(match[2])


def shared(plans: Sequence[Plan], which: int, of: int) -> frozenset[Path]:
    """The files of one share. They hold about the same part of the model, whatever their type, so
    that shares have little of the source to read twice."""
    places = [
        (n, (i + 0.5) / len(o.files), f.path)
        for n, plan in enumerate(plans)
        for o in plan.outputs
        for i, f in enumerate(o.files)
    ]
    ordered = [path for *_, path in sorted(places)]
    ends = [len(ordered) * i // of for i in (which - 1, which)]
    return frozenset(ordered[slice(*ends)])


def _make_files(
    directory: Path,
    jobs: Sequence[Job],
    this: Manifest,
    plans: Sequence[BegunFile],
    others: Mapping[Path, FileRecord],
    earlier: previous.Earlier,
    target: push.HubTarget | None,
    run: Run,
) -> Release:
    """Make the files that are missing or damaged, hash them, and complete the manifest; `others`
    are files on record that are not planned."""
    planned = {f.path: f for job in jobs for f in job.plan.files}
    threads = run.threads or default_threads()
    check = previous.check_files([*planned, *others], earlier, threads, run.progress)
    lacking = check.make - (check.damaged & others.keys())
    away = _on_the_hub({p for p in lacking if p.name in earlier.records}, earlier, target)
    records = {**check.kept, **away}
    begun = {directory / f.name: f for f in plans}
    new = {p: f for p, f in planned.items() if p not in records}
    here = [previous.stat_record(p, record) for p, record in check.kept.items()]
    making = replace(this, begun=tuple(plans), files=(*here, *away.values()))

    def note(path: Path, sums: FileSums) -> None:
        nonlocal making
        records[path] = checksums.record_of(path, begun[path], planned[path], sums)
        making = replace(making, files=(*making.files, previous.stat_record(path, records[path])))
        write_text(manifest.partial_path(directory), manifest.as_json(making))

    parts = [replace(job, plan=_part(job.plan, check.make - away.keys())) for job in jobs]
    _make(parts, check.damaged - others.keys(), directory, making, run, note)
    if lacking_sums := {p: f for p, f in new.items() if p not in records}:
        checksums.hash_files(lacking_sums, threads, run.progress, note)
    here_too = previous.whole_sets(others, records.keys())
    listed = in_order([*planned, *here_too], records) if here_too else list(planned)
    gone = {p: r for p, r in others.items() if p not in records and p not in check.damaged}
    left = tuple(replace(r, seen=None) for r in gone.values()) if this.repo and not target else ()
    this = replace(this, files=tuple(replace(records[p], seen=None) for p in listed), left=left)
    states = {p.name: "made" if p in new else "on the Hub" if p in away else "kept" for p in listed}
    states |= {p.name: "made again" for p in check.damaged & new.keys()}
    notes = [
        f"{p.name} was damaged; it is made again" for p in sorted(check.damaged - others.keys())
    ]
    notes += [
        f"{p.name} is damaged and no part of the release any more; name its type to make it again"
        for p in sorted(check.damaged & others.keys())
    ]
    elsewhere = f"; with --push {this.repo} it is looked for there" if left else ""
    notes += [f"{p.name} is not here, and is not listed{elsewhere}" for p in sorted(gone)]
    return Release(directory, this, (), states, notes)


def _on_the_hub(
    paths: set[Path], earlier: previous.Earlier, target: push.HubTarget | None
) -> dict[Path, FileRecord]:
    """Of files that are on record and not here, those that the target has already."""
    known = {p: replace(earlier.records[p.name], seen=None) for p in paths}
    if target is None or not known:
        return {}
    lacking = push.missing(target, [push.Upload(p, r.sha256) for p, r in known.items()])
    gone = {upload.path for upload in lacking}
    return {p: record for p, record in known.items() if p not in gone}


def _dry_run(
    directory: Path,
    jobs: Sequence[Job],
    this: Manifest,
    plans: Sequence[BegunFile],
    others: Mapping[Path, FileRecord],
    earlier: previous.Earlier,
    target: push.HubTarget | None,
    run: Run,
) -> Release:
    """What a run would leave, as far as can be told without reading the files that are there."""
    sizes = {f.path: f.size for job in jobs for f in job.plan.files}
    sizes |= {p: r.nbytes for p, r in others.items()}
    there = previous.whole_files(sizes)
    away = _on_the_hub({p for p in sizes if p.name in earlier.records}, earlier, target)
    for note in (note for job in jobs for note in job.model.notes):
        run.progress.tell(note)
    known = {name: record.sha256 for name, record in earlier.records.items()}
    records = dict(others)
    for f in plans:
        path, digest = directory / f.name, known.get(f.name, "")
        records[path] = FileRecord(f.name, f.type, sizes[path], digest, (), f.plan)
    here_too = previous.whole_sets(others, there | away.keys())
    planned = [directory / f.name for f in plans]
    listed = in_order([*planned, *here_too], records) if here_too else planned
    states = {
        p.name: "there" if p in there else "on the Hub" if p in away else "to be made"
        for p in listed
    }
    sent = [p.name for p in listed if p not in away] if target else []
    this = replace(this, files=tuple(records[p] for p in listed))
    pushed = sent + [*previous.beside(len(this.texts))] * bool(target)
    return Release(directory, this, (), states, pushed=pushed)


def _begin_manifest(
    source: Source, jobs: Sequence[Job], description: Description
) -> tuple[Manifest, list[BegunFile]]:
    """The manifest before there are files; and every file that is planned. `jobs` begin with the
    text's."""
    identity, made_of = identified(jobs)
    plans = [
        BegunFile(f.path.name, o.type, identity[f.path].plan)
        for job in jobs
        for o in job.plan.outputs
        for f in o.files
    ]
    job, of_any = jobs[0], next(iter(identity.values()))
    this = Manifest(
        quantkit=__version__,
        name=job.model.name,
        source=source.name,
        architecture=job.model.arch,
        parameters=description.parameters,
        experts=description.experts,
        made_from=MadeFrom(
            made_of, of_any.importance, job.plan.quantized_before, model_digest(job.model)
        ),
    )
    return this, plans


def _part(plan: Plan, paths: frozenset[Path]) -> Plan:
    """The part of a plan that makes these files. It keeps all sources, which are part of a file's
    identity in its journal."""

    def wanted(files: Sequence[PlannedFile]) -> tuple[PlannedFile, ...]:
        return tuple(f for f in files if f.path in paths)

    outputs = tuple(replace(o, files=wanted(o.files)) for o in plan.outputs if wanted(o.files))
    held = {name for output in outputs for name in output.by_name}
    segments = {name: rows for name, rows in plan.segments.items() if name in held}
    return replace(plan, outputs=outputs, segments=segments)


def _make(
    jobs: Sequence[Job],
    damaged: frozenset[Path],
    directory: Path,
    making: Manifest,
    run: Run,
    note: NoteSums,
) -> None:
    """Make the files of the plans, and `note` the sums that are taken meanwhile; `damaged` ones are
    removed first."""
    jobs = [job for job in jobs if job.plan.outputs]
    if not jobs:
        return
    for job in jobs:
        check_names(job.plan)
    is_new, goes_on = not directory.exists(), (record := manifest.partial_path(directory)).exists()
    try:
        make_directory(directory)
        for path in damaged:
            path.unlink()
        for job in jobs:
            check_outputs(job.plan, run.force)
        write_text(record, manifest.as_json(making))
        for job in jobs:
            carry_out(job, run, note)
    except BaseException as e:
        if isinstance(e, Exception) and not goes_on:
            previous.forget_unbegun(record, [job.plan for job in jobs])
        if is_new:
            with contextlib.suppress(OSError):
                directory.rmdir()  # if it is empty
        raise
