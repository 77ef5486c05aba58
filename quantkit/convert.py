"""The jobs, step by step: convert a checkpoint, quantize a checkpoint or a GGUF, split, merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import edits, pipeline, remote
from quantkit.cluster import quantize_on
from quantkit.errors import RecipeError, SourceNotFound, UnsupportedSource
from quantkit.memory import within
from quantkit.model import OUTTYPES, Model, from_checkpoint, from_gguf
from quantkit.outputs import check_outputs
from quantkit.plan import Plan
from quantkit.planner import (
    PLAIN,
    Request,
    plan_conversion,
    plan_copy,
    plan_quantization,
)
from quantkit.recipes import find_recipe, needs_importance
from quantkit.rules import DEFAULTS, Options
from quantkit.splits import NO_SPLITS, Splits
from quantkit.threads import default_threads

if TYPE_CHECKING:
    from quantkit.imatrix import Imatrix


@dataclass(frozen=True)
class Run:
    """How a job is carried out, whatever it writes. `threads` default to all cores (to one for a
    task of a cluster).

    `report` is told the model and the plan before work begins and answers where progress goes.
    """

    force: bool = False
    dry: bool = False
    threads: int | None = None
    memory: int | None = None  # bytes
    cluster: str | None = None  # "ray"
    report: Callable[[Model, Plan], pipeline.Progress] = lambda model, plan: lambda done: None


ONCE = Run()


@dataclass(frozen=True)
class Job:
    """What a run is going to do: a model (as it was changed), its plan, importances by tensor."""

    model: Model
    plan: Plan
    importance: pipeline.Importance


@dataclass(frozen=True)
class Reading:
    """How a source is read. `pre` and `options` are for checkpoints; `keep_experts` and
    `experts_used` make a smaller mixture of what is there."""

    pre: str | None = None
    options: Options = DEFAULTS
    keep_experts: tuple[int, ...] = ()
    experts_used: int | None = None

    def changed(self, model: Model) -> Model:
        """The model with the experts that are asked for. Raises RecipeError."""
        if self.experts_used is not None:
            model = edits.use_experts(model, self.experts_used)
        if self.keep_experts:
            model = edits.keep_experts(model, self.keep_experts)
        return model


AS_IT_IS = Reading()


def convert(
    directory: Path | str, output: Path | None = None, outtype: str = "auto", *,
    reading: Reading = AS_IT_IS, splits: Splits = NO_SPLITS, run: Run = ONCE,
) -> Plan:  # fmt: skip
    """Convert a checkpoint directory or `hf://ORG/MODEL` to GGUF, as llama.cpp's converter would.

    `outtype` is auto, f32, f16, bf16 or q8_0; `output` a `.gguf` path or a directory (default: the
    current one). Returns the plan that was carried out. Raises QuantkitError.
    """
    if outtype not in ("auto", *OUTTYPES):
        raise RecipeError(f"unknown outtype {outtype!r}; one of auto, {', '.join(OUTTYPES)}")
    model = reading.changed(open_checkpoint(directory, outtype, reading))
    label = _label(model)
    plan = plan_conversion(model, label, _paths(model, [label], output)[0], splits)
    return carry_out(Job(model, plan, {}), run)


def quantize(
    source: Path | str, types: Sequence[str], output: Path | None = None, *,
    request: Request = PLAIN, imatrix: Imatrix | None = None, imatrix_strict: bool = False,
    prune: Sequence[int] = (), override_kv: Sequence[str] = (), reading: Reading = AS_IT_IS,
    run: Run = ONCE,
) -> Plan:  # fmt: skip
    """Quantize a checkpoint directory, a GGUF file or `hf://...`: an output a type, in one read.

    `output` is a `.gguf` path for one type, or a directory (default: the current one) that gets
    `<name>-<TYPE>.gguf` for each. `prune` are layers to leave out, `override_kv` keys to set as
    KEY=TYPE:VALUE. Returns the plan that was carried out. Raises QuantkitError.
    """
    call: dict[str, Any] = {
        "request": request, "imatrix": imatrix, "imatrix_strict": imatrix_strict,
        "prune": prune, "override_kv": override_kv, "reading": reading,
    }  # fmt: skip
    job = prepare(source, types, output, **call)
    if run.cluster and not run.dry:
        whole = (output or Path()).resolve()
        call |= {"source": _anywhere(source, job.model), "output": whole, "force": run.force}
        check_outputs(job.plan, run.force)
        progress = run.report(job.model, job.plan)
        quantize_on(run.cluster, job.plan, make_split, call, run.threads or 1, progress)
        return job.plan
    return carry_out(job, run)


def prepare(
    source: Path | str, types: Sequence[str], output: Path | None = None, *,
    request: Request = PLAIN, imatrix: Imatrix | None = None, imatrix_strict: bool = False,
    prune: Sequence[int] = (), override_kv: Sequence[str] = (), reading: Reading = AS_IT_IS,
    name: Callable[[Model], str] = lambda model: model.name,
) -> Job:  # fmt: skip
    """Everything that `quantize` knows before it begins; `name` is what files are called after.

    Raises QuantkitError.
    """
    recipes = list(dict.fromkeys(find_recipe(kind) for kind in types))
    if not recipes:
        raise RecipeError("no type given; for instance --type Q4_K_M")
    whole = open_source(source, reading)
    model = reading.changed(whole)
    model = replace(model, name=name(model))
    if imatrix and reading.keep_experts:
        imatrix = edits.kept_importance(imatrix, whole, reading.keep_experts)
    kv = tuple(edits.parse_override(text, model) for text in override_kv)
    late_kv = imatrix.key_values if imatrix else ()
    old_names: Mapping[str, str] = {}
    if prune:
        model, count, old_names = edits.prune(model, prune)
        late_kv = (*late_kv, count)
    request = replace(request, kv=kv, late_kv=late_kv, has_imatrix=imatrix is not None)
    paths = _paths(model, [r.name for r in recipes], output)
    plan = plan_quantization(model, list(zip(recipes, paths, strict=True)), request)
    importance: pipeline.Importance = {}
    if imatrix:
        notes = check_importance(imatrix, plan, imatrix_strict, old_names)
        model = replace(model, notes=(*model.notes, *notes))
        importance = imatrix.for_tensors(model.tensors, old_names)
    return Job(model, plan, importance)


def make_split(call: dict[str, Any], kind: str, number: int, threads: int) -> None:
    """One split of one output: what a machine of a cluster does."""
    request = replace(call["request"], only_splits=(number,))
    run = Run(force=call["force"], threads=threads)
    rest = {k: v for k, v in call.items() if k not in ("request", "force")}
    quantize(types=[kind], request=request, run=run, **rest)


def check_importance(
    imatrix: Imatrix, plan: Plan, strict: bool, old_names: Mapping[str, str]
) -> list[str]:
    """Hold an importance matrix against what will be made; lines for people on what it lacks.

    Raises ImatrixError: a damaged matrix, one of another model, or missing data if `strict`.
    """
    from quantkit.imatrix import check_coverage, coverage

    made = [(o.type, t) for o in plan.outputs for t in o.by_name.values()]
    found = coverage(imatrix, [(t.name, t.shape, t.format) for _, t in made], old_names)
    needed = {t.name for kind, t in made if needs_importance(find_recipe(kind), t.name, t.format)}
    check_coverage(imatrix, found, needed, strict)
    return found.lines()


def split(source: Path | str, output: Path | None, splits: Splits, run: Run = ONCE) -> Plan:
    """Cut a GGUF file into splits, its bytes as they are. `output` names them without `-00001-of-`
    (default: the name of the source, in the current directory)."""
    if not splits:
        raise RecipeError("say where to split: --split-max-size 4G or --split-max-tensors 128")
    model = _open_gguf(source)
    output = output or Path(f"{Path(source).stem}.gguf")
    return carry_out(Job(model, plan_copy(model, output, splits), {}), run)


def merge(first: Path | str, output: Path, run: Run = ONCE) -> Plan:
    """Join a set of splits, of which `first` is any, into one file."""
    model = _open_gguf(first)
    return carry_out(Job(model, plan_copy(model, output), {}), run)


def open_source(source: Path | str, reading: Reading = AS_IT_IS) -> Model:
    """A checkpoint, nothing rounded, or a GGUF file; here or on the Hub (`hf://ORG/MODEL`,
    `hf://ORG/MODEL/FILE.gguf`). `Reading.changed` is the caller's to apply. Raises SourceError,
    ModelError."""
    if remote.is_remote(source):
        is_gguf = remote.names_file(source)
    elif Path(source).exists():
        is_gguf = not Path(source).is_dir()
    else:
        raise SourceNotFound(f"{source}: no such file or directory")
    return _open_gguf(source) if is_gguf else open_checkpoint(source, None, reading)


def open_checkpoint(source: Path | str, outtype: str | None, reading: Reading = AS_IT_IS) -> Model:
    """A checkpoint directory, or a model on the Hub. Raises SourceError, ModelError."""
    if not remote.is_remote(source):
        return from_checkpoint(Path(source), outtype, reading.pre, reading.options)
    if remote.names_file(source):
        raise UnsupportedSource(f"{source} is one file; name the model that is to be converted")
    with remote.snapshot(source) as found:
        return from_checkpoint(
            found.directory, outtype, reading.pre, reading.options, files=found.files
        )


def _open_gguf(source: Path | str) -> Model:
    if not remote.is_remote(source):
        return from_gguf(Path(source))
    with remote.snapshot(source) as found:
        if found.file is None:
            raise UnsupportedSource(f"{source}: a GGUF file is expected: {source}/FILE.gguf")
        return from_gguf(found.file, found.files)


def _anywhere(source: Path | str, model: Model) -> Path | str:
    """The source as another machine finds it: by its whole path, or at the commit that was read."""
    if not remote.is_remote(source):
        return Path(source).resolve()
    file = next(t.path for t in model.sources.values() if isinstance(t.path, remote.RemoteFile))
    return remote.pinned(source, file)


def carry_out(job: Job, run: Run) -> Plan:
    """Do what is planned, or (a dry run) only report it. Raises SourceError, OutputError."""
    model, plan = job.model, job.plan
    threads = run.threads or default_threads()
    plan = within(plan, threads, run.memory)
    if run.dry:
        run.report(model, plan)
        return plan
    check_outputs(plan, run.force)
    pipeline.execute(plan, threads, run.report(model, plan), job.importance, run.force)
    return plan


def _label(model: Model) -> str:
    file_type = next(item.value for item in model.kv if item.key == "general.file_type")
    labels = dict(OUTTYPES.values())
    return labels.get(file_type, "MXFP4")  # the one other: experts that are MXFP4 in the source


def _paths(model: Model, labels: Sequence[str], output: Path | None) -> list[Path]:
    if output is not None and output.suffix == ".gguf" and not output.is_dir():
        if len(labels) > 1:
            raise RecipeError(
                f"{output} is one file and {len(labels)} types are asked for; give -o a directory"
            )
        return [output]
    return [(output or Path()) / f"{model.name}-{label}.gguf" for label in labels]
