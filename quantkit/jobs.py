"""The jobs, step by step: convert a checkpoint, quantize a checkpoint or a GGUF, split, merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from quantkit.calibration.imatrix import Importance
from quantkit.errors import UsageError
from quantkit.execution import pipeline
from quantkit.execution.outputs import check_outputs
from quantkit.execution.ray_cluster import quantize_on
from quantkit.execution.stages import default_threads
from quantkit.execution.sums import NoteSums
from quantkit.gguf.splits import NO_SPLITS, Splits, is_gguf, unsplit_name
from quantkit.hub.repository import RemoteFile
from quantkit.loading.ahead import unrun
from quantkit.loading.values import of_architecture
from quantkit.model import edits, pruning
from quantkit.model.from_checkpoint import KEPT, OUTTYPES
from quantkit.model.model import Model
from quantkit.model.open import AS_IT_IS, Reading, open_checkpoint, open_gguf, open_whole
from quantkit.planning.build import PLAIN, Request, plan_conversion, plan_copy, plan_quantization
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import schedule
from quantkit.progress import SILENT, Progress
from quantkit.recipes.choose import Overrides, needs_importance
from quantkit.recipes.file_types import find_recipe
from quantkit.recipes.unheeded import unheeded
from quantkit.source.codings import kept_as
from quantkit.source.location import Source, SourceLike
from quantkit.storage.os_files import real

if TYPE_CHECKING:
    from quantkit.calibration.imatrix import Imatrix


@dataclass(frozen=True)
class Run:
    """How a job is carried out, whatever it writes. `threads` default to all cores (to one for a
    task of a cluster).
    """

    force: bool = False
    dry: bool = False
    threads: int | None = None
    memory: int | None = None  # bytes
    cluster: str | None = None  # "ray"
    progress: Progress = SILENT


ONCE = Run()
# how the names of files end that are mistaken for ours; anything else is a directory
OTHER_FILES = (".bin", ".ggml", ".safetensors", ".pt", ".pth", ".txt", ".json", ".zip", ".part")


@dataclass(frozen=True)
class Job:
    """What a run is going to do: a model (as it was changed), its plan, importances by tensor."""

    model: Model
    plan: Plan
    importance: Importance


def convert(
    source: SourceLike,
    output: Path | None = None,
    outtype: str = "auto",
    *,
    reading: Reading = AS_IT_IS,
    splits: Splits = NO_SPLITS,
    run: Run = ONCE,
) -> Plan:
    """Convert a checkpoint directory or `hf://ORG/MODEL` to GGUF, as llama.cpp's converter would.

    An adapter's directory becomes the file that llama.cpp takes with `--lora`. `outtype` is auto
    (for an adapter f32), or one of OUTTYPES; `output` a `.gguf` path or a directory (default:
    the current one). Returns the plan that was carried out. Raises QuantkitError.
    """
    if outtype not in ("auto", *OUTTYPES):
        raise UsageError(f"unknown outtype {outtype!r}; one of auto, {', '.join(OUTTYPES)}")
    model = open_checkpoint(source, outtype, reading)
    label = _label(model)
    if reading.options.vocab_only:
        if splits:
            raise UsageError("--vocab-only writes one file, which is not split")
        if not names_file(output):
            (output,) = _paths(model, ["vocab"], output)
    plan = plan_conversion(model, label, _paths(model, [label], output)[0], splits)
    return carry_out(_told(Job(model, plan, {}), splits), run)


def quantize(
    source: SourceLike,
    types: Sequence[str],
    output: Path | None = None,
    *,
    request: Request = PLAIN,
    imatrix: Imatrix | None = None,
    imatrix_strict: bool = False,
    prune: Sequence[int] = (),
    override_kv: Sequence[str] = (),
    reading: Reading = AS_IT_IS,
    run: Run = ONCE,
) -> Plan:
    """Quantize a checkpoint directory, a GGUF file or `hf://...`: an output a type, in one read.

    `output` is a `.gguf` path for one type, or a directory (default: the current one) that gets
    `<name>-<TYPE>.gguf` for each. `prune` are layers to leave out, `override_kv` keys to set as
    KEY=TYPE:VALUE. Returns the plan that was carried out. Raises QuantkitError.
    """
    call: dict[str, Any] = {
        "request": request,
        "imatrix": imatrix,
        "imatrix_strict": imatrix_strict,
        "prune": prune,
        "override_kv": override_kv,
        "reading": reading,
    }
    job = prepare(source, types, output, **call)
    if run.cluster and not run.dry:
        whole = real(output or Path())
        call |= {
            "source": _anywhere(Source.parse(source), job.model),
            "output": whole,
            "force": run.force,
        }
        check_outputs(job.plan, run.force)
        _tell_notes(job, run)
        quantize_on(run.cluster, job.plan, make_split, call, run.threads or 1, run.progress)
        return job.plan
    return carry_out(job, run)


def prepare(
    source: SourceLike,
    types: Sequence[str],
    output: Path | None = None,
    *,
    request: Request = PLAIN,
    imatrix: Imatrix | None = None,
    imatrix_strict: bool = False,
    prune: Sequence[int] = (),
    override_kv: Sequence[str] = (),
    reading: Reading = AS_IT_IS,
    name: Callable[[Model], str] = lambda model: model.name,
) -> Job:
    """Everything that `quantize` knows before it begins; `name` is what files are called after.

    Raises QuantkitError.
    """
    recipes = list(dict.fromkeys(find_recipe(kind) for kind in types))
    if not recipes:
        raise UsageError("no type given; for instance --type Q4_K_M")
    whole = open_whole(source, reading)
    model = reading.changed(whole)
    model = replace(model, name=name(model))
    if imatrix and reading.keep_experts:
        imatrix = edits.kept_importance(imatrix, whole, reading.keep_experts)
    kv = tuple(edits.parse_override(text, model) for text in override_kv)
    late_kv = imatrix.key_values if imatrix else ()
    old_names: Mapping[str, str] = {}
    if prune:
        model, count, old_names = pruning.prune(model, prune)
        late_kv = (*late_kv, count)
    importance = imatrix.for_tensors(model.tensors, old_names) if imatrix else {}
    importances = None if imatrix is None else frozenset(importance)
    request = replace(request, kv=kv, late_kv=late_kv, importances=importances)
    paths = _paths(model, [r.name for r in recipes], output)
    plan = plan_quantization(model, list(zip(recipes, paths, strict=True)), request)
    notes = [
        *_recipe_notes(plan, request.overrides),
        *_unheeded_notes(model, plan, request.overrides),
        *_requantized_notes(plan),
    ]
    model = replace(model, notes=(*model.notes, *notes))
    if imatrix:
        notes = check_importance(imatrix, plan, imatrix_strict, old_names)
        model = replace(model, notes=(*model.notes, *notes))
    return _told(Job(model, plan, importance), request.splits)


def _recipe_notes(plan: Plan, overrides: Overrides) -> list[str]:
    """What of the tensors has no counterpart in the file that gives their formats."""
    if not overrides.formats:
        return []
    names = plan.outputs[0].by_name
    lone = [name for name in names if name not in overrides.formats]
    unused = [name for name in overrides.formats if name not in names]
    return [
        f"{len(some)} tensors are only in the {which}{end}: {some[0]}{' ...' if some[1:] else ''}"
        for some, which, end in (
            (lone, "model", ", and follow the type"),
            (unused, "file of the recipe", ""),
        )
        if some
    ]


def _unheeded_notes(model: Model, plan: Plan, overrides: Overrides) -> list[str]:
    """Which options for formats change nothing."""
    shapes = {t.name: t.shape for t in model.tensors}
    made = {
        o.type: {name: (t.format, t.fallback_from) for name, t in o.by_name.items()}
        for o in plan.outputs
    }
    return unheeded(overrides, model.arch, shapes, made)


def _requantized_notes(plan: Plan) -> list[str]:
    """That an output is of a source which was quantized before, unless it is only copied."""
    before = {n: kept_as(plan.sources[s.source]) for n, rows in plan.segments.items() for s in rows}
    made = {
        n for o in plan.outputs for n, t in o.by_name.items() if before[n] not in ("", t.format)
    }
    if not made:
        return []
    kept = ", ".join(plan.quantized_before)
    return [
        f"{len(made)} tensors are quantized already ({kept}): what they have lost stays lost, and "
        "any error that is measured is relative to them"
    ]


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
    from quantkit.calibration.imatrix import check_coverage, coverage

    made = [(o.type, t) for o in plan.outputs for t in o.by_name.values()]
    found = coverage(imatrix, [(t.name, t.shape, t.format) for _, t in made], old_names)
    needed = {t.name for kind, t in made if needs_importance(t.name, t.format, kind)}
    check_coverage(imatrix, found, needed, strict)
    return found.lines()


def split(source: SourceLike, output: Path | None, splits: Splits, run: Run = ONCE) -> Plan:
    """Cut a GGUF file into splits, its bytes as they are. `output` names them without `-00001-of-`
    (default: the name of the source, in the current directory); a directory that is there takes
    them under the source's name."""
    if not splits:
        raise UsageError("say where to split: --split-max-size 4G or --split-max-tensors 128")
    source = Source.parse(source)
    check_name(output)
    model = open_gguf(source)
    own = f"{unsplit_name(Path(str(source)).name)}.gguf"
    if output is None or output.is_dir():
        output = (output or Path()) / own
    elif not is_gguf(output):
        output = output.with_name(f"{output.name}.gguf")
    return carry_out(_told(Job(model, plan_copy(model, output, splits), {}), splits), run)


