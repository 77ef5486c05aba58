"""Stages: everything goes through, a bounded number at a time, and what fails stops the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from quantkit.threads import in_stages, in_threads


class Held:
    """Counts what is between two points, and the most that ever was."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_every_item_goes_through_and_few_are_held(slow: int) -> None:
    """Whichever stage is the slow one."""
    held = [Held(), Held(), Held()]

    def stage(i: int, item: int) -> int:
        if i:
            held[i - 1].leave()
        if i == slow:
            time.sleep(0.002)
        held[i].enter()
        return item + 1

    threads = (2, 3, 1)
    stages = [(lambda item, i=i: stage(i, item), n) for i, n in enumerate(threads)]
    found = []
    with in_stages(range(100), stages) as results:
        for result in results:
            held[2].leave()
            found.append(result)
    assert sorted(found) == list(range(3, 103))
    for i in range(3):
        # its own threads and one item more, and those that the next stage has taken already
        assert held[i].most <= threads[i] + 1 + (threads[i + 1] + 1 if i < 2 else 0)
        assert held[i].now == 0


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", [0, 1, 2, "items", "results"])
def test_what_fails_stops_every_stage(where: int | str) -> None:
    stopped: list[bool] = []
    started = [0, 0, 0]

    def items() -> Iterator[int]:
        for i in range(10_000):
            if where == "items" and i == 20:
                raise Broken
            yield i

    def stage(i: int, item: int) -> int:
        started[i] += 1
        if where == i and item == 20:
            raise Broken
        return item

    stages = [(lambda item, i=i: stage(i, item), 2) for i in range(3)]

    def run() -> None:
        with in_stages(items(), stages, lambda: stopped.append(True)) as results:
            for result in results:
                if where == "results" and result == 20:
                    raise Broken

    before = threading.active_count()
    with pytest.raises(Broken):
        run()
    assert stopped
    assert max(started) < 100
    assert threading.active_count() == before  # nobody works on when the caller has gone on


def test_results_come_before_all_items_are_taken() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    for n, _ in enumerate(in_threads(lambda item: item, items(), 2)):
        assert len(taken) <= n + 4
