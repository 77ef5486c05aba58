"""Whether a GGUF file is what it should be: proof where it can be had, a judgement where not.

1. Its bytes, where a release's `manifest.json` lies beside it: any change is found and named.
2. Its structure, and whether its blocks are finite, by itself.
3. Its metadata, vocabulary and weights, against the source that it was made from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from quantkit.calibration.imatrix import Imatrix
from quantkit.errors import CorruptFile, LlamaError, LlamaMissing, SourceError, TokenizerError
from quantkit.execution.stages import default_threads
from quantkit.gguf import tensor_names
from quantkit.gguf.container import Header
from quantkit.gguf.splits import split_siblings
from quantkit.loading.model import listed
from quantkit.model.model import Model
from quantkit.model.open import AS_IT_IS, Reading, open_source
from quantkit.planning.build import laid_out
from quantkit.planning.plan import Plan
from quantkit.progress import SILENT, Progress
from quantkit.releases import manifest
from quantkit.source.gguf_set import open_gguf_set
from quantkit.source.tensors import SourceTensor
from quantkit.tokenizer.vocabulary import malformed
from quantkit.verification import (
    blocks,
    metadata_check,
    misplaced,
    structure,
    tokenization,
    weights,
)
from quantkit.verification.divergence import Divergence
from quantkit.verification.weights import Place, Sums

RATIO = 3.0  # of an error to the one that the format has; an importance matrix may double it
COSINE = 0.5  # of the cosine that the format has; what has nothing to do with the source has 0
FAINT = 0.6  # the cosine below which no format goes that is not made here
BLOCK = 32.0  # of a block's error to the usual one; an extreme importance matrix may make it 16
DRAWN = 16  # experts that have a line each in a picture


@dataclass
class Verdict:
    """What was found. `findings` make a file bad, `notes` do not; `proven` says what was shown.
    `sound`: nothing is wrong with the bytes and the structure, so that it can be run;
    `completion` and `divergences`: what it said in llama.cpp, if it was asked."""

    file: str
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    sound: bool = False
    completion: dict[str, str] | None = None
    divergences: list[Divergence] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def line(self) -> str:
        """The verdict."""
        if self.good:
            return f"good: {self.file}: {'; '.join(self.proven)}"
        n = len(self.findings)
        return f"bad: {self.file}: {n} finding{'s' if n > 1 else ''}"


def verify(
    file: Path, against: Path | str | None = None, *, reading: Reading = AS_IT_IS,
    imatrix: Imatrix | None = None, threads: int | None = None,
    progress: Progress = SILENT,
) -> Verdict:  # fmt: skip
    """Verify a GGUF file, or the set of splits that it is one of; `against` its source, if given:
    a checkpoint or a GGUF file, read as `reading` says.

    With the `imatrix` that it was made with, its bytes can be proven. Raises SourceError and
    ModelError for what is wrong with the source, never for what is wrong with the file.
    """
    out = Verdict(file.name)
    threads = threads or default_threads()
    _bytes(file, out, progress)
    try:
        header, tensors = open_gguf_set(file)
    except SourceError as e:
        out.findings.append(str(e))
        return out
    faults = structure.faults(header, tensors)
    out.findings += faults
    out.sound = not out.findings
    if not faults:
        out.proven.append(f"the structure of {len(tensors)} tensors is sound")
        if against is None:  # its weights are looked at beside the source's
            out.findings += blocks.faults(tensors, threads, progress)
    if against is not None:
        model = reading.changed(open_source(against, reading))
        _metadata(header, model, out)
        if not faults:  # llama.cpp would read past the end of arrays that are too short
            _spelling(structure.first_split(file), Path(against), out)
        _weights(header, tensors, model, imatrix, threads, out, progress)
    return out


def _bytes(file: Path, out: Verdict, progress: Progress) -> None:
    """Hold the files' sums against the manifest beside them."""
    found = manifest.read(file.parent / manifest.NAME)
    if found is None:
        return
    records = {record["name"]: record for record in found["files"]}
    names = [name for name in split_siblings(file.name) if name in records]
    if not names:
        out.notes.append(f"{manifest.NAME} does not list {file.name}")
        return
    total, done = sum(records[name]["bytes"] for name in names), 0
    wrong: list[str] = []
    for name in names:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress.update("checksums", done, total)

        if (path := file.with_name(name)).is_file():
            wrong += _changed(path, records[name], advance)
        else:
            wrong.append(f"{name} is in {manifest.NAME} and not there")
    out.findings += wrong
    if not wrong:
        out.proven.append(f"every byte is the one that {manifest.NAME} names")