def merge(first: SourceLike, output: Path, run: Run = ONCE) -> Plan:
    """Join a set of splits, of which `first` is any, into one file."""
    if not is_gguf(output):
        raise UsageError(f"{output}: one file is written, and its name ends in .gguf")
    model = open_gguf(first)
    return carry_out(Job(model, plan_copy(model, output), {}), run)


def _anywhere(source: Source, model: Model) -> Source:
    """The source as another machine finds it: by its whole path, or at the commit that was read."""
    if source.address is None:
        return Source(real(source.local()))
    file = next(t.path for t in model.sources.values() if isinstance(t.path, RemoteFile))
    return Source(address=source.address.at(file.commit))


def carry_out(job: Job, run: Run, note: NoteSums | None = None) -> Plan:
    """Do what is planned, or (a dry run) only report it. `note` is given the sums of files that
    could be taken meanwhile. Raises SourceError, OutputError."""
    order = schedule(job.plan, run.threads or default_threads(), run.memory)
    if not run.dry:
        check_outputs(job.plan, run.force)
    _tell_notes(job, run)
    if not run.dry:
        pipeline.execute(order, run.progress, job.importance, run.force, note)
    return job.plan


def _told(job: Job, splits: Splits) -> Job:
    """The job with notes on layers that llama.cpp loads and does not run, and on tensors that are
    larger than a split may be: each is one."""
    model = job.model
    notes = tuple(
        f"{why}; --no-mtp leaves such layers out, and the model runs without them"
        for why in unrun(model.arch, of_architecture(model.arch, model.kv), model.infos)
    )
    job = replace(job, model=replace(model, notes=(*model.notes, *notes)))
    large = {
        (t.name, t.nbytes)
        for output in job.plan.outputs
        for t in output.by_name.values()
        if 0 < splits.max_bytes < t.nbytes
    }
    if not large:
        return job
    name, size = max(large, key=lambda found: found[1])
    note = (
        f"{len({n for n, _ in large})} tensors are larger than --split-max-size and take a split "
        f"each ({name}: {size / 1e9:.2f} GB)"
    )
    return replace(job, model=replace(job.model, notes=(*job.model.notes, note)))


