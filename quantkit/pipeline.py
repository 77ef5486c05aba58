"""Carry a plan out: read each row once, make every output's rows from it, write them in place.

Workers take chunks; what one does depends on no other, so memory is bounded by workers x chunk,
and a run that died goes on with the chunks that are not on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Semaphore
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit.checkpoint import Files, SourceTensor, numpy_dtype
from quantkit.errors import NonFiniteWeight
from quantkit.ggml_types import type_by_name
from quantkit.outputs import OutputFile, open_outputs
from quantkit.plan import Chunk, Plan
from quantkit.rows import dequantize, fetch, source_row
from quantkit.threads import in_threads

Progress = Callable[[int], None]  # bytes of the source that are done
Importance = Mapping[str, "np.ndarray[Any, np.dtype[np.float32]]"]
Target = tuple[str, OutputFile]  # a tensor's format, and the file that it goes to


def execute(
    plan: Plan, threads: int, progress: Progress = lambda done: None,
    importance: Importance = MappingProxyType({}), force: bool = False,
) -> None:  # fmt: skip
    """Write every file of the plan, or go on with what an earlier run left of them.

    `importance` holds float32 `[experts, n]` (one row for a plain matrix) by tensor name. Raises
    NonFiniteWeight, SourceError, OutputError.
    """
    with Files(plan.inputs) as files, open_outputs(plan, importance, force) as outputs:
        targets = _targets(outputs)
        workers, cores = plan.workers(threads), Semaphore(threads)

        def work(chunk: Chunk) -> int:
            _process(chunk, plan, files, targets.get(chunk.tensor, []), importance, cores)
            return chunk.segment.source_bytes(plan.sources[chunk.segment.source], chunk.count)

        for done in in_threads(work, plan.chunks(), workers, files.stop):
            progress(done)


def _targets(outputs: list[OutputFile]) -> dict[str, list[Target]]:
    """Where each tensor goes, equal formats side by side so that each is made once."""
    targets: dict[str, list[Target]] = {}
    for output in outputs:
        for name, (_, t) in output.tensors.items():
            targets.setdefault(name, []).append((t.format, output))
    for found in targets.values():
        found.sort(key=lambda target: target[0])
    return targets


def _process(
    chunk: Chunk, plan: Plan, files: Files, targets: list[Target], importance: Importance,
    cores: Semaphore,
) -> None:  # fmt: skip
    """One chunk into every file that does not have it. `cores` are those that may compute."""
    place = (chunk.tensor, chunk.row, chunk.count)
    targets = [(fmt, output) for fmt, output in targets if not output.has(*place)]
    source = plan.sources[chunk.segment.source]
    if not targets:
        return
    if plan.verbatim and (found := files.locate(source, chunk.segment.source_row + chunk.start)):
        for _, output in targets:
            output.copy(*place, *found, source.row_bytes)
        return
    rows = fetch(chunk, plan, files)
    with cores:
        _make(rows, chunk, plan, targets, importance.get(chunk.tensor))


def _make(rows: Any, chunk: Chunk, plan: Plan, targets: list[Target], weights: Any) -> None:
    """The rows of a chunk in every format that is wanted, into every file that wants them."""
    source = plan.sources[chunk.segment.source]
    floats: np.ndarray[Any, Any] | None = rows if source.ggml.is_float else None
    if weights is not None:
        n_rows = targets[0][1].tensors[chunk.tensor][1].weights // chunk.segment.row_length(source)
        weights = weights[chunk.row // (n_rows // len(weights))]
    format_made, made = "", memoryview(b"")
    for fmt, output in targets:
        if fmt != format_made:
            copied = plan.verbatim or (fmt == source.ggml.name and not source.ggml.is_float)
            if not copied and floats is None:
                floats = dequantize(rows, source)
            data = rows if copied else _quantized(floats, fmt, weights, chunk, source)
            format_made, made = fmt, np.ascontiguousarray(data).view(np.uint8).data.cast("B")
        output.write(chunk.tensor, chunk.row, chunk.count, made)


def _quantized(
    rows: Any, fmt: str, importance: Any, chunk: Chunk, source: SourceTensor
) -> np.ndarray[Any, Any]:
    import quant_types

    if importance is not None and not quant_types.get_format(fmt).takes_importance:
        importance = None
    try:
        ggml = type_by_name(fmt)
        if fmt == "F32" or (ggml.is_float and rows.dtype == numpy_dtype(ggml)):  # not rounded
            quant_types.check_finite(rows)
            same: np.ndarray[Any, Any] = rows
            return same.astype(np.float32, copy=False) if fmt == "F32" else same
        data: np.ndarray[Any, Any] = quant_types.quantize(rows, fmt, importance)
        return data
    except quant_types.NotFinite as e:
        raise NonFiniteWeight(
            f"{source.path.name}: tensor {source.name} has NaN or infinity "
            f"in row {source_row(chunk, e.row)}; the checkpoint is damaged"
        ) from None
