"""A release: a directory of GGUF files made from one read of the source, and what goes with them.

Files that are there and right are kept, so that the same command resumes where it was stopped, and
mends what was damaged since.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit import __version__, plain_text
from quantkit.errors import UsageError
from quantkit.execution.outputs import check_outputs
from quantkit.execution.stages import default_threads
from quantkit.fitting.measure import mean_errors
from quantkit.hub import push
from quantkit.jobs import ONCE, Job, Run, carry_out, prepare
from quantkit.model.model import Model
from quantkit.model.open import AS_IT_IS, Reading
from quantkit.planning.build import PLAIN, Request, model_facts
from quantkit.planning.plan import Plan, PlannedFile
from quantkit.recipes.file_types import RECIPES, RELEASE_TYPES
from quantkit.recipes.sensitivity import use_case
from quantkit.releases import card, checksums, manifest, modelfile, page, previous
from quantkit.releases.manifest import BegunFile, FileRecord, MadeFrom, Manifest
from quantkit.releases.projector import check_is_model, identified, projector_job, rows_of
from quantkit.reporting import inspection
from quantkit.reporting.inspection import Description
from quantkit.reporting.numbers import gigabytes
from quantkit.reporting.table import Row, html_table, planned_rows
from quantkit.source.location import Source, SourceLike

if TYPE_CHECKING:
    from quantkit.calibration.imatrix import Imatrix

_SIZE = re.compile(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?", re.IGNORECASE)  # as gguf-py knows them


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
    run: Run = ONCE,
) -> Release:
    """Make every type of a source in `directory`, with card, page, checksums and manifest.

    The table's Max RAM is for `context` tokens; `base_model` is the model's own name on the Hub
    (ORG/NAME), if it is there; with a `target`, the release is pushed. A `share` (which, of how
    many) makes only some of the files, and no card: a run that is given the directories of all
    shares in `join` makes it. Raises QuantkitError; OtherRelease if a directory holds another
    release, before anything is touched.
    """
    source = Source.parse(source)
    for name in (base_model, target.repo if target else None):
        if name is not None:
            push.check_name(name)
    check_is_model(source)
    job = prepare(
        source, types, directory, request=request, imatrix=imatrix, reading=reading, name=stem
    )
    beside, lacking = projector_job(source, directory, job.model.name, reading)
    jobs = [job, *([beside] if beside else [])]
    if lacking:
        job = replace(job, model=replace(job.model, notes=(*job.model.notes, lacking)))
        jobs[0] = job
    description = inspection.describe(job.model, source)
    this, plans = _begin_manifest(source, jobs, description)
    earlier = previous.read(directory, join, anew=run.force)
    previous.check_place(source, directory, earlier, run.force)
    previous.check_same(earlier, this, plans)
    before = earlier.whole
    this = replace(
        this,
        base_model=base_model or source.model_on_hub or (before.base_model if before else None),
        repo=target.repo if target else before.repo if before else None,
    )
    rows, more = planned_rows(job.plan, context, job.model.kv), rows_of(beside, context)
    if share:
        mine = shared([each.plan for each in jobs], *share)
        jobs = [replace(each, plan=_part(each.plan, mine)) for each in jobs]
        names = {path.name for path in mine}
        plans = [begun for begun in plans if begun.name in names]
    if run.dry:
        return _dry_run(directory, jobs, this, plans, [*rows, *more], earlier, target, run)
    if target:
        push.create(target)
    made = _make_files(directory, jobs, this, plans, earlier, target, run)
    this = made.manifest
    uploads = [push.Upload(directory / f.name, f.sha256) for f in this.files]
    directory.mkdir(parents=True, exist_ok=True)
    if share:
        record = manifest.as_json(replace(this, begun=tuple(plans)))
        manifest.write(manifest.partial_path(directory), record)
    else:
        this = replace(this, errors=_errors(job, earlier, run))
        rows = [replace(row, use_case=use_case(this.errors[row.type])) for row in rows]
        _write_beside(directory, this, rows, more, description, job.model)
        uploads += [push.Upload(directory / name) for name in previous.BESIDE]
    sent = push.push(target, uploads) if target else []
    return replace(made, manifest=this, rows=[*rows, *more], pushed=sent)


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
    earlier: previous.Earlier,
    target: push.HubTarget | None,
    run: Run,
) -> Release:
    """Make the files that are missing or damaged, hash them, and complete the manifest."""
    planned = {f.path: f for job in jobs for f in job.plan.files}
    threads = run.threads or default_threads()
    check = previous.check_files(list(planned), earlier, threads, run.progress)
    away = _on_the_hub({p for p in check.make if p.name in earlier.records}, earlier, target)
    records = {**check.kept, **away}
    begun = {directory / f.name: f for f in plans}
    new = {p: (begun[p], planned[p]) for p in planned if p not in records}
    here = [previous.stat_record(p, record) for p, record in check.kept.items()]
    making = replace(this, begun=tuple(plans), files=(*here, *away.values()))
    parts = [replace(job, plan=_part(job.plan, check.make - away.keys())) for job in jobs]
    _make(parts, check.damaged, directory, making, run)

    def note(path: Path, record: FileRecord) -> None:
        nonlocal making
        records[path] = record
        making = replace(making, files=(*making.files, previous.stat_record(path, record)))
        manifest.write(manifest.partial_path(directory), manifest.as_json(making))

    if new:
        checksums.hash_files(new, threads, run.progress, note)
    others = (r for r in earlier.records.values() if directory / r.name not in planned)
    left = tuple(replace(r, seen=None) for r in others if (directory / r.name).exists())
    this = replace(this, files=tuple(replace(records[p], seen=None) for p in planned), left=left)
    states = {
        p.name: "made" if p in new else "on the Hub" if p in away else "kept" for p in planned
    }
    states |= {p.name: "made again" for p in check.damaged & new.keys()}
    notes = [f"{p.name} was damaged; it is made again" for p in sorted(check.damaged)]
    notes += [f"{r.name} was not asked for this time; it stays as it is" for r in left]
    return Release(directory, this, (), states, notes)


def _errors(job: Job, earlier: previous.Earlier, run: Run) -> dict[str, float]:
    """The mean error of each type, measured where no earlier run did."""
    known = dict(earlier.whole.errors) if earlier.whole else {}
    outputs = tuple(o for o in job.plan.outputs if o.type not in known)
    if outputs:
        plan, threads = replace(job.plan, outputs=outputs), run.threads or default_threads()
        known |= mean_errors(plan, model_facts(job.model), threads, job.importance)
    return {output.type: known[output.type] for output in job.plan.outputs}


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
    rows: Sequence[Row],
    earlier: previous.Earlier,
    target: push.HubTarget | None,
    run: Run,
) -> Release:
    """What a run would leave, as far as can be told without reading the files that are there."""
    sizes = {f.path: f.size for job in jobs for f in job.plan.files}
    there = previous.whole_files(sizes)
    away = _on_the_hub({p for p in sizes if p.name in earlier.records}, earlier, target)
    for note in (note for job in jobs for note in job.model.notes):
        run.progress.note(note)
    known = {name: record.sha256 for name, record in earlier.records.items()}
    files = tuple(
        FileRecord(f.name, f.type, sizes[directory / f.name], known.get(f.name, ""), (), f.plan)
        for f in plans
    )
    states = {
        p.name: "there" if p in there else "on the Hub" if p in away else "to be made"
        for p in sizes
    }
    sent = [p.name for p in sizes if p not in away] if target else []
    pushed = sent + [*previous.BESIDE] * bool(target)
    return Release(directory, replace(this, files=files), rows, states, pushed=pushed)


def stem(model: Model) -> str:
    """The first part of the names of a release's files: the model's name, and its size (`4x7B`)
    unless the name has one."""
    name = re.sub(r"[^\w.+-]+", "-", model.name).strip("-.") or "model"
    first, _, last = name.rpartition("-")
    if first and last.upper() in (r.name for r in RECIPES if r.base):  # of a GGUF file
        name = first
    size = next((i.value for i in model.kv if i.key == "general.size_label"), None)
    if not size or any(map(_SIZE.fullmatch, re.split(r"[-_]", name))):
        return name
    first, _, last = name.rpartition("-")
    in_size = re.fullmatch(r"\d+x", last) and size.startswith(last)  # `merge-4x` of 4x7B
    return f"{first if in_size and first else name}-{size}"


def _begin_manifest(
    source: Source, jobs: Sequence[Job], description: Description
) -> tuple[Manifest, list[BegunFile]]:
    """The manifest before there are files; and every file that is planned. `jobs` begin with the
    model's own."""
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
        made_from=MadeFrom(made_of, of_any.importance),
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
) -> None:
    """Make the files of the plans; `damaged` ones are removed first."""
    jobs = [job for job in jobs if job.plan.outputs]
    if not jobs:
        return
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in damaged:
            path.unlink()
        for job in jobs:
            check_outputs(job.plan, run.force)
        manifest.write(manifest.partial_path(directory), manifest.as_json(making))
        for job in jobs:
            carry_out(job, run)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                directory.rmdir()  # if it is empty
        raise


def _write_beside(
    directory: Path,
    this: Manifest,
    rows: Sequence[Row],
    more: Sequence[Row],
    description: Description,
    model: Model,
) -> None:
    """Everything but the weights; the manifest last. `more`: the rows of the encoders."""
    values = {item.key: item.value for item in model.kv}
    usual = card.usual(rows)
    first = this.first_file(usual.type)
    measured = page.error_by_size(rows, this.errors)
    drawn = dict(zip(previous.PICTURES, [*page.figures(this, rows), measured], strict=True))
    shown = {name: figure.title for name, figure in drawn.items()}
    texts = {
        **{name: figure.draw(width=720) for name, figure in drawn.items()},
        previous.CARD: card.render(this, rows, description, values, shown, more),
        previous.PAGE: page.render(this, rows, description, [measured], more),
        previous.MODELFILE: modelfile.render(
            first, usual.context, values, split=usual.files > 1, beside=[r.name for r in more[:1]]
        ),
        manifest.CHECKSUMS: manifest.as_checksums(this.files),
        manifest.NAME: manifest.as_json(this),
    }
    for name, text in texts.items():
        manifest.write(directory / name, plain_text.lines(text))
    manifest.remove(manifest.partial_path(directory))