def _tell_notes(job: Job, run: Run) -> None:
    for note in job.model.notes:
        run.progress.tell(note)


def _label(model: Model) -> str:
    """Of the file's type; of what is stored, where the key is not written."""
    keys = {item.key: item.value for item in model.kv if item.key.startswith("general.")}
    if (stated := keys.get("general.file_type")) is not None:
        return {**dict(OUTTYPES.values()), **KEPT}[stated]
    stored = {t.stored for t in model.tensors if len(t.shape) > 1}
    kind = next((kind for kind in ("Q8_0", *sorted(stored)) if kind in stored), "vocab")
    return f"{kind}-LoRA" if keys.get("general.type") == "adapter" else kind


def check_name(output: Path | None) -> None:
    """Raises UsageError for the name of a file that is none of ours, and no directory."""
    if output is not None and output.suffix.lower() in OTHER_FILES and not output.is_dir():
        raise UsageError(f"{output}: the name of a file that is written ends in .gguf")
    if output is not None and output.name.lower() == ".gguf":
        raise UsageError(f"{output}: the file's name is empty; is a variable of the shell not set?")


def names_file(output: Path | None) -> TypeGuard[Path]:
    """Whether one file is named to be written, and no directory."""
    return output is not None and is_gguf(output) and not output.is_dir()


def _filled(name: str, label: str) -> str:
    """A file's name with `{ftype}` or `{outtype}` as the type, and `{FTYPE}` or `{OUTTYPE}` as the
    type in upper case, as llama.cpp's converter writes them."""
    kind = "MXFP4_MOE" if label == "MXFP4" else label.removesuffix("-LoRA")
    for field in ("ftype", "outtype"):
        name = name.replace(f"{{{field}}}", kind.lower())
        name = name.replace(f"{{{field.upper()}}}", kind.upper())
    return name


def _paths(model: Model, labels: Sequence[str], output: Path | None) -> list[Path]:
    if names_file(output):
        paths = [output.with_name(_filled(output.name, label)) for label in labels]
        if len(set(paths)) < len(labels):
            raise UsageError(
                f"{output} is one file and {len(labels)} types are asked for; give -o a directory, "
                "or a name with {ftype} in it"
            )
        return paths
    check_name(output)
    return [(output or Path()) / f"{model.name}-{label}.gguf" for label in labels]
