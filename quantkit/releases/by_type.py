"""What is told of each type of a release: its row of the table, and its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.execution.stages import default_threads
from quantkit.fitting.measure import mean_errors
from quantkit.jobs import Job, Run
from quantkit.loading.kinds import PREFIX
from quantkit.planning.build import model_facts
from quantkit.recipes.file_types import RECIPES
from quantkit.releases import previous
from quantkit.releases.manifest import FileRecord, Manifest
from quantkit.reporting.llama_memory import Weights
from quantkit.reporting.table import Row, planned_rows, recorded_row


def rows_of(this: Manifest, jobs: Sequence[Job], context: int | None) -> list[Row]:
    """A row for each type of the manifest: from the plans, or from what is on record."""
    found = (row for job in jobs for row in planned_rows(job.plan, context, job.model.kv))
    rows = {row.type: row for row in found}
    for kind in this.kinds:
        if kind not in rows:
            files = [f for f in this.files if f.type == kind]
            tensors = [Weights(t.name, t.shape, t.format) for f in files for t in f.tensors]
            sizes = [(f.name, f.nbytes) for f in files]
            of = jobs[-1 if kind.startswith(PREFIX) else 0].model
            rows[kind] = recorded_row(kind, sizes, tensors, of.kv, context)
    return [rows[kind] for kind in this.kinds]


def errors_of(
    kinds: Sequence[str],
    job: Job,
    plan: Callable[[Sequence[str]], Job],
    earlier: previous.Earlier,
    run: Run,
) -> dict[str, float]:
    """The mean error of each type, measured where no earlier run did."""
    known = dict(earlier.errors)
    unknown = [kind for kind in kinds if kind not in known]
    if not {output.type for output in job.plan.outputs}.issuperset(unknown):
        job = plan(unknown)
    outputs = tuple(o for o in job.plan.outputs if o.type in unknown)
    if outputs:
        threads, measured = run.threads or default_threads(), replace(job.plan, outputs=outputs)
        known |= mean_errors(measured, model_facts(job.model), threads, job.importance)
    return {kind: known[kind] for kind in kinds}


def in_order(paths: Iterable[Path], records: Mapping[Path, FileRecord]) -> list[Path]:
    """Files of several runs, in the order of `RECIPES`: the smallest type first."""
    order = {recipe.name: i for i, recipe in enumerate(RECIPES)}
    return sorted(paths, key=lambda p: order.get(records[p].type.removesuffix("-moe"), len(order)))
