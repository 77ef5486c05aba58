"""The allocation: a format for every tensor, the least error in all, bytes within a budget.

A multiple-choice knapsack. Its relaxation is solved by walking the lower convex hulls of the
tensors' options (Sinha and Zoltners, "The multiple-choice knapsack problem", 1979): that gives the
price of a byte, a bound, and a choice that misses the bound by less than one step. Where tensors
are few a step is large, so what the price leaves open is searched: partial choices, tensor after
tensor, less those that another beats in bytes and error and those that the bound rules out
(Pisinger's expanding core is the same idea). Among thousands of tensors nothing is left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import BudgetError

TOLERANCE = 1e-3  # of the error: far below what a prediction is worth
MOST_STATES = 1 << 12  # partial choices that are kept, those nearest to the bound


class Option(NamedTuple):
    """A format that a tensor may have: the bytes it takes, and the error that it makes."""

    format: str
    nbytes: int
    error: float


class Step(NamedTuple):
    """One tensor's move to a larger option: error that a byte takes away, bytes and error more."""

    price: float
    item: int
    option: int
    nbytes: int
    error: float


@dataclass(frozen=True)
class Allocation:
    """The option of each tensor, by its place among the tensor's; bytes and error in all. No choice
    within the budget has less error than `bound`."""

    chosen: tuple[int, ...]
    nbytes: int
    error: float
    bound: float


Items = Sequence[Sequence[Option]]


def allocate(items: Items, budget: int) -> Allocation:
    """The options that make the least error in at most `budget` bytes, to within TOLERANCE.

    Raises BudgetError: the smallest options are larger.
    """
    chosen, moves = _walk(items)
    room = budget - _nbytes(items, chosen)
    if room < 0:
        raise BudgetError(
            f"the smallest that can be made takes {budget - room} bytes of weights; "
            f"the budget leaves {budget}"
        )
    price, bound = 0.0, -np.inf
    stuck: set[int] = set()  # tensors whose next step has no room
    for move in moves:
        if move.item in stuck:
            continue
        if move.nbytes > room:
            if not stuck:
                price, bound = move.price, _error(items, chosen) - move.price * room
            stuck.add(move.item)
            continue
        room -= move.nbytes
        chosen[move.item] = move.option
    if stuck:
        chosen = _search(items, chosen, budget, price, bound)
    error = _error(items, chosen)
    return Allocation(tuple(chosen), _nbytes(items, chosen), error, bound if stuck else error)


def frontier(items: Items) -> list[tuple[int, float]]:
    """Bytes and error of the best choices from the smallest to the largest, as far as they lie on
    the convex hull."""
    chosen, moves = _walk(items)
    out = [(_nbytes(items, chosen), _error(items, chosen))]
    for move in moves:
        out.append((out[-1][0] + move.nbytes, out[-1][1] + move.error))
    return out


def hull(options: Sequence[Option]) -> list[int]:
    """The options that no mixture of two others beats, from the smallest on."""
    out: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (options[i].nbytes, options[i].error)):
        if out and options[i].error >= options[out[-1]].error:
            continue
        while len(out) > 1 and _price(options, out[-2], out[-1]) <= _price(options, out[-1], i):
            out.pop()
        out.append(i)
    return out


def _price(options: Sequence[Option], a: int, b: int) -> float:
    taken = options[a].error - options[b].error
    return taken / (options[b].nbytes - options[a].nbytes)


def _walk(items: Items) -> tuple[list[int], list[Step]]:
    """The smallest choice, and the steps from it to the best, the dearest first."""
    hulls = [hull(options) for options in items]
    moves = [
        Step(
            _price(options, a, b),
            i,
            b,
            options[b].nbytes - options[a].nbytes,
            options[b].error - options[a].error,
        )
        for i, (options, path) in enumerate(zip(items, hulls, strict=True))
        for a, b in pairwise(path)
    ]
    return [path[0] for path in hulls], sorted(moves, key=lambda move: -move.price)


def _nbytes(items: Items, chosen: Sequence[int]) -> int:
    return sum(options[j].nbytes for options, j in zip(items, chosen, strict=True))


def _error(items: Items, chosen: Sequence[int]) -> float:
    return sum(options[j].error for options, j in zip(items, chosen, strict=True))


def _search(items: Items, greedy: list[int], budget: int, price: float, bound: float) -> list[int]:
    """The best choice, where `greedy` may not be. An option's cost is its error and, at the price,
    its bytes, beyond its tensor's cheapest; costs and the price of unused bytes add up to the error
    above the bound, so no more than the gap need be looked at."""
    gap = _error(items, greedy) * (1 - TOLERANCE) - bound
    cheapest, open_ = [], []
    for i, options in enumerate(items):
        sizes = np.array([o.nbytes for o in options])
        costs = np.array([o.error for o in options]) + price * sizes
        least = int(costs.argmin())
        cheapest.append(least)
        costs -= costs[least]
        if len(kept := np.flatnonzero(costs <= gap)) > 1:
            open_.append(_Open(i, kept, sizes[kept] - sizes[least], costs[kept]))
    room = budget - _nbytes(items, cheapest)
    better = _best(open_, room, price, gap) if gap > 0 else None
    if better is None:
        return greedy
    for i, j in better.items():
        cheapest[i] = j
    return cheapest


class _Open(NamedTuple):
    """What a price leaves open of a tensor: its options, the bytes of each beyond those of the
    cheapest (which may be fewer), and what it costs."""

    item: int
    options: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    cost: NDArray[np.float64]


def _best(open_: Sequence[_Open], room: int, price: float, gap: float) -> dict[int, int] | None:
    """The options whose costs, with unused bytes of `room`, are least and below `gap`, by item."""
    least = np.cumsum([0, *(o.nbytes.min() for o in reversed(open_))])[::-1]
    most = np.cumsum([0, *(o.nbytes.max() for o in reversed(open_))])[::-1]
    nbytes, cost = np.zeros(1, np.int64), np.zeros(1)
    trail = []
    for k, o in enumerate(open_):
        n = (nbytes[:, None] + o.nbytes).ravel()
        c = (cost[:, None] + o.cost).ravel()
        unused = price * np.maximum(room - n - most[k + 1], 0)
        at = np.flatnonzero((c + unused < gap) & (n + least[k + 1] <= room))
        at = at[np.lexsort((c[at], n[at]))]
        error = c[at] - price * n[at]
        before = np.minimum.accumulate(np.concatenate(([np.inf], error[:-1])))
        at = at[error < before]  # no other is as small and as good
        if len(at) > MOST_STATES:
            at = at[np.sort(np.argpartition(c[at], MOST_STATES)[:MOST_STATES])]
        if not len(at):
            return None
        nbytes, cost = n[at], c[at]
        trail.append(at)
    total = np.where(nbytes <= room, cost + price * (room - nbytes), np.inf)
    state = int(total.argmin())
    if total[state] >= gap:
        return None
    found = {}
    for o, at in zip(reversed(open_), reversed(trail), strict=True):
        state, option = divmod(int(at[state]), len(o.options))
        found[o.item] = int(o.options[option])
    return found
