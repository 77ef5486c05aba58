"""The best file of a size: measure what formats do to the tensors, and choose within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from quantkit.calibration.imatrix import Imatrix
from quantkit.errors import BudgetError, RecipeError, UsageError
from quantkit.execution.stages import default_threads
from quantkit.fitting.measure import Errors, measure
from quantkit.gguf.container import align
from quantkit.gguf.splits import is_gguf
from quantkit.gguf.types import tensor_bytes, type_by_name
from quantkit.jobs import ONCE, Job, Run, carry_out, prepare
from quantkit.model.open import AS_IT_IS, Reading
from quantkit.planning.build import Request, model_facts
from quantkit.planning.plan import Output, Plan, PlannedTensor
from quantkit.progress import SILENT, Progress
from quantkit.recipes.choose import Overrides, candidates, choose, needs_importance
from quantkit.recipes.facts import ModelFacts, is_quantized
from quantkit.recipes.file_types import LOW_FORMATS, MOE_FORMATS, find_format, find_recipe
from quantkit.recipes.knapsack import Option, allocate, frontier
from quantkit.recipes.sensitivity import loss, sensitivity, use_case
from quantkit.reporting.numbers import gigabytes
from quantkit.reporting.table import html_table, planned_rows
from quantkit.source.location import SourceLike

# what a choice is held against; with an importance matrix the second, too
TYPES = ("Q2_K", "Q3_K_S", "IQ3_S", "IQ3_M", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M",
         "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")  # fmt: skip
LOW_TYPES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS")
HEADINGS = ("size", "bpw", "error", "llama.cpp's")


@dataclass(frozen=True)
class Budget:
    """What a file may take; one of the first three is given: bytes of the file, bytes of memory to
    run it (with a context of so many tokens, by default `report.CONTEXT`), bits per weight."""

    size: int | None = None
    ram: int | None = None
    bits_per_weight: float | None = None
    context: int | None = None


@dataclass(frozen=True)
class Mark:
    """A file that could be made: its bytes, its bits per weight, the mean error of its tensors (as
    `quality.mean_error`), and its type where it is one of llama.cpp's."""

    nbytes: int
    bits_per_weight: float
    error: float
    label: str = ""


@dataclass(frozen=True)
class Fit:
    """What was chosen, and from what.

    `formats`, by tensor, of all that a type would quantize; `base` is the type of llama.cpp's that
    is next below it in size. `types` are llama.cpp's, from the same measurements; `best`, by type,
    is the best file that is no larger. `quantized_before`: what weights of the source are in, which
    stay so. `frontier` goes from the smallest file to the largest, each
    the best of its size.
    """

    name: str
    formats: Mapping[str, str]
    chosen: Mark
    base: str
    frontier: tuple[Mark, ...]
    types: tuple[Mark, ...]
    best: Mapping[str, Mark]
    errors: Mapping[str, Errors]
    quantized_before: tuple[str, ...] = ()

    @property
    def use_case(self) -> str:
        """What the file is good for, in a few words."""
        return use_case(self.chosen.error, self.quantized_before)

    @property
    def overrides(self) -> Overrides:
        """The choice as `--tensor-type` takes it: a pattern for each tensor, which matches it and
        no other, in Python's regular expressions and in C++'s."""
        return Overrides(
            tensor_types=tuple(
                (f"^{name}$".replace(".", r"\."), fmt) for name, fmt in self.formats.items()
            )
        )

    def recipe(self) -> str:
        """The choice as a file for `--tensor-type-file`, here and in llama-quantize."""
        return "".join(f"{pattern}={fmt}\n" for pattern, fmt in self.overrides.tensor_types)

    def lines(self) -> list[tuple[str, str, str, str]]:
        """A table under HEADINGS: the best file of the size of each of llama.cpp's types, with the
        type's own error, and the chosen one."""
        lines = []
        for mark in sorted((*self.types, self.chosen), key=lambda m: (m.nbytes, m.label)):
            error, note = mark.error, f"<- chosen: {self.use_case}"
            if mark.label:
                error, note = self.best[mark.label].error, f"{mark.label} {_percent(mark.error)}"
            bits = f"{mark.bits_per_weight:.2f}"
            lines.append((gigabytes(mark.nbytes), bits, _percent(error), note))
        return lines

    def _repr_html_(self) -> str:
        return html_table(HEADINGS, self.lines())


def _percent(error: float) -> str:
    return f"{100 * error:.2g}%" if error < 0.1 else f"{100 * error:.0f}%"


