"""Importance matrices: the mean squared activation of each input channel, from a calibration run.

Made of sums and counts as llama-quantize makes them (`tools/quantize/quantize.cpp`,
`load_imatrix`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.calibration.sums import Sums, read_sums, usable
from quantkit.errors import ImatrixError, UsageError
from quantkit.gguf.container import KeyValue, string, uint32
from quantkit.recipes.facts import category, is_quantized

if TYPE_CHECKING:
    from quantkit.model.model import ModelTensor

Values = NDArray[np.float32]
Importance = Mapping[str, Values]  # float32 `[experts, n]` (one row for a plain matrix) by tensor

_TEXT_BYTES = 127  # of a string that llama-quantize adds to the metadata

UNCHANGED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix.

    `values` holds, for each tensor's name, float32 `[experts * n]`: n input channels, expert after
    expert. An expert that calibration never reached has 1 everywhere, the neutral prior.
    `file` is the path as it was given, `chunks` the number of calibration chunks (0: not known),
    `name` what files that are made with it say of it, if not the path.
    """

    file: str
    values: Mapping[str, Values] = field(repr=False)
    datasets: tuple[str, ...]
    chunks: int
    name: str = ""

    def entry(self, name: str) -> str:
        """The entry that serves a tensor: its own; or else that of a product with the same
        activations. gate and up of experts have the same, whether they are one tensor or two."""
        return next((n for n in (name, *_alike(name)) if n in self.values), name)

    def of(self, name: str) -> Values | None:
        """The values for a tensor, if there are any."""
        return self.values.get(self.entry(name))

    def for_tensors(
        self, tensors: Iterable[ModelTensor], old_names: Mapping[str, str] = UNCHANGED
    ) -> dict[str, Values]:
        """float32 `[experts, n]` (1 expert if not stacked) by name, for the tensors that have data.

        `old_names` gives the name at calibration by today's, where layers were pruned. Data of
        another size is left aside for an embedding and for what is never quantized, as
        llama-quantize does; for any other tensor it raises ImatrixError.
        """
        by_name, wrong = {}, []
        for t in tensors:
            data = self.of(old_names.get(t.name, t.name))
            if data is None:
                continue
            if _fits(t.shape, data):
                by_name[t.name] = data.reshape(_experts_and_width(t.shape))
            elif _counts(t.name, t.shape):
                wrong.append(_disagreement(t.name, t.shape, data))
        if wrong:
            raise ImatrixError(_of_another_model(self, wrong))
        return by_name

    @property
    def key_values(self) -> tuple[KeyValue, ...]:
        """The keys that llama-quantize adds to a file, in its order."""
        prefix = "quantize.imatrix."
        items = [_text(prefix + "file", self.name or self.file)]
        items += [_text(prefix + "dataset", name) for name in self.datasets[:1]]
        items.append(uint32(prefix + "entries_count", len(self.values)))
        if 0 < self.chunks < 1 << 31:  # which llama-quantize reads as a signed number
            items.append(uint32(prefix + "chunks_count", self.chunks))
        return tuple(items)