def _changed(path: Path, record: Mapping[str, Any], advance: Callable[[int], None]) -> list[str]:
    """Lines on what of a file is not as it was: tensors by name, the rest as what it is."""
    with malformed(CorruptFile, f"{path.with_name(manifest.NAME)}: not a manifest, or damaged"):
        tensors = sorted(record["tensors"], key=lambda t: t["offset"])
        spans = [(t["offset"], t["offset"] + t["bytes"]) for t in tensors]
    whole, parts = manifest.sums(path, spans, advance)
    if whole == record["sha256"]:
        return []
    size = path.stat().st_size
    if size != record["bytes"]:
        cut = [t["name"] for t, (_, end) in zip(tensors, spans, strict=True) if end > size]
        lost = f"; it ends before {listed(cut)}" if cut else ""
        return [f"{path.name}: {size} bytes, {manifest.NAME} says {record['bytes']}{lost}"]
    changed = [
        f"{path.name}: the bytes of {t['name']} were changed"
        for t, digest in zip(tensors, parts, strict=True) if digest != t["sha256"]
    ]  # fmt: skip
    if changed:
        return changed
    with path.open("rb") as f:
        starts = [*(start for start, _ in spans[1:]), size]
        for (_, end), t, start in zip(spans, tensors, starts, strict=True):
            f.seek(end)
            if any(f.read(start - end)):
                return [f"{path.name}: the padding after {t['name']} was changed"]
    return [f"{path.name}: the header was changed"]


def _metadata(header: Header, model: Model, out: Verdict) -> None:
    """The keys are the source's."""
    wrong = metadata_check.differences(header.kv, model.kv, model.arch)
    if (arch := header.get("general.architecture")) != model.arch:
        wrong = [f"the file is of architecture {arch}, the source of {model.arch}"]
    out.findings += wrong
    if not wrong:
        out.proven.append("metadata and vocabulary are the source's")


def _spelling(file: Path, checkpoint: Path, out: Verdict) -> None:
    """Texts are split as the checkpoint's tokenizer splits them."""
    if not checkpoint.is_dir():
        return
    try:
        theirs = tokenization.reference(checkpoint)
        wrong = tokenization.differences(tokenization.splitting(file), theirs) if theirs else None
    except (TokenizerError, LlamaMissing) as e:
        out.notes.append(f"texts were not split in llama.cpp: {e}")
        return
    except LlamaError as e:
        wrong = [str(e)]
    out.findings += wrong or []
    if wrong == []:
        out.proven.append("llama.cpp splits texts as the source's tokenizer does")


def _weights(
    header: Header, tensors: Sequence[SourceTensor], model: Model, imatrix: Imatrix | None,
    threads: int, out: Verdict, progress: Progress,
) -> None:  # fmt: skip
    """Every tensor is there, and holds what it should."""
    plan = laid_out(model, "", Path("unwritten"))
    held, faults = weights.missing(plan, tensors)
    out.findings += faults
    importance = imatrix.for_tensors(model.tensors) if imatrix else {}
    found = weights.compare(plan, held, threads, importance, progress)
    unknown = header.get("quantize.imatrix.file") is not None and imatrix is None
    bad = judged(found, held, unknown)
    instead = misplaced.mistaken(plan, held, found, [at for at in bad if found[at].finite])
    named = list(misplaced.said(instead, plan))
    out.findings += named + [text for at, text in bad.items() if at not in instead]
    out.tensors = as_data(found, held, plan)
    if faults or bad or instead:
        return
    same = sum(t["same"] for t in out.tensors)
    if same == len(out.tensors):
        out.proven.append("every tensor is byte for byte what its format gives")
    else:
        how = "as near to the source as their formats allow"
        out.proven.append(f"{same} of {len(out.tensors)} tensors are proven, the others {how}")
    left = sorted({held[name].ggml.name for (name, _), s in found.items() if s.expected is None})
    if left:
        out.notes.append(
            f"{', '.join(left)} cannot be made here: that their errors are usual was not shown, "
            "only that the weights are the source's"
        )
    elif unknown and same < len(out.tensors):
        out.notes.append("made with an importance matrix; with --imatrix its bytes can be proven")


