"""The weights of a GGUF file against those of the source that it was made from.

Every row of the source is put into the file's format again, here, and compared with what the file
holds: the same bytes are proof. Where they differ (an importance matrix, another program), the
error of the file is held against the error that the format has on the very same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit.calibration.imatrix import Importance
from quantkit.errors import NonFiniteWeight
from quantkit.execution.rows import dequantize, fetch
from quantkit.execution.stages import in_threads
from quantkit.gguf.types import GGMLType
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Chunk, Schedule
from quantkit.progress import SILENT, Progress
from quantkit.source.tensors import Files, SourceTensor, numpy_dtype

FLOOR = 2.0**-8  # a relative error that rounding to 16 bits on the way explains

Place = tuple[str, int]  # a tensor, and which of its stacked experts (0 if it is not stacked)
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Sums:
    """Some rows, compared: sums over their weights, of squares if nothing else is said.

    `expected` is what the format made here loses, None where it cannot be made. `worst` is the
    block that lost most, as a multiple of what it should have lost, and `worst_row` where it is;
    `differs` the first row whose bytes are not those made here, None if all are the same.
    """

    source: float
    file: float
    product: float  # of one with the other
    lost: float
    expected: float | None
    worst: float
    worst_row: int
    differs: int | None
    finite: bool

    def __add__(self, other: Sums) -> Sums:
        known = self.expected is not None and other.expected is not None
        worst = max(self, other, key=lambda s: s.worst)
        return Sums(
            self.source + other.source, self.file + other.file, self.product + other.product,
            self.lost + other.lost,
            (self.expected or 0) + (other.expected or 0) if known else None,
            worst.worst, worst.worst_row,
            min((d for d in (self.differs, other.differs) if d is not None), default=None),
            self.finite and other.finite,
        )  # fmt: skip

    @property
    def same(self) -> bool:
        """Whether the file holds, byte for byte, what the format gives."""
        return self.differs is None

    @property
    def relative_error(self) -> float:
        """The root of the mean squared error, relative to the root mean square of the source."""
        return _relative(self.lost, self.source)

    @property
    def expected_error(self) -> float | None:
        """The same for what the format gives on these rows."""
        return None if self.expected is None else _relative(self.expected, self.source)

    @property
    def ratio(self) -> float | None:
        """The one error in terms of the other; errors that 16 bits explain are not told apart."""
        if self.expected_error is None:
            return None
        return max(self.relative_error, FLOOR) / max(self.expected_error, FLOOR)

    @property
    def cosine(self) -> float:
        """Of the angle between the file's weights and the source's."""
        length = sqrt(self.source * self.file)
        return self.product / length if length else float(self.source == self.file)


def _relative(lost: float, source: float) -> float:
    return sqrt(lost / source) if source else (float("inf") if lost else 0.0)


def compare(
    plan: Plan, held: Mapping[str, SourceTensor], threads: int,
    importance: Importance = MappingProxyType({}),
    progress: Progress = SILENT,
) -> dict[Place, Sums]:  # fmt: skip
    """Every matrix of the file, compared. `plan` is how the source becomes the model, `held` are
    the file's tensors that are compared, by name, all of the plan's shapes.

    `importance` is float32 `[experts, n]` by tensor name. Raises SourceError.
    """
    found: dict[Place, Sums] = {}
    done, total = 0, plan.source_bytes
    with Files(plan.inputs | {t.path for t in held.values()}) as files:

        def look(chunk: Chunk) -> tuple[Chunk, Sums]:
            weights = importance.get(chunk.tensor)
            return chunk, _compared(chunk, plan, files, held[chunk.tensor], weights)

        order = Schedule(plan, threads)
        wanted = (chunk for chunk in order.chunks() if chunk.tensor in held)
        for chunk, sums in in_threads(look, wanted, order.workers, files.stop):
            at = place(plan, chunk)
            found[at] = found[at] + sums if at in found else sums
            done += chunk.segment.source_bytes(plan.sources[chunk.segment.source], chunk.count)
            progress.update("weights", done, total)
    return dict(sorted(found.items(), key=lambda item: item[0]))


def place(plan: Plan, chunk: Chunk) -> Place:
    """The matrix that a chunk is of."""
    shape = plan.outputs[0].by_name[chunk.tensor].shape
    return chunk.tensor, chunk.row // shape[-2] if len(shape) > 2 else 0


def _compared(
    chunk: Chunk, plan: Plan, files: Files, held: SourceTensor, importance: Floats | None
) -> Sums:
    source = plan.sources[chunk.segment.source]
    rows, found = fetch(chunk, plan, files), in_file(chunk, plan, files, held)
    if importance is not None:
        importance = importance[place(plan, chunk)[1] if len(importance) > 1 else 0]
    made = _made(rows, source, held, importance)
    differs = _first_difference(made, found)
    w, q = floats(rows, source), floats(found, held)
    finite = bool(np.isfinite(q).all())
    with np.errstate(over="ignore", invalid="ignore"):
        lost = _by_block((w - q) ** 2, held.ggml)
        expected = None
        if differs is None:
            expected = lost
        elif made is not None:
            expected = _by_block((w - floats(made, held)) ** 2, held.ggml)
        power = _by_block(w * w, held.ggml)
        usual = lost if expected is None else expected
        least = np.maximum(usual, max(usual.mean(), FLOOR**2 * power.mean(), 1e-30))
        multiples = np.nan_to_num(lost / least, nan=np.inf)
        worst = int(multiples.argmax())
        return Sums(
            float(power.sum()), _dot(q, q), _dot(w, q), float(lost.sum()),
            None if expected is None else float(expected.sum()),
            sqrt(multiples[worst]), chunk.row + worst * chunk.count // len(multiples),
            None if differs is None else chunk.row + differs, finite,
        )  # fmt: skip


def _first_difference(made: np.ndarray[Any, Any] | None, found: np.ndarray[Any, Any]) -> int | None:
    """The first row whose bytes are not the same; 0 if nothing was made to compare with."""
    if made is None:
        return 0
    equal = (made == found.view(np.uint8).reshape(made.shape)).all(axis=1)
    return None if equal.all() else int(equal.argmin())


def in_file(chunk: Chunk, plan: Plan, files: Files, held: SourceTensor) -> np.ndarray[Any, Any]:
    """What the file holds for a chunk: `[count, row length]`, or blocks of bytes."""
    n = chunk.segment.row_length(plan.sources[chunk.segment.source])
    as_rows = replace(held, shape=(prod(held.shape) // n, n))
    return files.read_rows(as_rows, chunk.row, chunk.count)


def floats(rows: np.ndarray[Any, Any], t: SourceTensor) -> Floats:
    """Rows of a tensor, as they are stored, in float32."""
    if not (t.ggml.is_float or t.ggml.is_number):
        return dequantize(rows, t)
    if rows.dtype == np.uint8:
        rows = rows.view(numpy_dtype(t.ggml))
    return rows.astype(np.float32, copy=False)


def _made(
    rows: np.ndarray[Any, Any], source: SourceTensor, held: SourceTensor, importance: Floats | None
) -> np.ndarray[Any, Any] | None:
    """The rows in the file's format, as bytes; None for formats that are not made here."""
    import quant_types

    ggml = held.ggml
    if ggml == source.ggml and (not ggml.is_float or rows.dtype == numpy_dtype(ggml)):
        return np.ascontiguousarray(rows).view(np.uint8)
    if not any(f.name == ggml.name for f in quant_types.FORMATS):
        return None
    if not quant_types.get_format(ggml.name).takes_importance:
        importance = None
    given = rows if source.ggml.is_float else floats(rows, source)
    try:
        made: np.ndarray[Any, Any] = quant_types.quantize(given, ggml.name, importance)
    except quant_types.NotFinite:
        raise NonFiniteWeight(
            f"{source.path.name}: tensor {source.name} has NaN or infinity; the source is damaged"
        ) from None
    return made


def _by_block(x: Floats, ggml: GGMLType) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The sums of blocks of a format: of 256 weights, or a row, where it has none."""
    size = ggml.block_size
    if size == 1:
        size = 256 if x.shape[-1] % 256 == 0 else x.shape[-1]
    sums: np.ndarray[Any, np.dtype[np.float64]] = x.reshape(-1, size).sum(axis=1, dtype=np.float64)
    return sums


def _dot(a: Floats, b: Floats) -> float:
    return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))


def missing(plan: Plan, held: Sequence[SourceTensor]) -> tuple[dict[str, SourceTensor], list[str]]:
    """The tensors of a file that can be compared, by name, and what is wrong with the others."""
    wanted, there = plan.outputs[0].by_name, {t.name: t for t in held}
    faults = [f"{name} is not in the file" for name in wanted if name not in there]
    faults += [f"{name} is not in the source" for name in there if name not in wanted]
    both = {}
    for name in wanted:
        if (t := there.get(name)) is None:
            continue
        if _bare(t.shape) != _bare(wanted[name].shape):
            faults.append(
                f"{name} is {list(t.shape)} in the file, {list(wanted[name].shape)} in the source"
            )
        else:
            both[name] = t
    return both, faults


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the leading axes of one, which ggml does not count."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
