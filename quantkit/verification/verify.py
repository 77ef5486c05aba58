"""Whether a GGUF file is what it should be: proof where it can be had, a judgement where not.

1. Its bytes, where a release's `manifest.json` lies beside it: any change is found and named.
2. Its structure, and whether its blocks are finite, by itself.
3. Its metadata, vocabulary and weights, against the source that it was made from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.calibration.imatrix import Imatrix, check_usable
from quantkit.errors import (
    LlamaError,
    LlamaMissing,
    SourceError,
    SourceNotFound,
    TokenizerError,
    UsageError,
)
from quantkit.execution.stages import default_threads
from quantkit.gguf.container import Header
from quantkit.gguf.splits import split_siblings
from quantkit.llama import apart
from quantkit.loading import ahead, vocabulary
from quantkit.loading.kinds import ADAPTER, DRAFT, MODEL, PROJECTOR, Kind, kind_of
from quantkit.loading.patterns import PARTS
from quantkit.loading.values import listed, of_architecture
from quantkit.model.model import Model
from quantkit.model.open import AS_IT_IS, Reading, open_checkpoint, open_source
from quantkit.planning.build import laid_out
from quantkit.progress import SILENT, Progress
from quantkit.releases import manifest
from quantkit.releases.checksums import hash_file
from quantkit.releases.manifest import FileRecord
from quantkit.source.gguf_set import open_gguf_set
from quantkit.source.location import Source, SourceLike
from quantkit.source.tensors import SourceTensor
from quantkit.verification import (
    blocks,
    metadata_check,
    misplaced,
    structure,
    tokenization,
    weights,
)
from quantkit.verification.verdict import TensorErrors, Verdict, tensor_errors
from quantkit.verification.weights import Comparison, Place

RATIO = 3.0  # of an error to the format's own; an importance matrix may double it
COSINE = 0.5  # of the cosine to the format's own; unrelated weights have 0
FAINT = 0.6  # the least cosine of formats that cannot be made here
BLOCK = 32.0  # of a block's error to the usual one; an extreme importance matrix may make it 16


@dataclass(frozen=True)
class Check:
    """What one check gives for the verdict."""

    findings: Sequence[str] = ()
    notes: Sequence[str] = ()
    proven: Sequence[str] = ()


def verify(
    file: Path,
    against: SourceLike | None = None,
    *,
    reading: Reading = AS_IT_IS,
    imatrix: Imatrix | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Verdict:
    """Verify a GGUF file, or the set of splits that it is one of; `against` its source, if given:
    a checkpoint or a GGUF file, read as `reading` says.

    With the `imatrix` that it was made with, its bytes can be proven. Raises SourceError and
    ModelError for what is wrong with the source, CorruptFile for a damaged manifest, and
    SourceNotFound where there is no file, and no manifest that has one; what is wrong with the file
    becomes a finding. UsageError: a file that is made of no source here.
    """
    checks, errors = [_check_bytes(file, progress)], list[TensorErrors]()
    try:
        header, tensors = open_gguf_set(file)
    except SourceError as e:
        if isinstance(e, SourceNotFound) and not checks[0].findings:
            raise
        return _verdict(file, [*checks, Check([str(e)])])
    faults = structure.faults(header, tensors)
    kind = kind_of(header.kv, [t.name for t in tensors])
    what = "" if kind in (MODEL, DRAFT) else f" ({kind.words})"
    is_sound = f"the structure of {len(tensors)} tensors is sound{what}"
    checks.append(Check(faults) if faults else Check(proven=[is_sound]))
    sound = not any(check.findings for check in checks)
    threads = threads or default_threads()
    if against is None and not faults:  # else its weights are compared with the source's
        checks.append(Check(blocks.faults(tensors, threads, progress)))
    if against is not None:
        if kind not in (MODEL, DRAFT, PROJECTOR, ADAPTER):
            raise UsageError(f"{file} is {kind.words}, which is held against no source; {kind.use}")
        source = Source.parse(against)
        if source.is_checkpoint:
            reading = _as_written(header, tensors, kind, reading)
        model = _opened(file, kind, source, reading)
        checks.append(_check_metadata(header, model))
        has_words = kind in (MODEL, DRAFT) and not faults
        if has_words and source.path:  # llama.cpp would read past the end of short arrays
            checks.append(_check_tokenization(header, structure.first_split(file), source.path))
        check, errors = _check_weights(header, tensors, model, imatrix, threads, progress)
        checks.append(check)
    if kind in (MODEL, DRAFT) and not any(check.findings for check in checks):
        checks.insert(2, _check_loading(file, header, tensors))
    return _verdict(file, checks, errors, sound)


def _as_written(
    header: Header, tensors: Sequence[SourceTensor], kind: Kind, reading: Reading
) -> Reading:
    """`reading` of encoders where the file is of that kind, and of nothing but the layers that
    predict further tokens where the file has no others."""
    if kind is PROJECTOR:
        return replace(reading, options=replace(reading.options, mmproj=True))
    values = of_architecture(str(header.get("general.architecture")), header.kv)
    if reading.options.mtp == "with" and ahead.are_alone(values, (t.name for t in tensors)):
        return replace(reading, options=replace(reading.options, mtp="only"))
    return reading


def _opened(file: Path, kind: Kind, source: Source, reading: Reading) -> Model:
    """The source of a file of that kind. Raises SourceError, ModelError, UsageError."""
    if kind is not ADAPTER:
        return open_source(source, reading)
    if not source.is_checkpoint:
        model = open_source(source)
    else:
        model = open_checkpoint(source, "auto", Reading(base=reading.base))
    if all(item.value != "adapter" for item in model.kv if item.key == "general.type"):
        raise UsageError(
            f"{file} is {kind.words}: it is held against the adapter's own directory, which has an "
            f"adapter_config.json, and {source} has none"
        )
    return model


def _verdict(
    file: Path, checks: Sequence[Check], errors: Sequence[TensorErrors] = (), sound: bool = False
) -> Verdict:
    return Verdict(
        file.name,
        findings=[text for check in checks for text in check.findings],
        notes=[text for check in checks for text in check.notes],
        proven=[text for check in checks for text in check.proven],
        tensors=errors,
        sound=sound,
    )


def _check_bytes(file: Path, progress: Progress) -> Check:
    """Compare the files' checksums with those in the manifest beside them. Raises CorruptFile."""
    release = manifest.read(file.parent / manifest.NAME)
    if release is None:
        return Check()
    records = {record.name: record for record in release.files}
    names = [name for name in split_siblings(file.name) if name in records]
    if not names:
        return Check(notes=[f"{manifest.NAME} does not list {file.name}"])
    total, done = sum(records[name].nbytes for name in names), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress.update("checksums", done, total)

    changes: list[str] = []
    for name in names:
        if (path := file.with_name(name)).is_file():
            changes += _changes(path, records[name], advance)
        else:
            changes.append(f"{name} is in {manifest.NAME} and not there")
    if changes:
        return Check(changes)
    return Check(proven=[f"every byte is the one that {manifest.NAME} names"])


