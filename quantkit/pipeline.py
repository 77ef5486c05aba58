"""Carry a plan out: read each row once, make every output's rows from it, write them in place.

Chunks go through three stages, each with threads of its own: those that compute wait neither for
the source nor for the disk. What happens to a chunk depends on no other, so memory is bounded by
the chunks under way, and a run that died goes on with those that are not on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from quantkit.checkpoint import Files, SourceTensor, numpy_dtype
from quantkit.errors import NonFiniteWeight
from quantkit.ggml_types import type_by_name
from quantkit.outputs import OutputFile, open_outputs
from quantkit.plan import Chunk, Plan
from quantkit.rows import dequantize, fetch, source_row
from quantkit.threads import in_stages

Progress = Callable[[int], None]  # bytes of the source that are done
Importance = Mapping[str, "np.ndarray[Any, np.dtype[np.float32]]"]
Target = tuple[str, OutputFile]  # a tensor's format, and the file that it goes to


class Work(NamedTuple):
    """A chunk between two stages."""

    chunk: Chunk
    targets: list[Target]  # the files that do not have it yet
    rows: Any = None  # as they were read
    made: tuple[tuple[list[OutputFile], memoryview], ...] = ()  # the bytes for files


def execute(
    plan: Plan, threads: int, progress: Progress = lambda done: None,
    importance: Importance = MappingProxyType({}), force: bool = False,
) -> None:  # fmt: skip
    """Write every file of the plan, or go on with what an earlier run left of them.

    `importance` holds float32 `[experts, n]` (one row for a plain matrix) by tensor name. Raises
    NonFiniteWeight, SourceError, OutputError.
    """
    _prepare(plan, importance, threads)
    with Files(plan.inputs) as files, open_outputs(plan, importance, force) as outputs:
        targets = _targets(outputs)

        def read(chunk: Chunk) -> Work:
            return _read(chunk, plan, files, targets.get(chunk.tensor, []))

        def make(work: Work) -> Work:
            if work.rows is None:
                return work
            return _make(work, plan, importance.get(work.chunk.tensor))

        def write(work: Work) -> int:
            return _write(work, plan, files)

        at_a_time = plan.stages(threads)
        stages = (read, at_a_time.read), (make, at_a_time.make), (write, at_a_time.write)
        with in_stages(plan.chunks(), stages, files.stop) as done:
            for size in done:
                progress(size)


def _targets(outputs: list[OutputFile]) -> dict[str, list[Target]]:
    """Where each tensor goes, equal formats side by side so that each is made once."""
    targets: dict[str, list[Target]] = {}
    for output in outputs:
        for name, (_, t) in output.tensors.items():
            targets.setdefault(name, []).append((t.format, output))
    for found in targets.values():
        found.sort(key=lambda target: target[0])
    return targets


def _prepare(plan: Plan, importance: Importance, threads: int) -> None:
    """Have the kernels ready of the formats that will be made; of floats they are seldom wanted."""
    import quant_types

    wanted = {
        (t.format, name in importance)
        for output in plan.outputs
        for name, t in output.by_name.items()
        if not (plan.verbatim or type_by_name(t.format).is_float)
        and any(plan.sources[s.source].ggml.name != t.format for s in plan.segments[name])
    }
    if wanted:
        quant_types.prepare(wanted, threads)


def _read(chunk: Chunk, plan: Plan, files: Files, targets: list[Target]) -> Work:
    """The rows of a chunk, if a file does not have it; but those that the system copies."""
    lacking = [t for t in targets if not t[1].has(chunk.tensor, chunk.row, chunk.count)]
    copied = plan.verbatim and files.locate(*_place(chunk, plan))
    return Work(chunk, lacking, fetch(chunk, plan, files) if lacking and not copied else None)


def _make(work: Work, plan: Plan, importance: Any) -> Work:
    """The rows of a chunk in every format that is wanted."""
    chunk, targets, rows, _ = work
    source = plan.sources[chunk.segment.source]
    floats = rows if source.ggml.is_float else None
    if importance is not None:  # of each expert, where each has its own
        n_rows = targets[0][1].tensors[chunk.tensor][1].weights // chunk.segment.row_length(source)
        importance = importance[chunk.row // (n_rows // len(importance))]
    made = []
    for fmt, group in groupby(targets, key=itemgetter(0)):
        outputs = [output for _, output in group]
        if plan.verbatim or (fmt == source.ggml.name and not source.ggml.is_float):
            data = rows
        else:
            floats = dequantize(rows, source) if floats is None else floats
            size = type_by_name(fmt).row_bytes(floats.size)
            room = outputs[0].room(chunk.tensor, chunk.row, size, chunk.count)
            data = _quantized(floats, fmt, importance, chunk, source, room)
        made.append((outputs, np.ascontiguousarray(data).view(np.uint8).data.cast("B")))
    return Work(chunk, targets, made=tuple(made))


def _write(work: Work, plan: Plan, files: Files) -> int:
    """A chunk into every file that wants it. Returns the bytes of the source that it was."""
    chunk = work.chunk
    place = (chunk.tensor, chunk.row, chunk.count)
    size = chunk.segment.source_bytes(plan.sources[chunk.segment.source], chunk.count)
    for outputs, data in work.made:
        for output in outputs:
            output.write(*place, data)
    if not work.made and work.targets:
        found = files.locate(*_place(chunk, plan))
        assert found is not None
        for _, output in work.targets:
            output.copy(*place, *found, size)
    return size


def _place(chunk: Chunk, plan: Plan) -> tuple[SourceTensor, int]:
    """The source of a chunk, and the row of it that is the first."""
    return plan.sources[chunk.segment.source], chunk.segment.source_row + chunk.start


def _quantized(
    rows: Any, fmt: str, importance: Any, chunk: Chunk, source: SourceTensor, out: Any
) -> np.ndarray[Any, Any]:
    """The rows in a format, in `out` or, if they are that already, as they are."""
    import quant_types

    if importance is not None and not quant_types.get_format(fmt).takes_importance:
        importance = None
    try:
        ggml = type_by_name(fmt)
        if fmt == "F32" or (ggml.is_float and rows.dtype == numpy_dtype(ggml)):  # not rounded
            quant_types.check_finite(rows)
            same: np.ndarray[Any, Any] = rows
            return same.astype(np.float32, copy=False) if fmt == "F32" else same
        data: np.ndarray[Any, Any] = quant_types.quantize(rows, fmt, importance, out=out)
        return data
    except quant_types.NotFinite as e:
        raise NonFiniteWeight(
            f"{source.path.name}: tensor {source.name} has NaN or infinity "
            f"in row {source_row(chunk, e.row)}; the checkpoint is damaged"
        ) from None
