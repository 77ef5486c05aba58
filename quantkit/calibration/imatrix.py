"""Importance matrices: the mean squared activation of each input channel, from a calibration run.

Reads both of llama.cpp's forms, GGUF and the older `.dat` (`common/imatrix-loader.cpp`), and makes
of them the values that llama-quantize makes (`tools/quantize/quantize.cpp`, `load_imatrix`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import ImatrixError, SourceNotFound, UsageError
from quantkit.gguf.container import MAGIC, Header, KeyValue, TensorInfo, read_header, uint32
from quantkit.gguf.types import type_by_name
from quantkit.recipes.facts import category

if TYPE_CHECKING:
    from quantkit.model.model import ModelTensor

Values = NDArray[np.float32]
Importance = Mapping[str, Values]  # float32 `[experts, n]` (one row for a plain matrix) by tensor
Bytes = NDArray[np.uint8]
Contents = tuple[dict[str, Values], tuple[str, ...], int]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_TEXT_BYTES = 127  # of a string that llama-quantize adds to the metadata

UNCHANGED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix.

    `values` holds, for each tensor's name, float32 `[experts * n]`: n input channels, expert after
    expert. An expert that calibration never reached has 1 everywhere, the neutral prior.
    `file` is the path as it was given, `chunks` the number of calibration chunks (0: not known).
    """

    file: str
    values: Mapping[str, Values] = field(repr=False)
    datasets: tuple[str, ...]
    chunks: int

    def for_tensors(
        self, tensors: Iterable[ModelTensor], old_names: Mapping[str, str] = UNCHANGED
    ) -> dict[str, Values]:
        """float32 `[experts, n]` (1 expert if not stacked) by name, for the tensors that have data.

        `old_names` gives the name at calibration by today's, where layers were pruned. Data of
        another size is left aside for an embedding, as llama-quantize does; for any other tensor
        it raises ImatrixError.
        """
        by_name, wrong = {}, []
        for t in tensors:
            data = self.values.get(old_names.get(t.name, t.name))
            if data is None:
                continue
            if _fits(t.shape, data):
                by_name[t.name] = data.reshape(_experts_and_width(t.shape))
            elif category(t.name) != "token_embd":
                wrong.append(_disagreement(t.name, t.shape, data))
        if wrong:
            raise ImatrixError(_of_another_model(self, wrong))
        return by_name

    @property
    def key_values(self) -> tuple[KeyValue, ...]:
        """The keys that llama-quantize adds to a file, in its order."""
        prefix = "quantize.imatrix."
        items = [_text(prefix + "file", self.file)]
        items += [_text(prefix + "dataset", name) for name in self.datasets[:1]]
        items.append(uint32(prefix + "entries_count", len(self.values)))
        if self.chunks > 0:
            items.append(uint32(prefix + "chunks_count", self.chunks))
        return tuple(items)


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read an importance matrix of either form.

    Raises SourceNotFound, CorruptFile or UnsupportedSource (a GGUF that cannot be read), and
    ImatrixError (a file that is no importance matrix, or a damaged one).
    """
    file = Path(path)
    try:
        data: Bytes = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, "u1")
    except OSError as e:
        raise SourceNotFound(f"{path}: cannot be read ({e.strerror})") from None
    is_gguf = data[:4].tobytes() == MAGIC
    contents = _from_gguf(file, data) if is_gguf else _from_legacy(file, data)
    return Imatrix(os.fspath(path), *contents)


def _from_gguf(path: Path, data: Bytes) -> Contents:
    """Sums of squares `[experts, n]` over counts `[experts]` (kept as float32, rounded here)."""
    header = read_header(path)
    infos = {t.name: t for t in header.tensors}
    names = sorted(
        {
            t.name.removesuffix(suffix)
            for t in header.tensors
            for suffix in (_SUMS, _COUNTS)
            if t.name.endswith(suffix)
        }
    )
    if not names:
        raise ImatrixError(f"{path} is not an importance matrix: it has no {_SUMS} tensors")
    values = {}
    for name in names:
        for part in (name + _SUMS, name + _COUNTS):
            if part not in infos or infos[part].ggml_type != type_by_name("F32").id:
                raise ImatrixError(f"{path}: tensor {part} is missing, or not F32")
        sums = _float32(infos[name + _SUMS], header, data)
        counts = _float32(infos[name + _COUNTS], header, data).astype(np.float64)
        if not np.isfinite(counts).all() or sums.size % counts.size:
            raise ImatrixError(
                f"{path}: {sums.size} sums and {counts.size} counts for {name} do not go together, "
                "or a count is not a number; the file is damaged"
            )
        whole = np.trunc(counts + np.copysign(0.5, counts)).astype(np.float32)  # C's lround
        values[name] = _means(sums.reshape(counts.size, -1), whole[:, None]).reshape(-1)
    return values, *_gguf_origin(path, header)


def _gguf_origin(path: Path, header: Header) -> tuple[tuple[str, ...], int]:
    """The datasets and the number of chunks; llama-quantize insists on all three keys."""
    origin: dict[str, Any] = {}
    for key in ("datasets", "chunk_count", "chunk_size"):
        item = next((i for i in header.kv if i.key == f"imatrix.{key}"), None)
        wanted = "ARRAY" if key == "datasets" else "UINT32"
        if item is None or item.type != wanted:
            raise ImatrixError(
                f"{path}: imatrix.{key} is missing, or not {wanted}; not a matrix "
                "of llama-imatrix, or a damaged one"
            )
        origin[key] = item.value
    return tuple(map(str, origin["datasets"])), origin["chunk_count"]


def _float32(t: TensorInfo, header: Header, data: Bytes) -> Values:
    start = header.data_offset + t.offset
    return data[start : start + 4 * prod(t.shape)].view("<f4")


def _means(sums: Values, counts: Values) -> Values:
    """Sums over counts in float32, and 1 where nothing was counted."""
    with np.errstate(all="ignore"):  # what is not finite is reported, not computed with
        return np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)


def _from_legacy(path: Path, data: Bytes) -> Contents:
    """`[count, entries ..., chunks, dataset]`; an entry is a name, the number of calls, and means
    that were multiplied by it (experts that were never reached as 1)."""
    at = 0

    def take(n: int) -> Bytes:
        nonlocal at
        if not 0 <= n <= data.size - at:
            raise ImatrixError(
                f"{path} is not an importance matrix, or a damaged one: "
                f"{n} bytes expected at byte {at} of {data.size}"
            )
        at += n
        return data[at - n : at]

    def number() -> int:
        return int(struct.unpack("<i", take(4).tobytes())[0])

    def text() -> str:
        return take(number()).tobytes().split(b"\0")[0].decode("utf-8", "surrogateescape")

    values: dict[str, Values] = {}
    for _ in range(number()):
        name, calls, size = text(), number(), number()
        if size < 1:
            raise ImatrixError(f"{path}: {name} has {size} values; the file is damaged")
        sums = take(4 * size).copy().view("<f4")
        values[name] = _means(sums, np.float32(calls)) if calls > 0 else sums
    if not values:
        raise ImatrixError(f"{path}: no entries; not an importance matrix, or an empty one")
    chunks = number() if at < data.size else 0
    dataset = text() if at < data.size else ""
    return values, (dataset,) if dataset else (), chunks


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


@dataclass(frozen=True)
class Coverage:
    """What an importance matrix has for a model, before work begins.

    Attributes:
        covered: how many tensors have data that their format uses.
        missing: tensors whose format would use data, without any. (Embedding and output are not
            among them: calibration does not see them.)
        unreached: by tensor, the experts that calibration never reached: their data is 1.
        mismatched: data of another size than the tensor: a person's line for each.
        invalid: entries with NaN, infinite or negative values.
        unknown: entries that name no tensor of the model.
        bare: tensors without data, embedding and output among them.
    """

    covered: int
    missing: tuple[str, ...]
    unreached: Mapping[str, tuple[int, ...]]
    mismatched: tuple[str, ...]
    invalid: tuple[str, ...]
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
                f"{name} expert {'/'.join(map(str, experts[:4]))}"
                for name, experts in self.unreached.items()
            ]
            out.append(
                f"matrices of experts that calibration never reached: {count}, which get a "
                f"neutral importance of 1: {_some(first)}"
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
    import quant_types

    uses: dict[str, bool] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape, fmt in tensors:
        shapes[name] = shape
        uses[name] = uses.get(name, False) or quant_types.get_format(fmt).takes_importance
    entries = {name: old_names.get(name, name) for name in shapes}
    covered, missing, mismatched = 0, [], []
    unreached: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        data, ends = imatrix.values.get(entries[name]), category(name) in ("token_embd", "output")
        if data is not None and _fits(shape, data):
            covered += uses[name]
            idle = np.flatnonzero((data.reshape(_experts_and_width(shape)) == 1).all(axis=1))
            if idle.size:
                unreached[name] = tuple(idle.tolist())
        elif data is not None and category(name) != "token_embd":
            mismatched.append(_disagreement(name, shape, data))
        elif uses[name] and not ends:
            missing.append(name)
    known = set(entries.values())
    return Coverage(
        covered=covered,
        missing=tuple(missing),
        unreached=unreached,
        mismatched=tuple(mismatched),
        invalid=tuple(n for n, v in imatrix.values.items() if not _usable(v)),
        unknown=tuple(name for name in imatrix.values if name not in known),
        bare=frozenset(
            name
            for name, shape in shapes.items()
            if (data := imatrix.values.get(entries[name])) is None or not _fits(shape, data)
        ),
    )


def check_coverage(
    imatrix: Imatrix, coverage: Coverage, needed: Collection[str] = (), strict: bool = False
) -> None:
    """Refuse a matrix that cannot be used: damaged, of another model, without data for a tensor
    that is `needed` (`recipes.needs_importance`), or, if `strict`, without data for any.

    Raises ImatrixError.
    """
    if coverage.invalid:
        raise ImatrixError(
            f"{imatrix.file}: NaN, infinite or negative importances for "
            f"{_some(coverage.invalid)}; the file is damaged"
        )
    if coverage.mismatched:
        raise ImatrixError(_of_another_model(imatrix, coverage.mismatched))
    if len(coverage.unknown) == len(imatrix.values):
        raise ImatrixError(
            f"{imatrix.file} is of another model: the model has none of its tensors "
            f"({_some(coverage.unknown)})"
        )
    if lacking := sorted(coverage.bare.intersection(needed)):
        raise ImatrixError(
            f"{imatrix.file}: no importances for {_some(lacking)}, which so few "
            "bits need; choose a larger type"
        )
    if strict and (coverage.missing or coverage.unreached):
        raise ImatrixError(f"{imatrix.file}: {'; '.join(coverage.lines())}")


def _experts_and_width(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[-3] if len(shape) > 2 else 1), shape[-1]


def _fits(shape: Sequence[int], data: Values) -> bool:
    return data.size == prod(_experts_and_width(shape))


def _usable(data: Values) -> bool:
    return bool((np.isfinite(data) & (data >= 0)).all())


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
    return KeyValue(key, struct.pack("<IQ", 8, len(data)) + data)
