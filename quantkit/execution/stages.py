"""Work spread over threads that hand items on to each other, as many at a time as there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from quantkit.storage.os_files import default_threads as default_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stage(NamedTuple):
    """What is done to each item, by how many threads. One that works `in_order` has one thread, and
    takes the items in the order in which they were begun."""

    work: Callable[[Any], Any]
    threads: int = 1
    in_order: bool = False


class _Parcel(NamedTuple):
    """An item on its way: which it is, the room that it takes, and what was raised over it."""

    number: int
    size: int
    item: Any
    error: BaseException | None = None


_Queue = SimpleQueue[_Parcel | None]  # None: there is no more


def in_threads(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """`work` of every item, as it gets done; one item is ahead of the threads and no more. Errors
    as in `in_stages`."""
    return in_stages(items, [Stage(work, threads)], lambda item: 1, threads + 1, stop)


def in_stages(
    items: Iterable[Any],
    stages: Sequence[Stage],
    size: Callable[[Any], int],
    room: int,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Any, None, None]:
    """What the last of the stages makes of every item, as it gets done.

    Each stage takes what the one before it made. Items are begun as long as the sizes of those
    under way are no more than `room` (one may always be).
    What a stage raises stops the rest and is raised; `stop` is called first, so that those under
    way need not be waited for.
    """
    halted = threading.Event()
    queues: list[_Queue] = [SimpleQueue() for _ in range(len(stages) + 1)]
    end = queues[-1]
    crew = [  # of daemons: they do not keep a process that ends with an error from ending
        threading.Thread(
            target=_serve_in_order if stage.in_order else _serve,
            args=(stage.work, *queues[i : i + 2], end, halted),
            daemon=True,
        )
        for i, stage in enumerate(stages)
        for _ in range(stage.threads)
    ]
    held = under_way = 0
    try:
        for thread in crew:
            thread.start()
        for number, item in enumerate(items):
            needed = size(item)
            while under_way and held + needed > room:
                done = _received(end)
                held, under_way = held - done.size, under_way - 1
                yield done.item
            held, under_way = held + needed, under_way + 1
            queues[0].put(_Parcel(number, needed, item))
        for _ in range(under_way):
            yield _received(end).item
    except BaseException:
        halted.set()
        stop()
        raise
    finally:
        for queue, stage in zip(queues, stages, strict=False):
            for _ in range(stage.threads):
                queue.put(None)
        for thread in crew:
            if thread.ident is not None:
                thread.join()


def _received(queue: _Queue) -> _Parcel:
    parcel = queue.get()
    assert parcel is not None
    if parcel.error is not None:
        raise parcel.error
    return parcel


def _serve(
    work: Callable[[Any], Any], given: _Queue, made: _Queue, end: _Queue, halted: threading.Event
) -> None:
    while _serve_one(work, given, made, end, halted):
        pass


def _serve_in_order(
    work: Callable[[Any], Any], given: _Queue, made: _Queue, end: _Queue, halted: threading.Event
) -> None:
    early: dict[int, _Parcel] = {}
    following = 0
    while (parcel := given.get()) is not None:
        early[parcel.number] = parcel
        del parcel  # nothing is held while it waits
        while (turn := early.pop(following, None)) is not None:
            following += 1
            _work_on(turn, work, made, end, halted)
            del turn


def _serve_one(
    work: Callable[[Any], Any], given: _Queue, made: _Queue, end: _Queue, halted: threading.Event
) -> bool:
    """One item through a stage: a function of its own, so that nothing is held while it waits."""
    parcel = given.get()
    if parcel is None:
        return False
    _work_on(parcel, work, made, end, halted)
    return True


def _work_on(
    parcel: _Parcel,
    work: Callable[[Any], Any],
    made: _Queue,
    end: _Queue,
    halted: threading.Event,
) -> None:
    if halted.is_set():
        return
    try:
        made.put(parcel._replace(item=work(parcel.item)))
    except BaseException as e:
        end.put(parcel._replace(item=None, error=e))