def _alike(name: str) -> tuple[str, ...]:
    """Other tensors that are multiplied with the same activations."""
    parts, whole = ("ffn_gate_exps", "ffn_up_exps"), "ffn_gate_up_exps"
    if f".{whole}." in name:
        return tuple(name.replace(whole, part) for part in parts)
    return tuple(name.replace(part, whole) for part in parts if f".{part}." in name)


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read an importance matrix of either form.

    Raises SourceNotFound, CorruptFile or UnsupportedSource (a GGUF that cannot be read), and
    ImatrixError (a file that is no importance matrix, or a damaged one).
    """
    return importances(os.fspath(path), read_sums(path))


def importances(file: str, sums: Sums) -> Imatrix:
    """What has been summed up, as it is used: means, and 1 for an expert that was never reached."""
    values = {}
    for name, entry in sums.entries.items():
        counts = entry.counts.astype(np.float32)  # llama-quantize divides in float32
        rows = entry.squares.reshape(counts.size, -1)
        if sums.is_dat and counts[0] <= 0:
            values[name] = entry.squares
        else:
            values[name] = _means(rows, counts[:, None]).reshape(-1)
    return Imatrix(file, values, sums.datasets, sums.chunks)


def _means(sums: Values, counts: Values) -> Values:
    """Sums over counts in float32, and 1 where nothing was counted."""
    with np.errstate(all="ignore"):  # what is not finite is reported, not computed with
        return np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)


def selected(imatrix: Imatrix, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Imatrix:
    """The entries whose names hold one of `include` (none given: all), or none of `exclude`:
    llama-quantize's `--include-weights` and `--exclude-weights`.

    Raises UsageError: both are given; ImatrixError: a name that is part of no entry, nothing left.
    """
    if include and exclude:
        raise UsageError("--include-weights and --exclude-weights exclude each other; give one")
    for part in (*include, *exclude):
        if not any(part in name for name in imatrix.values):
            known = {p for name in imatrix.values for p in (name, *name.split("."))}
            near = get_close_matches(part, sorted(known), n=3, cutoff=0.5)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise ImatrixError(f"{imatrix.file} has no entry for {part!r}{hint}")

    def stays(name: str) -> bool:
        if include:
            return any(part in name for part in include)
        return not any(part in name for part in exclude)

    values = {name: data for name, data in imatrix.values.items() if stays(name)}
    if not values:
        raise ImatrixError(f"{imatrix.file}: every entry is excluded; leave --imatrix out instead")
    return replace(imatrix, values=values)


def takes_importance(fmt: str) -> bool:
    """Whether a format is made by importances; tables of integers are not made at all."""
    import quant_types

    return any(f.name == fmt and f.takes_importance for f in quant_types.FORMATS)


@dataclass(frozen=True)
class Coverage:
    """What an importance matrix has for a model, before work begins.

    Attributes:
        covered: how many tensors have data that their format uses.
        missing: tensors whose format would use data, without any. (Embedding and output are not
            among them: calibration does not see them.)
        unreached: by tensor, the experts that calibration never reached: their data is 1.
        mismatched: data of another size than the tensor: a person's line for each.
        unknown: entries that name no tensor of the model.
        bare: tensors without data, embedding and output among them.
    """

    covered: int
    missing: tuple[str, ...]
    unreached: Mapping[str, tuple[int, ...]]
    mismatched: tuple[str, ...]
    unknown: tuple[str, ...]
    bare: frozenset[str] = frozenset()

    def lines(self) -> list[str]:
        """What a person should know; empty where everything has data."""
        out = []
        if self.missing:
            out.append(f"no importances for {_some(self.missing)}: quantized without")
        if self.unreached:
            count = sum(map(len, self.unreached.values()))
            first = [
                name + (f" expert {'/'.join(map(str, experts[:4]))}" if "_exps" in name else "")
                for name, experts in self.unreached.items()
            ]
            what = (
                "matrices of experts" if all("_exps" in n for n in self.unreached) else "matrices"
            )
            out.append(
                f"{what} that calibration never reached: {count}, which get a neutral importance "
                f"of 1: {_some(first)}"
            )
        if self.unknown:
            out.append(f"importances for what the model does not have: {_some(self.unknown)}")
        return out


def coverage(
    imatrix: Imatrix,
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
    old_names: Mapping[str, str] = UNCHANGED,
) -> Coverage:
    """Compare a matrix with what will be made: (name, shape in NumPy order, format) of each tensor
    of each output, so a name may come up several times. `old_names` as for `for_tensors`."""
    uses: dict[str, bool] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape, fmt in tensors:
        shapes[name] = shape
        uses[name] = uses.get(name, False) or takes_importance(fmt)
    entries = {name: old_names.get(name, name) for name in shapes}
    covered, missing, mismatched = 0, [], []
    unreached: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        data, ends = imatrix.of(entries[name]), category(name) in ("token_embd", "output")
        if data is not None and _fits(shape, data):
            covered += uses[name]
            idle = np.flatnonzero((data.reshape(_experts_and_width(shape)) == 1).all(axis=1))
            if idle.size:
                unreached[name] = tuple(idle.tolist())
        elif data is not None and _counts(name, shape):
            mismatched.append(_disagreement(name, shape, data))
        elif uses[name] and not ends:
            missing.append(name)
    known = {other for name in entries.values() for other in (name, *_alike(name))}
    return Coverage(
        covered=covered,
        missing=tuple(missing),
        unreached=unreached,
        mismatched=tuple(mismatched),
        unknown=tuple(name for name in imatrix.values if name not in known),
        bare=frozenset(
            name
            for name, shape in shapes.items()
            if (data := imatrix.of(entries[name])) is None or not _fits(shape, data)
        ),
    )


def check_usable(imatrix: Imatrix) -> None:
    """Raises ImatrixError: values that cannot weigh anything."""
    if invalid := [name for name, values in imatrix.values.items() if not usable(values)]:
        raise ImatrixError(
            f"{imatrix.file}: NaN, infinite or negative importances for "
            f"{_some(invalid)}; the file is damaged"
        )


def check_coverage(
    imatrix: Imatrix, coverage: Coverage, needed: Collection[str] = (), strict: bool = False
) -> None:
    """Refuse a matrix that cannot be used: damaged, of another model, without data for a tensor
    that is `needed` (`recipes.needs_importance`), or, if `strict`, without data for any.

    Raises ImatrixError.
    """
    check_usable(imatrix)
    if coverage.mismatched:
        raise ImatrixError(_of_another_model(imatrix, coverage.mismatched))
    if len(coverage.unknown) == len(imatrix.values):
        raise ImatrixError(
            f"{imatrix.file} is of another model: the model has none of its tensors "
            f"({_some(coverage.unknown)})"
        )
    if lacking := sorted(coverage.bare.intersection(needed)):
        ahead = any(".nextn." in name for name in lacking)
        raise ImatrixError(
            f"{imatrix.file}: no importances for {_some(lacking)}, which so few "
            "bits need; choose a larger type, or one for them alone (--tensor-type)"
            + ahead
            * ", or leave out layers that predict further tokens (--no-mtp)"
        )
    if strict and (coverage.missing or coverage.unreached):
        raise ImatrixError(f"{imatrix.file}: {'; '.join(coverage.lines())}")


def _experts_and_width(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[-3] if len(shape) > 2 else 1), shape[-1]


def _counts(name: str, shape: Sequence[int]) -> bool:
    """Whether data of another size says that a matrix is of another model."""
    return category(name) != "token_embd" and is_quantized(name, shape)


def _fits(shape: Sequence[int], data: Values) -> bool:
    return data.size == prod(_experts_and_width(shape))


def _disagreement(name: str, shape: Sequence[int], data: Values) -> str:
    experts, n = _experts_and_width(shape)
    return f"{name} needs {experts} x {n} values, the matrix has {data.size}"


def _of_another_model(imatrix: Imatrix, disagreements: Sequence[str]) -> str:
    return f"{imatrix.file} is of another model: {_some(disagreements, '; ')}"


def _some(names: Sequence[str], separator: str = ", ") -> str:
    """The first three, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return separator.join(names[:3]) + more


def _text(key: str, value: str) -> KeyValue:
    data = value.encode("utf-8", "surrogateescape").split(b"\0")[0][:_TEXT_BYTES]
    return string(key, data)
