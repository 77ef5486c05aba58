"""A release that is larger than the disk: made in parts, each of them pushed and then removed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.hub import push
from quantkit.jobs import ONCE, Run, prepare
from quantkit.model.open import AS_IT_IS
from quantkit.planning.plan import Plan
from quantkit.releases import manifest
from quantkit.releases.projector import projector_job
from quantkit.releases.release import Release, release, shared, stem
from quantkit.source.location import Source, SourceLike
from quantkit.storage import os_files
from quantkit.storage.whole import make_directory

RECORDS = "parts"  # where the records of parts are kept until the release is whole


def release_in_parts(
    source: SourceLike,
    directory: Path,
    types: Sequence[str],
    *,
    target: push.HubTarget,
    drop: Sequence[str] = (),
    run: Run = ONCE,
    **options: Any,
) -> Release:
    """As `release`, whose `options` these are, but every GGUF file is removed once the Hub has it.

    There are as many parts as it takes for each to fit on the disk. The source is read about once
    in all if the release is split, otherwise once for each part. Raises as `release`.
    """

    def call(place: Path, run: Run = run, **more: Any) -> Release:
        known = [directory] if any(directory.rglob(f"{manifest.NAME}*")) else []
        return release(source, place, types, target=target, run=run, join=known, **options, **more)

    records = directory / RECORDS
    would = call(directory, replace(run, dry=True), drop=drop)
    if run.dry:
        return would
    sent: list[str] = []
    if "to be made" in would.states.values():
        asked = {k: v for k, v in options.items() if k in ("request", "imatrix", "reading")}
        job = prepare(source, types, directory, name=stem, **asked)
        reading = options.get("reading", AS_IT_IS)
        beside, _ = projector_job(Source.parse(source), directory, job.model.name, reading)
        plans = [each.plan for each in (job, beside) if each]
        count = _begun(records) or _count(plans, directory)
        for i in range(1, count + 1):
            place = records / f"{i}-of-{count}"
            make_directory(place)
            made = call(place, share=(i, count))
            sent += made.pushed
            for f in made.manifest.files:
                (place / f.name).unlink(missing_ok=True)
    whole = call(directory, drop=drop)
    for f in whole.manifest.files:
        (directory / f.name).unlink(missing_ok=True)
    shutil.rmtree(records, ignore_errors=True)
    return replace(whole, pushed=[*sent, *whole.pushed])


def _begun(records: Path) -> int | None:
    """How many parts an interrupted run was making, or None if there was none."""
    matches = (re.fullmatch(r"\d+-of-(\d+)", p.name) for p in records.glob("*-of-*"))
    return next((int(match[1]) for match in matches if match), None)


def _count(plans: Sequence[Plan], directory: Path) -> int:
    """The fewest parts of which each fits on the disk; as many as there are files, if one of them
    does not fit even alone (DiskFull names it when its turn comes)."""
    place = os_files.nearest(os_files.real(directory))
    room, sizes = os_files.free_bytes(place), {f.path: f.size for plan in plans for f in plan.files}
    for count in range(1, len(sizes)):
        parts = (shared(plans, i, count) for i in range(1, count + 1))
        if all(sum(sizes[path] for path in part) <= room for part in parts):
            return count
    return len(sizes)
