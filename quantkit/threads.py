"""Work spread over threads, one item ahead of them and no more."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Result, None, None]:  # fmt: skip
    """`work` of every item, as it gets done. What one raises stops the rest and is raised; `stop`
    is called first, so that those under way need not be waited for."""
    with ThreadPoolExecutor(threads) as pool:
        pending: set[Future[Result]] = set()
        try:
            for item in items:
                if len(pending) > threads:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
                pending.add(pool.submit(work, item))
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            stop()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def in_stages(
    items: Iterable[Any], stages: Sequence[tuple[Callable[[Any], Any], int]],
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Iterator[Any]]:  # fmt: skip
    """What the last of the stages makes of every item, as it gets done. A stage is a function and
    the threads that run it; it takes what the one before it has done. Errors as in `in_threads`."""
    with ExitStack() as open_stages:
        for work, threads in stages:
            stage = in_threads(work, items, threads, stop)
            items = open_stages.enter_context(closing(stage))
        yield iter(items)
