"""What each format does to each tensor: relative squared error, from a sample of its rows.

The sample is spread evenly over the rows (so over the experts), and the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit.calibration.imatrix import Importance
from quantkit.errors import NonFiniteWeight
from quantkit.execution.rows import dequantize, fetch, source_row
from quantkit.execution.stages import in_threads
from quantkit.planning.plan import Plan, PlannedTensor
from quantkit.planning.schedule import Chunk, Schedule
from quantkit.progress import SILENT, Progress
from quantkit.recipes.facts import ModelFacts, is_quantized
from quantkit.recipes.sensitivity import Judged, mean_error
from quantkit.source.tensors import Files

SAMPLE = 1 << 18  # weights of a tensor that are looked at
PIECES, PIECES_AFAR = 32, 4  # runs of rows that they are taken in: here, and from a server

Errors = Mapping[str, float]  # by format
Floats = np.ndarray[Any, np.dtype[np.float32]]


def measure(
    plan: Plan,
    wanted: Mapping[str, Sequence[str]],
    threads: int,
    importance: Importance = MappingProxyType({}),
    progress: Progress = SILENT,
) -> dict[str, Errors]:
    """The relative squared error of every wanted format of every wanted tensor.

    That is the sum of (w - q)^2 over the sum of w^2, each weighed by the channel's importance where
    there is one. `importance` is float32 `[experts, n]` by tensor name; `progress` is told
    the bytes of the sample (as float32) that are done, and in all.
    Raises NonFiniteWeight, SourceError.
    """
    tensors = plan.outputs[0].by_name
    sizes = {name: 4 * min(SAMPLE, tensors[name].weights) for name in wanted}
    by_tensor: dict[str, Errors] = {}
    with Files(plan.inputs) as files:

        def work(name: str) -> tuple[str, Errors]:
            rows, weights = _sample(plan, tensors[name], files, importance.get(name))
            return name, {fmt: relative_error(rows, fmt, weights) for fmt in wanted[name]}

        for name, errors in in_threads(work, wanted, Schedule(plan, threads).workers, files.stop):
            by_tensor[name] = errors
            progress.update("measuring", sum(sizes[n] for n in by_tensor), sum(sizes.values()))
    return by_tensor


def mean_errors(
    plan: Plan, facts: ModelFacts, threads: int, importance: Importance = MappingProxyType({})
) -> dict[str, float]:
    """The mean error (`quality.mean_error`) of each output of a plan, by its type, measured from
    samples of its source. What is copied has none. Raises as `measure`."""
    wanted: dict[str, set[str]] = {}
    for output in plan.outputs:
        for name, t in output.by_name.items():
            sources = {plan.sources[s.source].ggml.name for s in plan.segments[name]}
            if is_quantized(name, t.shape, facts.arch) and sources != {t.format}:
                wanted.setdefault(name, set()).add(t.format)
    errors = measure(plan, {n: sorted(f) for n, f in wanted.items()}, threads, importance)
    return {
        o.type: mean_error(
            [
                Judged(name, t.shape, t.format, errors.get(name, {}).get(t.format, 0.0))
                for name, t in o.by_name.items()
            ],
            facts,
        )
        for o in plan.outputs
    }


def relative_error(rows: Floats, fmt: str, importance: Floats | None = None) -> float:
    """The relative squared error of rows `[m, n]`, weighed by `importance` of the same shape."""
    import quant_types

    used = importance if quant_types.get_format(fmt).takes_importance else None
    made = quant_types.dequantize(quant_types.quantize(rows, fmt, used), fmt)
    lost, there = (made - rows) ** 2, rows**2
    if importance is not None:
        lost, there = lost * importance, there * importance
    power = float(there.sum(dtype=np.float64))
    return float(lost.sum(dtype=np.float64)) / power if power else 0.0


def _sample(
    plan: Plan, t: PlannedTensor, files: Files, importance: Floats | None
) -> tuple[Floats, Floats | None]:
    """Some rows of a tensor in float32, and the importance of each of their weights."""
    n, rows, weights = t.shape[-1], [], []
    per_expert = t.weights // n // (1 if importance is None else len(importance))
    for chunk in pieces(plan, t):
        source = plan.sources[chunk.segment.source]
        rows_read = fetch(chunk, plan, files)
        part = (
            rows_read.astype(np.float32) if source.ggml.is_float else dequantize(rows_read, source)
        )
        part = part.reshape(-1, n)
        if not (finite := np.isfinite(part).all(axis=1)).all():
            raise NonFiniteWeight(
                f"{source.path.name}: tensor {source.name} has NaN or infinity in row "
                f"{source_row(chunk, int(finite.argmin()))}; the checkpoint is damaged"
            )
        rows.append(part)
        if importance is not None:
            experts = (chunk.row + np.arange(len(part))) // per_expert
            weights.append(importance[experts])
    return np.concatenate(rows), np.concatenate(weights) if weights else None


def pieces(plan: Plan, t: PlannedTensor) -> Iterator[Chunk]:
    """Runs of the tensor's rows, at equal distances."""
    total = t.weights // t.shape[-1]
    count = min(max(SAMPLE // t.shape[-1], 1), total)
    afar = any(plan.sources[s.source].is_remote for s in plan.segments[t.name])
    runs = 1 if count == total else min(PIECES_AFAR if afar else PIECES, count)
    for start in (i * total // runs for i in range(runs)):
        left = count // runs
        for s in plan.segments[t.name]:
            first = max(start - s.first_row, 0)
            if left and first < s.count and start + left > s.first_row:
                # an order of rows changes none of them
                held = min(left, s.count - first)
                yield Chunk(t.name, replace(s, order=()), first, held)
                left -= held
                start += held
