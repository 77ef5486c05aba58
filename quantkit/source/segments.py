"""Which rows of a source become which rows of a tensor: the geometry of a plan.

A segment takes rows as they are, every second row, or the columns of a matrix (a transpose). What
it does to values, if anything, is named in `edits` and carried out when rows are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit.source.tensors import SourceTensor

Edit = tuple[str | int | float, ...]  # a name of `rows.EDITS`, then its arguments


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of `count` rows of a tensor, from `first_row` on, and where they come from.

    Row i is row `source_row + i * step` of the source. With a `height` it is a column instead:
    the weights at `column + i * step` in the source's rows `source_row` to `source_row + height`.
    `order` permutes the rows inside each group of `len(order)`; `edits` change the values.
    """

    source: str
    source_row: int
    first_row: int
    count: int
    order: tuple[int, ...] = ()
    step: int = 1
    height: int = 0
    column: int = 0
    edits: tuple[Edit, ...] = ()

    def row_length(self, source: SourceTensor) -> int:
        """Weights in a row of the tensor."""
        return self.height or source.n_per_row

    def source_bytes(self, source: SourceTensor, count: int) -> int:
        """Bytes of the source that become `count` rows of it."""
        if self.height:
            return source.row_bytes // source.n_per_row * self.height * count
        return source.row_bytes * count


def uncovered(segments: Sequence[Segment], source: SourceTensor) -> str:
    """What of the source the segments do not use exactly once, in words; empty if nothing."""
    columns: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    rows = []
    for s in segments:
        if s.height:
            cut = (s.column, s.count, s.step)
            columns.setdefault((s.source_row, s.height), []).append(cut)
        else:
            rows.append((s.source_row, s.count, s.step))
    for (first, height), cuts in columns.items():
        rows.append((first, height, 1))
        if (at := _gap(cuts, source.n_per_row)) is not None:
            return f"column {at} is not used once"
    at = _gap(rows, source.n_rows)
    return "" if at is None else f"row {at} of {source.n_rows} is not used once"


def _gap(runs: Iterable[tuple[int, int, int]], n: int) -> int | None:
    """The first of `n` places that runs of (start, count, step) do not cover exactly once."""
    lanes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for start, count, step in runs:
        lanes.setdefault((step, start % step), []).append((start // step, count))
    steps = {step for step, _ in lanes}
    if len(steps) != 1 or n % (step := steps.pop()):
        return 0
    for lane in range(step):
        at = 0
        for start, count in sorted(lanes.get((step, lane), [])):
            if start != at:
                return min(start, at) * step + lane
            at += count
        if at != n // step:
            return at * step + lane
    return None