def judged(
    found: Mapping[Place, Sums], held: Mapping[str, SourceTensor], unknown: bool
) -> dict[Place, str]:
    """What is wrong with which matrix. `unknown`: made with an importance matrix that is not at
    hand, so that bytes prove nothing."""
    proven: dict[str, list[bool]] = defaultdict(list)
    for (name, _), sums in found.items():
        proven[held[name].ggml.name].append(sums.same)
    bad = {}
    for at, sums in found.items():
        kind, shape = held[at[0]].ggml.name, held[at[0]].shape
        where = f"{at[0]}, expert {at[1]}" if len(shape) > 2 else at[0]
        before = at[1] * shape[-2] if len(shape) > 2 else 0  # rows of the experts before it
        most = 2 * sum(proven[kind]) > len(proven[kind])
        error, usual = sums.relative_error, sums.expected_error
        if not sums.finite:
            bad[at] = f"{where} has NaN or infinity"
        elif sums.same:
            continue
        elif _is_another(sums):
            gives = "" if usual is None else f" where {kind} gives {usual:.4f}"
            bad[at] = f"{where} is not what the source has: relative error {error:.4f}{gives}"
        elif sums.expected is not None and sums.worst > BLOCK:
            row = sums.worst_row - before
            bad[at] = f"{where}, row {row}: a block loses {sums.worst:.0f} times what {kind} loses"
        elif most and not unknown and sums.differs is not None:
            row = sums.differs - before
            bad[at] = f"{where}, row {row}: not the bytes that {kind} gives, unlike the rest"
    return bad


def _is_another(sums: Sums) -> bool:
    if sums.ratio is None or sums.expected_error is None:
        return sums.cosine < FAINT
    usual = max(1 - sums.expected_error**2, 0) ** 0.5  # the cosine of a rounding without bias
    return sums.ratio > RATIO or sums.cosine < COSINE * usual


def as_data(
    found: Mapping[Place, Sums], held: Mapping[str, SourceTensor], plan: Plan
) -> list[dict[str, Any]]:
    """Every tensor's errors as plain values, its experts' in it."""
    by_tensor: dict[str, list[Sums]] = defaultdict(list)
    for (name, _), sums in found.items():
        by_tensor[name].append(sums)
    out = []
    for name in plan.outputs[0].by_name:
        if parts := by_tensor.get(name):
            whole = sum(parts[1:], parts[0])
            t = {"name": name, "format": held[name].ggml.name, "shape": list(held[name].shape)}
            experts = [_values(s) for s in parts] if len(parts) > 1 else []
            out.append({**t, **_values(whole), "experts": experts})
    return out


def _values(sums: Sums) -> dict[str, Any]:
    numbers = {
        "relative_error": sums.relative_error, "expected_error": sums.expected_error,
        "ratio": sums.ratio, "cosine": sums.cosine, "worst_block": sums.worst,
    }  # fmt: skip
    plain = {k: None if x is None or not isfinite(x) else x for k, x in numbers.items()}
    return {**plain, "same": sums.same}


def worst(found: Verdict) -> list[dict[str, Any]]:
    """The tensors, those first that are furthest from what they should be."""

    def order(t: dict[str, Any]) -> tuple[float, ...]:
        largest = [float("inf") if t[k] is None else t[k] for k in ("ratio", "relative_error")]
        return (t["same"], *(-x for x in largest))

    return sorted(found.tensors, key=order)


def picture(found: Verdict) -> str:
    """The errors by layer and role, and by expert where those are few, as SVG."""
    from quantkit.charts.plots import heat
    from quantkit.charts.svg import Axis

    errors: dict[str, dict[int, float]] = defaultdict(dict)
    for t in found.tensors:
        name = tensor_names.parse(t["name"])
        rows = {name.role: t}
        if 0 < len(t["experts"]) <= DRAWN:
            rows = {f"{name.role} {xid}": part for xid, part in enumerate(t["experts"])}
        for row, part in rows.items():
            if name.bid is not None and part["relative_error"]:
                errors[row][name.bid] = part["relative_error"]
    layers = sorted({bid for line in errors.values() for bid in line})
    values = [[line.get(bid) for bid in layers] for line in errors.values()]
    axis = Axis("Relative error", "{:.2%}".format, log=True)
    title = f"Errors of {found.file}"
    return heat(title, list(errors), [str(b) for b in layers], values, axis, below="layer")
