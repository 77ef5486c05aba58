"""The weights of a GGUF file against those of the source that it was made from.

Every row of the source is quantized to the file's format again and compared with the file's: equal
bytes are proof. Where they differ (because of an importance matrix, or another program), the file's
error is compared with the error that the format has on the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod, sqrt
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit.calibration.imatrix import Importance
from quantkit.errors import NonFiniteWeight
from quantkit.execution.rows import bounded, dequantize, fetch
from quantkit.execution.stages import in_threads
from quantkit.gguf.types import GGMLType
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Chunk, Schedule
from quantkit.progress import SILENT, Progress
from quantkit.source.tensors import Files, SourceTensor, numpy_dtype

FLOOR = 2.0**-8  # a relative error that rounding to 16 bits in between explains

Place = tuple[str, int]  # a tensor, and which of its stacked experts (0 if it is not stacked)
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Comparison:
    """Some rows of the file against the same rows of the source: sums over their weights.

    `source` and `file` are sums of squares, `product` of the one with the other, `error` of squared
    differences; `expected` is the error of the format as it is made here, None where it cannot be
    made. `worst` is the largest error of a block as a multiple of the expected one (both as roots),
    `worst_row` where that block is; `differs` is the first row whose bytes are not those made here,
    None if all are the same.
    """

    source: float
    file: float
    product: float
    error: float
    expected: float | None
    worst: float
    worst_row: int
    differs: int | None
    finite: bool

    def __add__(self, other: Comparison) -> Comparison:
        known = self.expected is not None and other.expected is not None
        worst = max(self, other, key=lambda c: c.worst)
        return Comparison(
            self.source + other.source,
            self.file + other.file,
            self.product + other.product,
            self.error + other.error,
            (self.expected or 0) + (other.expected or 0) if known else None,
            worst.worst,
            worst.worst_row,
            min((d for d in (self.differs, other.differs) if d is not None), default=None),
            self.finite and other.finite,
        )

    @property
    def same(self) -> bool:
        """Whether the file holds, byte for byte, what the format gives."""
        return self.differs is None

    @property
    def relative_error(self) -> float:
        """The root mean square of the error, relative to that of the source."""
        return _relative(self.error, self.source)

    @property
    def expected_error(self) -> float | None:
        """The relative error of the format as it is made here, on the same rows."""
        return None if self.expected is None else _relative(self.expected, self.source)

    @property
    def ratio(self) -> float | None:
        """The relative error over the expected one, both at least FLOOR."""
        if self.expected_error is None:
            return None
        return max(self.relative_error, FLOOR) / max(self.expected_error, FLOOR)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the file's weights and the source's."""
        length = sqrt(self.source * self.file)
        return self.product / length if length else float(self.source == self.file)


def _relative(error: float, source: float) -> float:
    return sqrt(error / source) if source else (float("inf") if error else 0.0)


def compare(
    plan: Plan,
    held: Mapping[str, SourceTensor],
    threads: int,
    importance: Importance = MappingProxyType({}),
    progress: Progress = SILENT,
) -> dict[Place, Comparison]:
    """Compare every matrix. `plan` is how the source becomes the model, `held` are the file's
    tensors by name, as `comparable` gives them.

    `importance` is float32 `[experts, n]` by tensor name. Raises SourceError.
    """
    comparisons: dict[Place, Comparison] = {}
    done, total = 0, plan.source_bytes
    with Files(plan.inputs | {t.path for t in held.values()}) as files:

        def work(chunk: Chunk) -> tuple[Chunk, Comparison]:
            weights = importance.get(chunk.tensor)
            return chunk, _compare(chunk, plan, files, held[chunk.tensor], weights)

        order = Schedule(plan, threads)
        wanted = (chunk for chunk in order.chunks() if chunk.tensor in held)
        for chunk, part in in_threads(work, wanted, order.workers, files.stop):
            at = place(plan, chunk)
            comparisons[at] = comparisons[at] + part if at in comparisons else part
            done += chunk.segment.source_bytes(plan.sources[chunk.segment.source], chunk.count)
            progress.update("weights", done, total)
    return dict(sorted(comparisons.items(), key=lambda item: item[0]))


def place(plan: Plan, chunk: Chunk) -> Place:
    """The matrix that a chunk is part of."""
    shape = plan.outputs[0].by_name[chunk.tensor].shape
    return chunk.tensor, chunk.row // shape[-2] if len(shape) > 2 else 0