def missing_files(directory: Path) -> Verdict | None:
    """What the manifest of a release lists and its directory does not have; None if that is
    nothing. What was pushed may be on the Hub alone. Raises CorruptFile."""
    release = manifest.read(directory / manifest.NAME)
    files = release.files if release else ()
    names = [f.name for f in files if not (directory / f.name).is_file()]
    texts = [f"{name} is in {manifest.NAME} and not there" for name in names]
    if not texts:
        return None
    if release and release.repo:
        return Verdict(manifest.NAME, notes=[f"{t}; it may be on the Hub" for t in texts])
    return Verdict(manifest.NAME, findings=texts)


def _changes(path: Path, record: FileRecord, advance: Callable[[int], None]) -> list[str]:
    """Lines on what has changed in a file: tensors by name, else the padding or the header."""
    tensors = sorted(record.tensors, key=lambda t: t.offset)
    spans = [(t.offset, t.offset + t.nbytes) for t in tensors]
    whole, parts = hash_file(path, spans, advance)
    if whole == record.sha256:
        return []
    size = path.stat().st_size
    if size != record.nbytes:
        cut = [t.name for t, (_, end) in zip(tensors, spans, strict=True) if end > size]
        lost = f"; it ends before {listed(cut)}" if cut else ""
        return [f"{path.name}: {size} bytes, {manifest.NAME} says {record.nbytes}{lost}"]
    changed = [
        f"{path.name}: the bytes of {t.name} were changed"
        for t, digest in zip(tensors, parts, strict=True)
        if digest != t.sha256
    ]
    if changed:
        return changed
    with path.open("rb") as f:
        starts = [*(start for start, _ in spans[1:]), size]
        for (_, end), t, start in zip(spans, tensors, starts, strict=True):
            f.seek(end)
            if any(f.read(start - end)):
                return [f"{path.name}: the padding after {t.name} was changed"]
    return [f"{path.name}: the header was changed"]


def _check_loading(file: Path, header: Header, tensors: Sequence[SourceTensor]) -> Check:
    """Ask llama.cpp itself, of which shapes and tensors it wants; no weight is read."""
    arch = header.get("general.architecture")
    whole = arch not in PARTS and any(t.name.startswith("blk.0.") for t in tensors)
    path = structure.first_split(file)
    text = "" if header.get("tokenizer.ggml.model") in vocabulary.NONE else "Hello, world"
    try:
        apart.ask(path, {"run": whole, "text": text})
    except LlamaMissing as e:
        return Check(notes=[f"llama.cpp was not asked whether it loads the file: {e}"])
    except LlamaError as e:
        return Check([apart.told(path, e)])
    return Check(proven=["llama.cpp loads it"])


