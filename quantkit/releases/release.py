"""A release: the set of files from one read of the source, and all that goes with it into DIR.

What is there and right stays, so that the same command goes on where it was stopped, and mends
what was damaged since.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import __version__
from quantkit.errors import UsageError
from quantkit.execution.journal import identities
from quantkit.execution.outputs import check_outputs
from quantkit.execution.stages import default_threads
from quantkit.fitting.measure import mean_errors
from quantkit.hub import push, repository
from quantkit.jobs import ONCE, Job, Run, carry_out, prepare
from quantkit.model import provenance
from quantkit.model.model import Model
from quantkit.model.open import AS_IT_IS, Reading
from quantkit.planning.build import PLAIN, Request, model_facts
from quantkit.planning.plan import Plan, PlannedFile
from quantkit.recipes.file_types import RECIPES, RELEASE_TYPES
from quantkit.recipes.sensitivity import use_case
from quantkit.releases import card, manifest, modelfile, page, previous
from quantkit.releases.manifest import Manifest, Record
from quantkit.reporting import inspection
from quantkit.reporting.table import Row, planned_rows

if TYPE_CHECKING:
    from quantkit.calibration.imatrix import Imatrix

_SIZE = re.compile(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?", re.IGNORECASE)  # as gguf-py knows them


@dataclass(frozen=True)
class Release:
    """What a run leaves, or (dry) would leave. `states` say of each file whether it was made, kept,
    or made again because it was damaged; `notes` are for people; `pushed` names what was sent."""

    directory: Path
    manifest: Manifest
    rows: Sequence[Row]
    states: Mapping[str, str]
    notes: Sequence[str] = ()
    pushed: Sequence[str] = ()


def release(
    source: Path | str, directory: Path, types: Sequence[str] = RELEASE_TYPES, *,
    request: Request = PLAIN, imatrix: Imatrix | None = None, reading: Reading = AS_IT_IS,
    context: int | None = None, base_model: str | None = None, target: push.HubTarget | None = None,
    share: tuple[int, int] | None = None, join: Sequence[Path] = (), run: Run = ONCE,
) -> Release:  # fmt: skip
    """Make every type of a source in `directory`, with the card, the sums and the rest.

    `context` (tokens) is what the table's Max RAM is for, `base_model` (org/name) what is released,
    if it is on the Hub; with a `target`, the release is pushed there. A `share` (which, of how
    many) makes only some of the files, and no card: that is left to a run that is given the
    directories of all shares in `join`. Raises QuantkitError; OtherRelease if a directory holds
    another release, before anything is touched.
    """
    for name in (base_model, target.repo if target else None):
        if name is not None:
            push.check_name(name)
    job = prepare(
        source, types, directory, request=request, imatrix=imatrix, reading=reading, name=stem
    )
    facts = {**inspection.describe(job.model), **provenance.merged_from(source)}
    this, plans = _described(source, job, facts)
    old = previous.read(directory, join, anew=run.force)
    previous.check_place(source, directory, old, run.force)
    previous.check_same(old, this, plans)
    this["base_model"] = base_model or _published(source) or (old.whole or {}).get("base_model")
    this["repo"] = target.repo if target else (old.whole or {}).get("repo")
    rows = planned_rows(job.plan, context, job.model.kv)
    if share:
        job = replace(job, plan=_part(job.plan, shared(job.plan, *share)))
        names = {f.path.name for f in job.plan.files}
        plans = [entry for entry in plans if entry["name"] in names]
    if run.dry:
        return _would(directory, job, this, rows, old, target, run)
    if target:
        push.create(target)
    made = _make_files(directory, job, this, plans, old, target, run)
    uploads = [push.Upload(directory / f["name"], f["sha256"]) for f in this["files"]]
    directory.mkdir(parents=True, exist_ok=True)
    if share:
        record = manifest.as_json({**this, "begun": plans})
        manifest.write(manifest.partial_path(directory), record)
    else:
        this["errors"] = errors = _errors(job, old, run)
        rows = [replace(row, use_case=use_case(errors[row.type])) for row in rows]
        _write_beside(directory, this, rows, errors, facts, job.model)
        uploads += [push.Upload(directory / name) for name in previous.BESIDE]
    sent = push.push(target, uploads) if target else []
    return replace(made, rows=rows, pushed=sent)


def parse_share(text: str) -> tuple[int, int]:
    """`3/16` as (3, 16). Raises UsageError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"{text!r} is not a share, such as 3/16: the third of sixteen")
    return int(match[1]), int(match[2])


