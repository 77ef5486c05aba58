"""The allocation: as good as trying everything, and quick."""

from __future__ import annotations

import time
from itertools import pairwise, product

import numpy as np
import pytest

from quantkit.errors import BudgetError
from quantkit.recipes.knapsack import TOLERANCE, Option, allocate, frontier, hull

BITS = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5}
Items = list[list[Option]]


def items_of(count: int, seed: int) -> Items:
    """Tensors of a few sizes; errors fall with the bits, not quite regularly."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        weights = int(rng.choice([1 << 14, 1 << 16, 5 << 16, 1 << 18, 1 << 20]))
        scale = float(rng.lognormal())
        out.append(
            [
                Option(
                    name, int(weights * bits / 8), scale * 4.0**-bits * float(rng.lognormal(0, 0.2))
                )
                for name, bits in BITS.items()
            ]
        )
    return out


def ends(items: Items) -> tuple[int, int]:
    return sum(i[0].nbytes for i in items), sum(i[-1].nbytes for i in items)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_it_is_as_good_as_the_best_of_all_choices(count: int) -> None:
    for seed in range(20):
        items = items_of(count, seed)
        least, most = ends(items)
        for share in (0.0, 0.13, 0.5, 0.87, 1.0):
            budget = int(least + share * (most - least))
            found = allocate(items, budget)
            options = [item[j] for item, j in zip(items, found.chosen, strict=True)]
            assert sum(o.nbytes for o in options) == found.nbytes <= budget
            assert sum(o.error for o in options) == pytest.approx(found.error)
            best = min(
                sum(o.error for o in chosen)
                for chosen in product(*items)
                if sum(o.nbytes for o in chosen) <= budget
            )
            assert best * (1 - 1e-9) <= found.error <= best * (1 + 2 * TOLERANCE)
            assert found.bound <= best * (1 + 1e-9)


def test_the_greedy_choice_is_searched_further() -> None:
    """Two tensors, one step of the dearer fits, or the other's of nearly the same price, which is
    larger: the budget holds the larger only."""
    small = [Option("a", 0, 10.0), Option("b", 60, 4.0)]  # a tenth of error a byte
    large = [Option("a", 0, 10.0), Option("b", 100, 1.0)]  # nine hundredths
    assert allocate([small, large], 100).chosen == (0, 1)


def test_it_nears_the_bound_where_tensors_are_many() -> None:
    items = items_of(2000, 1)
    least, most = ends(items)
    started = time.perf_counter()
    found = allocate(items, (least + most) // 2)
    assert time.perf_counter() - started < 5
    assert found.bound <= found.error <= found.bound * (1 + TOLERANCE)


def test_the_frontier_falls_from_the_smallest_to_the_largest() -> None:
    items = items_of(30, 2)
    marks = frontier(items)
    best = sum(min(o.error for o in item) for item in items)
    assert marks[0][0] == ends(items)[0]
    assert marks[-1][1] == pytest.approx(best)
    prices = [(a[1] - b[1]) / (b[0] - a[0]) for a, b in pairwise(marks)]
    assert prices == sorted(prices, reverse=True)
    assert min(prices) > 0
    for nbytes, error in marks[:: len(marks) // 7]:
        assert allocate(items, nbytes).error == pytest.approx(error, rel=2 * TOLERANCE)


def test_an_option_that_two_others_beat_is_not_on_the_hull() -> None:
    options = [
        Option("Q3_K", 3, 23.0),
        Option("IQ4_XS", 4, 6.0),
        Option("Q4_K", 5, 5.0),
        Option("Q5_K", 6, 1.0),
        Option("worse", 7, 2.0),
    ]
    assert [options[i].format for i in hull(options)] == ["Q3_K", "IQ4_XS", "Q5_K"]
    # what is off the hull is chosen all the same where it is what fits
    assert allocate([options], 5).chosen == (2,)


def test_too_little_is_refused() -> None:
    with pytest.raises(BudgetError, match="takes 13 bytes of weights; the budget leaves 12"):
        allocate([[Option("a", 6, 1.0)], [Option("a", 7, 1.0)]], 12)
