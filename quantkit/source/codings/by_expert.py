"""The halves B of the changes of stacked experts, of which PEFT keeps the columns in turns: column
`k * experts + e` is column k of expert e (`ParamWrapper.get_delta_weight` of peft)."""

from __future__ import annotations

from functools import lru_cache

from quantkit.source.codings.parts import Rows, joined
from quantkit.source.tensors import Files, SourceTensor


def by_expert(t: SourceTensor, experts: int) -> SourceTensor:
    """A matrix `[out, rank * experts]` as one of each expert, `[experts, out, rank]`."""
    shape = (experts, t.shape[0], t.shape[1] // experts)
    return joined(t.name, t.ggml.name, shape, "by_expert", t, settings=(experts,))


def read(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """A rectangle of the matrices, one below another, in the dtype that they are stored in."""
    experts, out, _ = t.shape
    whole = _columns(files, t.parts[0], experts)
    rows = range(first, first + count)
    at, of = [row % out for row in rows], [row // out for row in rows]
    found: Rows = whole[at, :, of][:, column : column + width]
    return found


@lru_cache(maxsize=4)
def _columns(files: Files, t: SourceTensor, experts: int) -> Rows:
    """All of a half `[out, rank, experts]`, which is small beside the experts."""
    whole = files.read_rows(t, 0, t.n_rows)
    return whole.reshape(t.n_rows, -1, experts)