def _compare(
    chunk: Chunk, plan: Plan, files: Files, held: SourceTensor, importance: Floats | None
) -> Comparison:
    source = plan.sources[chunk.segment.source]
    rows, stored = fetch(chunk, plan, files), in_file(chunk, plan, files, held)
    if importance is not None:
        importance = importance[place(plan, chunk)[1] if len(importance) > 1 else 0]
    made = _quantize(rows, source, held, importance)
    differs = _first_difference(made, stored)
    w, q = (bounded(floats(x, t), held.name) for x, t in ((rows, source), (stored, held)))
    finite = bool(np.isfinite(q).all())
    with np.errstate(over="ignore", invalid="ignore"):
        errors = _by_block((w - q) ** 2, held.ggml)
        expected = None
        if differs is None:
            expected = errors
        elif made is not None:
            expected = _by_block((w - floats(made, held)) ** 2, held.ggml)
        power = _by_block(w * w, held.ggml)
        usual = errors if expected is None else expected
        least = np.maximum(usual, max(usual.mean(), FLOOR**2 * power.mean(), 1e-30))
        multiples = np.nan_to_num(errors / least, nan=np.inf)
        worst = int(multiples.argmax())
        return Comparison(
            float(power.sum()),
            _dot(q, q),
            _dot(w, q),
            float(errors.sum()),
            None if expected is None else float(expected.sum()),
            sqrt(multiples[worst]),
            chunk.row + worst * chunk.count // len(multiples),
            None if differs is None else chunk.row + differs,
            finite,
        )


def _first_difference(
    made: np.ndarray[Any, Any] | None, stored: np.ndarray[Any, Any]
) -> int | None:
    """The first row whose bytes differ, None if none does; 0 if nothing was made."""
    if made is None:
        return 0
    equal = (made == stored.view(np.uint8).reshape(made.shape)).all(axis=1)
    return None if equal.all() else int(equal.argmin())


def in_file(chunk: Chunk, plan: Plan, files: Files, held: SourceTensor) -> np.ndarray[Any, Any]:
    """The file's rows for a chunk: `[count, row length]`, or blocks of bytes."""
    n = chunk.segment.row_length(plan.sources[chunk.segment.source])
    as_rows = replace(held, shape=(prod(held.shape) // n, n))
    return files.read_rows(as_rows, chunk.row, chunk.count)


def floats(rows: np.ndarray[Any, Any], t: SourceTensor) -> Floats:
    """The rows of a tensor, given as they are stored, as float32."""
    if not (t.ggml.is_float or t.ggml.is_number):
        return dequantize(rows, t)
    if rows.dtype == np.uint8:
        rows = rows.view(numpy_dtype(t.ggml))
    return rows.astype(np.float32, copy=False)


def _quantize(
    rows: np.ndarray[Any, Any], source: SourceTensor, held: SourceTensor, importance: Floats | None
) -> np.ndarray[Any, Any] | None:
    """The rows in the file's format, as bytes; None for formats that quantkit cannot make."""
    import quant_types

    ggml = held.ggml
    if ggml == source.ggml and (not ggml.is_float or rows.dtype == numpy_dtype(ggml)):
        return np.ascontiguousarray(rows).view(np.uint8)
    if ggml.name == "F32" and source.ggml.is_float:  # no bit is lost, whatever they are
        return np.ascontiguousarray(floats(rows, source)).view(np.uint8)
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
    """Sums over each block of a format; where it has no blocks, over 256 weights or a row."""
    size = ggml.block_size
    if size == 1:
        size = 256 if x.shape[-1] % 256 == 0 else x.shape[-1]
    sums: np.ndarray[Any, np.dtype[np.float64]] = x.reshape(-1, size).sum(axis=1, dtype=np.float64)
    return sums


def _dot(a: Floats, b: Floats) -> float:
    return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))


def comparable(plan: Plan, tensors: Iterable[SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors of a file, by name, that the plan has too, in the same shape."""
    by_name = {t.name: t for t in tensors}
    return {
        name: by_name[name]
        for name, planned in plan.outputs[0].by_name.items()
        if name in by_name and _bare(by_name[name].shape) == _bare(planned.shape)
    }


def differences(plan: Plan, tensors: Iterable[SourceTensor]) -> list[str]:
    """Lines on the tensors that a file lacks, has beyond those of the plan, or in other shapes."""
    planned, by_name = plan.outputs[0].by_name, {t.name: t for t in tensors}
    lines = [f"{name} is not in the file" for name in planned if name not in by_name]
    lines += [f"{name} is not in the source" for name in by_name if name not in planned]
    return lines + [
        f"{name} is {list(by_name[name].shape)} in the file, {list(t.shape)} in the source"
        for name, t in planned.items()
        if name in by_name and _bare(by_name[name].shape) != _bare(t.shape)
    ]


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without leading axes of length one, which GGUF does not store."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