def fit(
    source: SourceLike,
    budget: Budget,
    formats: Sequence[str] = (),
    *,
    imatrix: Imatrix | None = None,
    reading: Reading = AS_IT_IS,
    threads: int | None = None,
    progress: Progress = SILENT,
    ready: Callable[[str], None] = lambda name: None,
) -> Fit:
    """Choose a format for every tensor of a source: the least error in all within the budget.
    `ready` is called with the model's name before anything is measured, and may raise.

    `formats` are those to choose from; by default MOE_FORMATS, and with an importance
    matrix LOW_FORMATS, which no tensor gets that the matrix has nothing for. Raises BudgetError,
    RecipeError, ImatrixError, SourceError, ModelError.
    """
    low = imatrix is not None
    usual = (*LOW_FORMATS, *MOE_FORMATS) if low else MOE_FORMATS
    formats = [find_format(name) for name in formats or usual]
    if not low and (needed := [fmt for fmt in formats if needs_importance("", fmt)]):
        raise RecipeError(
            f"an importance matrix is needed for {', '.join(needed)}; give one with --imatrix"
        )
    job = prepare(source, ["COPY"], imatrix=imatrix, reading=reading)
    facts = model_facts(job.model, Request(importances=frozenset(job.importance) if low else None))
    tensors = [
        t for t in job.plan.outputs[0].by_name.values() if is_quantized(t.name, t.shape, facts.arch)
    ]
    free = [t for t in tensors if type_by_name(t.format).is_float]  # the rest stays as it is
    wanted = {t.name: _makeable(formats, t, t.name in job.importance) for t in free}
    sizes = [[align(tensor_bytes(t.shape, fmt)) for fmt in wanted[t.name]] for t in free]
    room = _room(budget, job, free, sizes)
    ready(job.model.name)
    errors = measure(job.plan, wanted, threads or default_threads(), job.importance, progress)
    items = [
        [
            Option(fmt, size, loss(t.name, fmt, errors[t.name][fmt], facts))
            for fmt, size in zip(wanted[t.name], sizes_of, strict=True)
        ]
        for t, sizes_of in zip(free, sizes, strict=True)
    ]
    allocation = allocate(items, room)
    mark = _Marker(job.plan.outputs[0], facts, free)
    chosen = mark(allocation.nbytes, allocation.error)
    labels = (*(LOW_TYPES if low else ()), *TYPES)
    types = _types(labels, facts, job.plan, free, items)
    rivals = {label: allocate(items, nbytes) for label, (nbytes, _) in types.items()}
    marks = tuple(mark(*total, label) for label, total in types.items())
    return Fit(
        name=job.model.name,
        formats={t.name: t.format for t in tensors}
        | {
            t.name: options[j].format
            for t, options, j in zip(free, items, allocation.chosen, strict=True)
        },
        chosen=chosen,
        base=[labels[0], *(m.label for m in marks if m.nbytes <= chosen.nbytes)][-1],
        frontier=tuple(mark(nbytes, error) for nbytes, error in frontier(items)),
        types=marks,
        best={label: mark(best.nbytes, best.error) for label, best in rivals.items()},
        errors=errors,
        quantized_before=job.plan.quantized_before,
    )


def make(
    source: SourceLike,
    fit: Fit,
    output: Path,
    *,
    imatrix: Imatrix | None = None,
    reading: Reading = AS_IT_IS,
    run: Run = ONCE,
) -> Plan:
    """Write the file that was chosen: to a `.gguf` path, or to `<name>-<base>-fit.gguf` in a
    directory. Raises QuantkitError."""
    if not is_gguf(output) or output.is_dir():
        output /= f"{fit.name}-{fit.base}-fit.gguf"
    request = Request(fit.overrides)
    job = prepare(source, [fit.base], output, request=request, imatrix=imatrix, reading=reading)
    return carry_out(job, run)


