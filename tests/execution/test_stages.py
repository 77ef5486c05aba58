"""Stages: everything goes through, no more at a time than there is room for, and what fails stops
the rest."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.execution.stages import Stage, in_stages, in_threads


class Held:
    """Sizes that are under way, and the most that ever were."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self.now += size
            self.most = max(self.most, self.now)


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_every_item_goes_through_and_no_more_than_fit(slow: int) -> None:
    """Whichever stage is the slow one."""
    held = Held()

    def stage(i: int, item: int) -> int:
        if i == 0:
            held.add(item % 7)
        if i == slow:
            time.sleep(0.002)
        if i == 2:
            held.add(-(item % 7))
        return item

    stages = [Stage(partial(stage, i), n) for i, n in enumerate((2, 3, 1))]
    found = list(in_stages(range(100), stages, lambda item: item % 7, 20))
    assert sorted(found) == list(range(100))
    assert held.now == 0
    assert 14 <= held.most <= 20  # the next would not have fitted


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_a_stage_that_works_in_order(random: Any, room: int) -> None:
    """Whatever order those before it end in; what waits for its turn takes room, too."""
    seconds = [random.choice((0, 0, 0.001)) for _ in range(30)]
    seen: list[int] = []
    held = Held()

    def begun(item: int) -> int:
        held.add(1)
        time.sleep(seconds[item])
        return item

    def ended(item: int) -> int:
        seen.append(item)
        held.add(-1)
        return item

    stages = [Stage(begun, 4), Stage(ended, in_order=True)]
    assert list(in_stages(range(30), stages, lambda item: 1, room)) == list(range(30))
    assert seen == list(range(30))
    assert held.most <= room


def test_what_is_larger_than_the_room_goes_alone() -> None:
    held = Held()

    def work(item: int) -> int:
        held.add(1)
        time.sleep(0.001)
        held.add(-1)
        return item

    assert sorted(in_stages(range(9), [Stage(work, 4)], lambda item: 50, 20)) == list(range(9))
    assert held.most == 1


def test_small_items_wait_in_numbers_for_a_slow_stage() -> None:
    """What is done before it is bounded by the room, not by the threads."""
    let, ready = threading.Event(), Held()

    def first(item: int) -> int:
        ready.add(1)
        return item

    def last(item: int) -> int:
        let.wait(10)
        return item

    with closing(in_stages(range(50), [Stage(first), Stage(last)], lambda item: 1, 30)) as done:
        threading.Timer(0.2, let.set).start()
        next(done)
        assert ready.most >= 29
        assert len(list(done)) == 49


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

    stages = [Stage(partial(stage, i), 2) for i in range(3)]

    def run() -> None:
        stop = lambda: stopped.append(True)  # noqa: E731
        with closing(in_stages(items(), stages, lambda item: 1, 9, stop)) as results:
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


class Thing:
    pass


def test_nothing_is_held_by_threads_that_wait() -> None:
    """An item is gone when its work is, though its thread waits for the next."""
    made: list[weakref.ref[Thing]] = []

    def first(item: int) -> Thing:
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    let = threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        let.wait(10)

    def last(thing: Thing) -> int:
        return id(thing)

    done = in_stages(items(), [Stage(first), Stage(last)], lambda item: 1, 1)
    next(done), next(done)
    gc.collect()
    assert made[0]() is None
    let.set()
    assert len(list(done)) == 1
    assert [ref() for ref in made] == [None] * 3


def test_a_process_ends_though_its_work_does_not() -> None:
    """With an error that nobody catches, and results that nobody takes."""
    code = (
        "from quantkit.execution.stages import in_threads\n"
        "results = in_threads(lambda item: item, range(100), 2)\n"
        "next(results)\n"
        "raise ValueError('an error')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    assert run.stderr.endswith("ValueError: an error\n")