def shared(plan: Plan, which: int, of: int) -> frozenset[Path]:
    """The files of one share: those that hold about the same part of the model, whatever their
    type, so that a share reads little of the source more than once."""
    places = [
        ((i + 0.5) / len(o.files), f.path) for o in plan.outputs for i, f in enumerate(o.files)
    ]
    ordered = [path for _, path in sorted(places)]
    ends = [len(ordered) * i // of for i in (which - 1, which)]
    return frozenset(ordered[slice(*ends)])


def _make_files(
    directory: Path, job: Job, this: Manifest, plans: Sequence[Mapping[str, str]],
    old: previous.Earlier, target: push.HubTarget | None, run: Run,
) -> Release:  # fmt: skip
    """Make what is not there and right, take sums, and complete the manifest."""
    files = {f.path: (o.type, f) for o in job.plan.outputs for f in o.files}
    threads = run.threads or default_threads()
    standing = previous.stand(list(files), old, threads, run.progress)
    away = _on_the_hub({p for p in standing.make if p.name in old.records}, old, target)
    kept = {**standing.kept, **away}
    digests = {entry["name"]: entry["plan"] for entry in plans}
    new = {p: files[p] for p in files if p not in kept}
    here = [previous.seen(p, r) for p, r in standing.kept.items()]
    making: Manifest = {**this, "begun": plans, "files": [*here, *away.values()]}
    part = _part(job.plan, standing.make - away.keys())
    _make(replace(job, plan=part), standing.damaged, directory, making, run)

    def note(path: Path, record: Record) -> None:
        kept[path] = {**record, "plan": digests[path.name]}
        making["files"].append(previous.seen(path, kept[path]))
        manifest.write(manifest.partial_path(directory), manifest.as_json(making))

    if new:
        manifest.take(new, threads, run.progress, note)
    this["files"] = [{k: v for k, v in kept[p].items() if k != "seen"} for p in files]
    left = [r for r in old.records.values() if directory / r["name"] not in files]
    if left := [r for r in left if (directory / r["name"]).exists()]:
        this["left"] = left
    states = {p.name: "made" if p in new else "on the Hub" if p in away else "kept" for p in files}
    states |= {p.name: "made again" for p in standing.damaged & new.keys()}
    notes = [f"{p.name} was damaged; it is made again" for p in sorted(standing.damaged)]
    notes += [f"{r['name']} was not asked for this time; it stays as it is" for r in left]
    return Release(directory, this, (), states, notes)


def _errors(job: Job, old: previous.Earlier, run: Run) -> dict[str, float]:
    """The mean error of each type, measured where no earlier run did."""
    known: dict[str, float] = (old.whole or {}).get("errors", {})
    outputs = tuple(o for o in job.plan.outputs if o.type not in known)
    if outputs:
        plan, threads = replace(job.plan, outputs=outputs), run.threads or default_threads()
        known = known | mean_errors(plan, model_facts(job.model), threads, job.importance)
    return {output.type: known[output.type] for output in job.plan.outputs}


def _on_the_hub(
    paths: set[Path], old: previous.Earlier, target: push.HubTarget | None
) -> dict[Path, Record]:
    """Of files that are not here but on record, those that the target has already."""
    known = {p: {k: v for k, v in old.records[p.name].items() if k != "seen"} for p in paths}
    if target is None or not known:
        return {}
    lacking = push.missing(target, [push.Upload(p, r["sha256"]) for p, r in known.items()])
    gone = {upload.path for upload in lacking}
    return {p: record for p, record in known.items() if p not in gone}


def _would(
    directory: Path, job: Job, this: Manifest, rows: Sequence[Row], old: previous.Earlier,
    target: push.HubTarget | None, run: Run,
) -> Release:  # fmt: skip
    """What a run would leave, as far as it can be told without reading what is there."""
    files = {f.path: (o.type, f) for o in job.plan.outputs for f in o.files}
    there = previous.there(files)
    recorded = {p for p in files if p.name in old.records}
    away = _on_the_hub(recorded, old, target)
    for note in job.model.notes:
        run.progress.note(note)
    this["files"] = [
        {"name": p.name, "type": kind, "bytes": f.size,
         "sha256": old.records.get(p.name, {}).get("sha256")}
        for p, (kind, f) in files.items()
    ]  # fmt: skip
    states = {
        p.name: "there" if p in there else "on the Hub" if p in away else "to be made"
        for p in files
    }
    sent = [p.name for p in files if p not in away] if target else []
    return Release(directory, this, rows, states, pushed=sent + [*previous.BESIDE] * bool(target))


def _published(source: Path | str) -> str | None:
    """The name of a source that is a model on the Hub."""
    if not repository.is_remote(source) or repository.names_file(source):
        return None
    return repository.repository(source)


def stem(model: Model) -> str:
    """What the files of a release are called after: the model's name, and its size (`4x7B`) unless
    the name tells one."""
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


def _described(
    source: Path | str, job: Job, facts: Mapping[str, Any]
) -> tuple[Manifest, list[dict[str, str]]]:
    """The manifest before there are files; and of each file that is planned its name, type and a
    digest of all that its bytes depend on beside the source."""
    made_of = identities(job.plan, job.importance)
    first = next(iter(made_of.values()))
    plans = [
        {"name": f.path.name, "type": o.type, "plan": made_of[f.path]["plan"]}
        for o in job.plan.outputs for f in o.files
    ]  # fmt: skip
    this = {
        "quantkit": __version__,
        "name": job.model.name,
        "source": source if repository.is_remote(source) else Path(source).resolve().name,
        "architecture": job.model.arch,
        "parameters": facts["parameters"],
        "experts": facts.get("experts"),
        "made_from": {"source": first["source"], "importance": first["importance"]},
    }
    return this, plans


def _part(plan: Plan, paths: frozenset[Path]) -> Plan:
    """The part of a plan that makes these files. The sources stay whole: a journal knows a run by
    them."""

    def wanted(files: Sequence[PlannedFile]) -> tuple[PlannedFile, ...]:
        return tuple(f for f in files if f.path in paths)

    outputs = tuple(replace(o, files=wanted(o.files)) for o in plan.outputs if wanted(o.files))
    held = {name for output in outputs for name in output.by_name}
    segments = {name: rows for name, rows in plan.segments.items() if name in held}
    return replace(plan, outputs=outputs, segments=segments)


def _make(job: Job, damaged: frozenset[Path], directory: Path, making: Manifest, run: Run) -> None:
    """Make the files of the plan, in the place of those that are damaged."""
    if not job.plan.outputs:
        return
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in damaged:
            path.unlink()
        check_outputs(job.plan, run.force)
        manifest.write(manifest.partial_path(directory), manifest.as_json(making))
        carry_out(job, run)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                directory.rmdir()  # if nothing came into it
        raise


def _write_beside(
    directory: Path, this: Manifest, rows: Sequence[Row], errors: Mapping[str, float],
    facts: Mapping[str, Any], model: Model,
) -> None:  # fmt: skip
    """Everything but the weights; the manifest last."""
    values = {item.key: item.value for item in model.kv}
    usual = card.usual(rows)
    first = card.first_file(this, usual)
    measured = page.error_by_size(rows, errors)
    drawn = dict(zip(previous.PICTURES, [*page.figures(this, rows), measured], strict=True))
    shown = {name: figure.title for name, figure in drawn.items()}
    texts = {
        **{name: figure.draw(width=720) for name, figure in drawn.items()},
        previous.CARD: card.render(this, rows, facts, values, shown),
        previous.PAGE: page.render(this, rows, facts, [measured]),
        previous.MODELFILE: modelfile.render(first, usual.context, values, split=usual.files > 1),
        manifest.SUMS: manifest.as_sums(this["files"]),
        manifest.NAME: manifest.as_json(this),
    }
    for name, text in texts.items():
        manifest.write(directory / name, text)
    manifest.remove(manifest.partial_path(directory))
