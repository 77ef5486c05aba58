"""A release: the set of files from one read of the source, and all that goes with it into DIR.

What is there and right stays, so that the same command goes on where it was stopped, and mends
what was damaged since.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import __version__, card, inspect, manifest, modelfile, origin, page, remote
from quantkit.convert import AS_IT_IS, ONCE, Job, Reading, Run, carry_out, prepare
from quantkit.disk import fingerprint
from quantkit.errors import OtherRelease, OutputError, OutputExists
from quantkit.journal import identities
from quantkit.manifest import Manifest, Record
from quantkit.model import Model
from quantkit.outputs import check_outputs, journal_path
from quantkit.plan import Plan, PlannedFile
from quantkit.planner import PLAIN, Request
from quantkit.recipes import RELEASE_TYPES
from quantkit.report import Row, planned_rows
from quantkit.threads import default_threads

if TYPE_CHECKING:
    from quantkit.imatrix import Imatrix

BESIDE = ("README.md", "index.html", "Modelfile", manifest.SUMS, manifest.NAME)
_SIZE = re.compile(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?", re.IGNORECASE)  # as gguf-py knows them
Watch = Callable[[str], manifest.Watch]  # begins a progress bar with a label


@dataclass(frozen=True)
class Release:
    """What a run leaves, or (dry) would leave. `states` say of each file whether it was made, kept,
    or made again because it was damaged; `notes` are for people."""

    directory: Path
    manifest: Manifest
    rows: Sequence[Row]
    states: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Earlier:
    """What earlier runs left in the directory: the manifest of a whole release, and the record of
    one in the making. Both are None where everything is to begin anew."""

    whole: Manifest | None = None
    making: Manifest | None = None

    @cached_property
    def records(self) -> dict[str, Record]:
        """The record of each file, by name."""
        found = [*_files(self.whole), *(self.making or {}).get("files", [])]
        return {record["name"]: record for record in found}

    @cached_property
    def begun(self) -> set[str]:
        """Files that were not there before the run that was cut short began to make them."""
        return {entry["name"] for entry in (self.making or {}).get("begun", [])}


def release(
    source: Path | str, directory: Path, types: Sequence[str] = RELEASE_TYPES, *,
    request: Request = PLAIN, imatrix: Imatrix | None = None, reading: Reading = AS_IT_IS,
    context: int | None = None, about: card.About = card.NOWHERE, run: Run = ONCE,
    watch: Watch = lambda label: lambda done, total: None,
) -> Release:  # fmt: skip
    """Make every type of a source in `directory`, with the card, the sums and the rest.

    `context` (tokens) is what the table's Max RAM is for. Raises QuantkitError; OtherRelease if the
    directory holds another release, before anything is touched.
    """
    job = prepare(
        source, types, directory, request=request, imatrix=imatrix, reading=reading, name=stem
    )
    facts = {**inspect.describe(job.model), **origin.merged_from(source)}
    this, plans = _described(source, job, facts)
    files = {f.path: (o.type, f) for o in job.plan.outputs for f in o.files}
    earlier = _Earlier() if run.force else _read(directory)
    _check_place(source, directory, earlier, run.force)
    _check_same(directory, earlier, this, plans)
    rows = planned_rows(job.plan, context, job.model.kv)
    threads = run.threads or default_threads()

    there = {p for p in files if p.exists() and not journal_path(p).exists()}
    recorded = {p: earlier.records[p.name] for p in there if p.name in earlier.records}
    fresh = {p for p, record in recorded.items() if record.get("seen") == fingerprint(p)}
    if run.dry:
        run.report(job.model, _part(job.plan, set(files) - there))
        this["files"] = [
            {"name": p.name, "type": kind, "bytes": f.size, "sha256": None}
            for p, (kind, f) in files.items()
        ]
        states = {p.name: "there" if p in there else "to be made" for p in files}
        return Release(directory, this, rows, states)

    doubtful = {p: record for p, record in recorded.items() if p not in fresh}
    damaged = manifest.wrong(doubtful, threads, watch("checking sums"))
    kept = {p: record for p, record in recorded.items() if p not in damaged}
    unsummed = {p for p in there if p not in recorded and p.name in earlier.begun}
    make = set(files) - set(kept) - unsummed
    making = {**this, "begun": plans, "files": [_seen(p, r) for p, r in kept.items()]}
    _make(replace(job, plan=_part(job.plan, make)), damaged, directory, making, run)
    digest = {entry["name"]: entry["plan"] for entry in plans}
    wanted = {p: files[p] for p in files if p not in kept}
    for path, record in manifest.records(wanted, threads, watch("taking sums")):
        kept[path] = {**record, "plan": digest[path.name]}
        making["files"].append(_seen(path, kept[path]))
        manifest.write(manifest.partial_path(directory), manifest.as_json(making))

    this["files"] = [{k: v for k, v in kept[p].items() if k != "seen"} for p in files]
    left = [r for r in earlier.records.values() if directory / r["name"] not in files]
    if left := [r for r in left if (directory / r["name"]).exists()]:
        this["left"] = left
    _write_beside(directory, this, rows, facts, job.model, about)
    states = {
        p.name: "made again" if p in damaged else "made" if p in wanted else "kept" for p in files
    }
    notes = [f"{p.name} was damaged; it is made again" for p in sorted(damaged)]
    notes += [f"{r['name']} was not asked for this time; it stays as it is" for r in left]
    return Release(directory, this, rows, states, notes)


def stem(model: Model) -> str:
    """What the files of a release are called after: the model's name, and its size (`4x7B`) unless
    the name tells one."""
    name = re.sub(r"[^\w.+-]+", "-", model.name).strip("-.") or "model"
    label = next((i.value for i in model.kv if i.key == "general.size_label"), None)
    if not label or any(map(_SIZE.fullmatch, re.split(r"[-_]", name))):
        return name
    first, _, last = name.rpartition("-")
    in_label = re.fullmatch(r"\d+x", last) and label.startswith(last)  # `merge-4x` of 4x7B
    return f"{first if in_label and first else name}-{label}"


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
        "source": source if remote.is_remote(source) else Path(source).resolve().name,
        "architecture": job.model.arch,
        "parameters": facts["parameters"],
        "experts": facts.get("experts"),
        "made_from": {"source": first["source"], "importance": first["importance"]},
    }
    return this, plans


def _read(directory: Path) -> _Earlier:
    paths = directory / manifest.NAME, manifest.partial_path(directory)
    return _Earlier(*map(manifest.read, paths))


def _files(found: Manifest | None) -> list[Record]:
    """Every file that a manifest knows."""
    return [] if found is None else [*found["files"], *found.get("left", [])]


def _check_place(source: Path | str, directory: Path, earlier: _Earlier, force: bool) -> None:
    """Nothing that is not ours is written over. Raises OutputError, OutputExists."""
    if directory.suffix == ".gguf" or directory.is_file():
        raise OutputError(f"{directory}: a release is a directory; name one with -o")
    where = None if remote.is_remote(source) else Path(source).resolve()
    if where and directory.resolve() in (where, where.parent if where.is_file() else where):
        raise OutputError(f"{directory} is where the source lies; name another directory with -o")
    if force or earlier.whole or earlier.making or not directory.is_dir():
        return
    alien = sorted(p.name for p in directory.iterdir() if p.name in BESIDE or p.suffix == ".gguf")
    if alien:
        raise OutputExists(
            f"{directory} holds {alien[0]}, which is not of a release; name another directory "
            "with -o, or overwrite with --force"
        )


def _check_same(
    directory: Path, earlier: _Earlier, this: Manifest, plans: Sequence[Mapping[str, str]]
) -> None:
    """What is there belongs to the release that is asked for. Raises OtherRelease."""
    for old in (earlier.whole, earlier.making):
        if old is not None and (words := _difference(old, this, plans)):
            raise OtherRelease(
                f"{directory} holds a release {words}; name another directory with -o, or begin "
                "anew with --force"
            )


def _difference(old: Manifest, this: Manifest, plans: Sequence[Mapping[str, str]]) -> str | None:
    if (old["name"], old.get("architecture")) != (this["name"], this["architecture"]):
        return f"of {old['name']}"
    made = old.get("made_from", {})
    if made.get("source") != this["made_from"]["source"]:
        return "of another source, or of this one before it changed"
    if made.get("importance") != this["made_from"]["importance"]:
        return "made with another importance matrix, or without one"
    before, now = _by_type([*_files(old), *old.get("begun", [])]), _by_type(plans)
    changed = [kind for kind in now if before.get(kind, now[kind]) != now[kind]]
    return f"whose {changed[0]} was made with other options" if changed else None


def _by_type(files: Sequence[Mapping[str, Any]]) -> dict[str, set[tuple[str, Any]]]:
    found: dict[str, set[tuple[str, Any]]] = {}
    for entry in files:
        found.setdefault(entry["type"], set()).add((entry["name"], entry.get("plan")))
    return found


def _part(plan: Plan, paths: set[Path]) -> Plan:
    """The part of a plan that makes these files. The sources stay whole: a journal knows a run by
    them."""

    def wanted(files: Sequence[PlannedFile]) -> tuple[PlannedFile, ...]:
        return tuple(f for f in files if f.path in paths)

    outputs = tuple(replace(o, files=wanted(o.files)) for o in plan.outputs if wanted(o.files))
    held = {name for output in outputs for name in output.by_name}
    segments = {name: rows for name, rows in plan.segments.items() if name in held}
    return replace(plan, outputs=outputs, segments=segments)


def _make(job: Job, damaged: set[Path], directory: Path, making: Manifest, run: Run) -> None:
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


def _seen(path: Path, record: Record) -> Record:
    """A record that holds as long as the file's size and time are these."""
    return {**record, "seen": fingerprint(path)}


def _write_beside(
    directory: Path, this: Manifest, rows: Sequence[Row], facts: Mapping[str, Any], model: Model,
    about: card.About,
) -> None:  # fmt: skip
    """Everything but the weights; the manifest last."""
    values = {item.key: item.value for item in model.kv}
    usual = card.usual(rows)
    first = card.first_file(this, usual)
    texts = {
        "README.md": card.render(this, rows, facts, values, about),
        "index.html": page.render(this, rows, facts, about.repo),
        "Modelfile": modelfile.render(first, usual.context, values, split=usual.files > 1),
        manifest.SUMS: manifest.as_sums(this["files"]),
        manifest.NAME: manifest.as_json(this),
    }
    for name, text in texts.items():
        manifest.write(directory / name, text)
    manifest.partial_path(directory).unlink(missing_ok=True)
