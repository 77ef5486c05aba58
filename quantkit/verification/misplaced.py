"""Which matrix of the source a matrix of the file really is, where it is not the one it should be.

A sample of rows is enough: it is the matrix of the source that, scaled to fit best, leaves the
smallest residual of the file's weights, whatever the format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.execution.rows import fetch
from quantkit.loading.values import listed
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Chunk, Schedule
from quantkit.source.tensors import Files, SourceTensor
from quantkit.verification.weights import Comparison, Floats, Place, floats, in_file, place

SAMPLE = 1 << 15  # weights of a matrix that are compared
NEARER = 0.98  # of the right matrix's residual: another one below that is what the file holds
LIKE = 0.5  # the least cosine of matrices that are related
MOST = 64  # matrices that are searched for in the whole source


def find_misplaced(
    plan: Plan,
    held: Mapping[str, SourceTensor],
    comparisons: Mapping[Place, Comparison],
    bad: Sequence[Place],
) -> dict[Place, Place]:
    """The matrix of the source that the file holds in a place instead of the right one. Experts
    that are not proven are looked for among those of their tensor; `bad` matrices that are not
    found there, in the whole source."""
    first: dict[Place, Chunk] = {}
    for chunk in Schedule(plan).chunks():
        if chunk.tensor in held:
            first.setdefault(place(plan, chunk), chunk)
    unproven: dict[str, list[Place]] = defaultdict(list)
    for at, comparison in comparisons.items():
        if not comparison.same:
            unproven[at[0]].append(at)
    out: dict[Place, Place] = {}
    with Files(plan.inputs | {t.path for t in held.values()}) as files:
        for name, suspects in unproven.items():
            shape = plan.outputs[0].by_name[name].shape
            if len(shape) > 2:
                experts = [(name, xid) for xid in range(shape[0])]
                out |= _nearest(plan, held, files, first, suspects, experts)
        left = [at for at in bad if at not in out][:MOST]
        kinds: dict[tuple[int, ...], list[Place]] = defaultdict(list)
        for at in left:
            kinds[_matrix_shape(plan, at)].append(at)
        for kind, suspects in kinds.items():
            others = [at for at in first if _matrix_shape(plan, at) == kind]
            out |= _nearest(plan, held, files, first, suspects, others)
    return out


def _matrix_shape(plan: Plan, at: Place) -> tuple[int, ...]:
    return plan.outputs[0].by_name[at[0]].shape[-2:]


def _nearest(
    plan: Plan,
    held: Mapping[str, SourceTensor],
    files: Files,
    first: Mapping[Place, Chunk],
    suspects: Sequence[Place],
    candidates: Iterable[Place],
) -> dict[Place, Place]:
    """The suspects that are nearer to another candidate than to the right one, and to which."""
    mine = np.stack([_file_sample(plan, files, _sample(first[at], plan), held) for at in suspects])
    power = (mine * mine).sum(axis=1, dtype=np.float64)
    best: list[tuple[float, list[Place]]] = [(np.inf, [])] * len(suspects)
    own = np.full(len(suspects), np.inf)
    for at in candidates:
        theirs = _source_sample(plan, files, _sample(first[at], plan))
        if theirs.size != mine.shape[1]:
            continue
        size = max(float((theirs * theirs).sum(dtype=np.float64)), 1e-30)
        dots = np.maximum((mine @ theirs).astype(np.float64), 0)
        for i, residual in enumerate(power - dots**2 / size):
            if at == suspects[i]:
                own[i] = residual
            elif residual <= best[i][0] and dots[i] > LIKE * np.sqrt(power[i] * size):
                alike = best[i][1] if residual == best[i][0] else []
                best[i] = (float(residual), [*alike, at])
    nearer = {
        suspects[i]: alike for i, (residual, alike) in enumerate(best) if residual < NEARER * own[i]
    }
    # of candidates that are identical, prefer the one that took this one's place
    return {
        at: next((other for other in alike if at in nearer.get(other, [])), alike[0])
        for at, alike in nearer.items()
    }


def _sample(chunk: Chunk, plan: Plan) -> Chunk:
    """The first rows of a chunk: about SAMPLE weights."""
    unit = max(len(chunk.segment.order), 1)
    n = chunk.segment.row_length(plan.sources[chunk.segment.source])
    return replace(chunk, count=min(max(SAMPLE // (n * unit), 1) * unit, chunk.count))


def _file_sample(
    plan: Plan, files: Files, chunk: Chunk, held: Mapping[str, SourceTensor]
) -> Floats:
    t = held[chunk.tensor]
    return np.nan_to_num(floats(in_file(chunk, plan, files, t), t).reshape(-1))


def _source_sample(plan: Plan, files: Files, chunk: Chunk) -> Floats:
    rows: Any = fetch(chunk, plan, files)
    return floats(rows, plan.sources[chunk.segment.source]).reshape(-1)


def as_lines(instead: Mapping[Place, Place], plan: Plan) -> Iterator[str]:
    """Lines on what the file holds instead; what is the same in several tensors is one line."""
    where: dict[str, list[str]] = {}
    by_tensor: dict[str, dict[int, Place]] = defaultdict(dict)
    for (name, xid), other in instead.items():
        by_tensor[name][xid] = other
    for name, experts in by_tensor.items():
        shape = plan.outputs[0].by_name[name].shape
        if len(shape) < 3:
            where[f"{name} holds {_name(experts[0], plan)} of the source"] = []
            continue
        whole = {other[0] for xid, other in experts.items() if other[1] == xid}
        if len(whole) == 1 and len(experts) == shape[0]:
            where[f"{name} holds {whole.pop()} of the source"] = []
            continue
        for xid, other in experts.items():
            back = experts.get(other[1])
            if other[0] == name and back == (name, xid):
                if xid < other[1]:
                    where.setdefault(f"experts {xid} and {other[1]} are swapped", []).append(name)
            elif other[0] == name:
                where.setdefault(f"expert {xid} is expert {other[1]} of the source", []).append(
                    name
                )
            else:
                where[f"{name}: expert {xid} is {_name(other, plan)} of the source"] = []
    for text, names in where.items():
        yield text if not names else f"{text} in {listed(names)}"


def _name(at: Place, plan: Plan) -> str:
    stacked = len(plan.outputs[0].by_name[at[0]].shape) > 2
    return f"expert {at[1]} of {at[0]}" if stacked else at[0]