def _check_metadata(header: Header, model: Model) -> Check:
    """Compare metadata and vocabulary with the source's."""
    if (arch := header.get("general.architecture")) != model.arch:
        return Check([f"the file is of architecture {arch}, the source of {model.arch}"])
    if differences := metadata_check.differences(header.kv, model.kv, model.arch):
        return Check(differences)
    return Check(proven=["metadata and vocabulary are the source's"])


def _check_tokenization(header: Header, file: Path, checkpoint: Path) -> Check:
    """Compare how llama.cpp splits texts with how the checkpoint's tokenizer does."""
    if not checkpoint.is_dir():
        return Check()
    try:
        reference = tokenization.reference(checkpoint)
        if reference is None:
            return Check()
        n_vocab = len(header.get("tokenizer.ggml.tokens") or ())
        differences = tokenization.differences(tokenization.splitting(file), reference, n_vocab)
    except (TokenizerError, LlamaMissing) as e:
        return Check(notes=[f"texts were not split in llama.cpp: {e}"])
    except LlamaError as e:
        return Check([str(e)])
    if differences:
        return Check(differences)
    return Check(proven=["llama.cpp splits texts as the source's tokenizer does"])


def _check_weights(
    header: Header,
    tensors: Sequence[SourceTensor],
    model: Model,
    imatrix: Imatrix | None,
    threads: int,
    progress: Progress,
) -> tuple[Check, list[TensorErrors]]:
    """Compare every tensor with what the source gives."""
    plan = laid_out(model, "", Path("unwritten"))
    faults, held = weights.differences(plan, tensors), weights.comparable(plan, tensors)
    if imatrix:
        check_usable(imatrix)
    importance = imatrix.for_tensors(model.tensors) if imatrix else {}
    comparisons = weights.compare(plan, held, threads, importance, progress)
    unknown = header.get("quantize.imatrix.file") is not None and imatrix is None
    bad = judge(comparisons, held, unknown)
    finite = [at for at in bad if comparisons[at].finite]
    instead = misplaced.find_misplaced(plan, held, comparisons, finite)
    errors = tensor_errors(comparisons, held, plan)
    unnamed = [text for at, text in bad.items() if at not in instead]
    findings = [*faults, *misplaced.as_lines(instead, plan), *unnamed]
    if findings:
        return Check(findings), errors
    same = sum(t.whole.same for t in errors)
    if same == len(errors):
        proven = "every tensor is byte for byte what its format gives"
    else:
        how = "as near to the source as their formats allow"
        proven = f"{same} of {len(errors)} tensors are proven, the others {how}"
    notes = []
    left = {held[name].ggml.name for (name, _), c in comparisons.items() if c.expected is None}
    if left:
        notes.append(
            f"{', '.join(sorted(left))} cannot be made here: that their errors are usual was not "
            "shown, only that the weights are the source's"
        )
    elif unknown and same < len(errors):
        notes.append("made with an importance matrix; with --imatrix its bytes can be proven")
    return Check(notes=notes, proven=[proven]), errors


def judge(
    comparisons: Mapping[Place, Comparison], held: Mapping[str, SourceTensor], unknown: bool
) -> dict[Place, str]:
    """The matrices that are wrong, each with a line on how. `unknown`: the file was made with an
    importance matrix that is not at hand, so that bytes that differ prove nothing."""
    same: dict[str, list[bool]] = defaultdict(list)  # by format
    for (name, _), comparison in comparisons.items():
        same[held[name].ggml.name].append(comparison.same)
    bad = {}
    for at, comparison in comparisons.items():
        kind, shape = held[at[0]].ggml.name, held[at[0]].shape
        where = f"{at[0]}, expert {at[1]}" if len(shape) > 2 else at[0]
        before = at[1] * shape[-2] if len(shape) > 2 else 0  # rows of the experts before it
        most = 2 * sum(same[kind]) > len(same[kind])
        error, usual = comparison.relative_error, comparison.expected_error
        if not comparison.finite:
            bad[at] = f"{where} has NaN or infinity"
        elif comparison.same:
            continue
        elif _is_another(comparison):
            gives = "" if usual is None else f" where {kind} gives {usual:.4f}"
            bad[at] = f"{where} is not what the source has: relative error {error:.4f}{gives}"
        elif usual is not None and comparison.worst > BLOCK:
            row, times = comparison.worst_row - before, f"{comparison.worst:.0f} times"
            bad[at] = f"{where}, row {row}: a block loses {times} what {kind} loses"
        elif most and not unknown and comparison.differs is not None:
            row = comparison.differs - before
            bad[at] = f"{where}, row {row}: not the bytes that {kind} gives, unlike the rest"
    return bad


def _is_another(comparison: Comparison) -> bool:
    """Whether the weights are so far from the source's that they must be others."""
    if comparison.ratio is None or comparison.expected_error is None:
        return comparison.cosine < FAINT
    # the cosine of a rounding without bias
    usual = max(1 - comparison.expected_error**2, 0) ** 0.5
    return comparison.ratio > RATIO or comparison.cosine < COSINE * usual
