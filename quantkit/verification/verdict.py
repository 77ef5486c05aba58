"""What verifying a file gives: findings, proofs, and the errors of every tensor."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

from quantkit.gguf import tensor_names
from quantkit.planning.plan import Plan
from quantkit.reporting.table import html_table
from quantkit.source.tensors import SourceTensor
from quantkit.verification.divergence import Divergence
from quantkit.verification.weights import Comparison, Place

TENSORS = ("Tensor", "Format", "Error", "Expected", "Cosine", "Worst block", "Bytes")
SHOWN = 10  # tensors in a table
DRAWN = 16  # experts that have a line each in a picture


@dataclass(frozen=True)
class MatrixErrors:
    """The errors of a matrix, or of a whole tensor, as in `weights.Comparison`; None for those that
    are not finite, or cannot be known. `same`: every byte is the one that the format gives."""

    relative_error: float | None
    expected_error: float | None
    ratio: float | None
    cosine: float | None
    worst_block: float | None
    same: bool

    @classmethod
    def of(cls, c: Comparison) -> MatrixErrors:
        """The errors of rows that were compared."""
        return cls(
            _finite(c.relative_error),
            _finite(c.expected_error),
            _finite(c.ratio),
            _finite(c.cosine),
            _finite(c.worst),
            c.same,
        )


def _finite(x: float | None) -> float | None:
    return x if x is not None and isfinite(x) else None


@dataclass(frozen=True)
class TensorErrors:
    """The errors of a tensor, and of each of its experts if they are stacked."""

    name: str
    format: str
    shape: tuple[int, ...]
    whole: MatrixErrors
    experts: tuple[MatrixErrors, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Plain values, as `verify --json` prints them."""
        return {
            "name": self.name,
            "format": self.format,
            "shape": list(self.shape),
            **asdict(self.whole),
            "experts": [asdict(expert) for expert in self.experts],
        }

    def cells(self) -> tuple[str, ...]:
        """Its line in a table under TENSORS."""
        errors = self.whole
        numbers = (errors.relative_error, errors.expected_error, errors.cosine, errors.worst_block)
        texts = ("?" if x is None else f"{x:.4f}" for x in numbers)
        return self.name, self.format, *texts, "same" if errors.same else "other"


def tensor_errors(
    comparisons: Mapping[Place, Comparison], held: Mapping[str, SourceTensor], plan: Plan
) -> list[TensorErrors]:
    """The errors of the file's tensors that were compared, in the plan's order."""
    by_tensor: dict[str, list[Comparison]] = defaultdict(list)
    for (name, _), comparison in comparisons.items():
        by_tensor[name].append(comparison)
    errors = []
    for name in plan.outputs[0].by_name:
        if parts := by_tensor.get(name):
            whole = MatrixErrors.of(sum(parts[1:], parts[0]))
            experts = tuple(map(MatrixErrors.of, parts)) if len(parts) > 1 else ()
            t = held[name]
            errors.append(TensorErrors(name, t.ggml.name, t.shape, whole, experts))
    return errors


@dataclass(frozen=True)
class Completion:
    """What a model says after a prompt, in llama.cpp; no text if it was not loaded."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether a file is what it should be. `findings` make it bad, `notes` do not; `proven` says
    what was shown. `sound`: its bytes and its structure hold, so that it can be run; `completion`
    and `divergences` are what it did in llama.cpp, if that was asked for."""

    file: str
    findings: Sequence[str] = ()
    notes: Sequence[str] = ()
    proven: Sequence[str] = ()
    tensors: Sequence[TensorErrors] = ()
    sound: bool = False
    completion: Completion | None = None
    divergences: Sequence[Divergence] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def line(self) -> str:
        """The verdict in a line."""
        if self.good:
            return f"good: {self.file}: {'; '.join(self.proven)}"
        n = len(self.findings)
        return f"bad: {self.file}: {n} finding{'s' if n > 1 else ''}"

    def worst(self) -> list[TensorErrors]:
        """The tensors, those first that are furthest from what they should be."""

        def order(t: TensorErrors) -> tuple[float, ...]:
            errors = t.whole.ratio, t.whole.relative_error
            return (t.whole.same, *(-inf if x is None else -x for x in errors))

        return sorted(self.tensors, key=order)

    def as_data(self) -> dict[str, Any]:
        """Plain values, as `verify --json` prints them."""
        data: dict[str, Any] = {
            "verdict": "good" if self.good else "bad",
            "file": self.file,
            "findings": list(self.findings),
            "notes": list(self.notes),
            "proven": list(self.proven),
            "tensors": [t.as_data() for t in self.tensors],
            "sound": self.sound,
        }
        if self.completion:
            data["run"] = asdict(self.completion)
        if self.divergences:
            data["kl"] = [asdict(d) for d in self.divergences]
        return data

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.line)}</p>"]
        lines = [*self.findings, *(f"note: {text}" for text in self.notes)]
        if lines:
            parts.append(f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>")
        if self.tensors:
            parts.append(html_table(TENSORS, [t.cells() for t in self.worst()[:SHOWN]]))
        return "\n".join(parts)


def picture(verdict: Verdict) -> str:
    """The errors by layer and role, and by expert where those are few, as SVG."""
    from quantkit.charts.plots import heat
    from quantkit.charts.svg import Axis

    errors: dict[str, dict[int, float]] = defaultdict(dict)
    for t in verdict.tensors:
        name = tensor_names.parse(t.name)
        rows = {name.role: t.whole}
        if 0 < len(t.experts) <= DRAWN:
            rows = {f"{name.role} {xid}": expert for xid, expert in enumerate(t.experts)}
        for row, of_row in rows.items():
            if name.bid is not None and of_row.relative_error:
                errors[row][name.bid] = of_row.relative_error
    layers = sorted({bid for line in errors.values() for bid in line})
    values = [[line.get(bid) for bid in layers] for line in errors.values()]
    axis = Axis("Relative error", "{:.2%}".format, log=True)
    title = f"Errors of {verdict.file}"
    return heat(title, list(errors), [str(b) for b in layers], values, axis, below="layer")