def picture(fit: Fit) -> str:
    """Size against error, as SVG: the frontier, llama.cpp's types, and what was chosen."""
    from quantkit.charts.plots import Point, scatter
    from quantkit.charts.svg import Axis

    sizes = [m.nbytes for m in fit.types or fit.frontier]
    ends = min(sizes), max(sizes)
    step = max(len(fit.frontier) // 40, 1)
    points = [
        Point("", m.nbytes, 100 * m.error, "best of its size")
        for m in fit.frontier[::step]
        if ends[0] <= m.nbytes <= ends[1]
    ]
    points += [Point(m.label, m.nbytes, 100 * m.error, "llama.cpp") for m in fit.types]
    points.append(Point("chosen", fit.chosen.nbytes, 100 * fit.chosen.error, "fit"))
    size = Axis("size", lambda n: gigabytes(round(n)))
    error = Axis("error", "{:.2g}%".format, log=True)
    return scatter(fit.name, points, size, error, front=True)


def _makeable(formats: Sequence[str], t: PlannedTensor, important: bool) -> list[str]:
    """The formats that a tensor may have; those that need importances, only if it has some. Raises
    RecipeError: there is none."""
    found = [
        fmt
        for fmt in candidates(formats, t.shape[-1])
        if important or not needs_importance(t.name, fmt)
    ]
    if not found:
        raise RecipeError(
            f"the importance matrix has nothing for {t.name}, which {', '.join(formats)} need; "
            "add a larger format to --formats"
        )
    return found


def _room(
    budget: Budget, job: Job, free: Sequence[PlannedTensor], sizes: Sequence[Sequence[int]]
) -> int:
    """Bytes that the budget leaves for the tensors that there is a choice for.

    Raises BudgetError: there are none, they need more in any case, or none needs so much.
    """
    if not free:
        formats = {type_by_name(t.format) for t in job.plan.outputs[0].by_name.values()}
        if all(fmt.is_float for fmt in formats):
            raise BudgetError("no tensor of the model is of a kind that is quantized")
        raise BudgetError("the weights are quantized already; give a 16- or 32-bit source")
    (row,) = planned_rows(job.plan, budget.context, job.model.kv)
    if budget.size is not None:
        given, taken, unit = budget.size, row.file_bytes, 1.0
    elif budget.ram is not None:
        given, taken, unit = budget.ram, row.max_ram_bytes, 1.0
    else:
        unit = sum(t.weights for t in job.plan.outputs[0].by_name.values()) / 8
        bits = budget.bits_per_weight or 0
        if not isfinite(bits):
            raise UsageError(f"--bpw: {bits} bits per weight are none; for instance 4.5")
        given, taken = int(bits * unit), row.tensor_bytes
    room = given - taken + sum(align(t.nbytes) for t in free)

    def said(nbytes: int) -> str:
        return f"{nbytes / unit:.3f} bits per weight" if unit > 1 else gigabytes(nbytes)

    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    if room < least:
        raise BudgetError(
            f"{said(given)} is too little: the smallest that can be made takes "
            f"{said(given + least - room)}"
        )
    if room >= most:
        raise BudgetError(
            f"{said(given)} leaves nothing to choose: with every tensor in its "
            f"largest format it takes {said(given + most - room)}"
        )
    return room


class _Marker:
    """From bytes and error of the free tensors to those of the file."""

    def __init__(self, output: Output, facts: ModelFacts, free: Sequence[PlannedTensor]) -> None:
        tensors = output.by_name.values()
        now = sum(align(t.nbytes) for t in free)
        self._file, self._tensors = output.size - now, sum(t.nbytes for t in tensors) - now
        self._weights = sum(t.weights for t in tensors)
        self._sensitivity = sum(
            sensitivity(t.name, facts) for t in tensors if is_quantized(t.name, t.shape, facts.arch)
        )

    def __call__(self, nbytes: int, error: float, label: str = "") -> Mark:
        bits = 8 * (self._tensors + nbytes) / self._weights
        return Mark(self._file + nbytes, round(bits, 4), error / self._sensitivity, label)


def _types(
    labels: Sequence[str],
    facts: ModelFacts,
    plan: Plan,
    free: Sequence[PlannedTensor],
    items: Sequence[Sequence[Option]],
) -> dict[str, tuple[int, float]]:
    """Bytes and error of the free tensors in llama.cpp's types, by size, as far as their formats
    are among those that were measured."""
    tensors = [(t.name, t.shape, t.format) for t in plan.outputs[0].by_name.values()]
    options = {t.name: {o.format: o for o in item} for t, item in zip(free, items, strict=True)}
    totals = {}
    for label in labels:
        choices = choose(find_recipe(label), facts, tensors)
        formats = {t[0]: c.format for t, c in zip(tensors, choices, strict=True)}
        if all(formats[name] in known for name, known in options.items()):
            made = [known[formats[name]] for name, known in options.items()]
            totals[label] = sum(o.nbytes for o in made), sum(o.error for o in made)
    return dict(sorted(totals.items(), key=lambda entry: entry[1][0]))
