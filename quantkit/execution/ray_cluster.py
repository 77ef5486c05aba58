"""The splits of a run as tasks on a Ray cluster. Ray schedules, retries and spreads them; the
machines share a file system on which source and outputs lie under the same paths.

A task makes one split of one output, and a split is the same file wherever it is made. A worker
that dies leaves a journal, so that its task goes on where it stopped, on any machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from quantkit.errors import ClusterError, QuantkitError, UsageError
from quantkit.planning.plan import Plan
from quantkit.progress import Progress

RETRIES = 3  # of a task whose worker died
Task = Callable[[dict[str, Any], str, int, int], None]


def quantize_on(
    cluster: str,
    plan: Plan,
    task: Task,
    call: Mapping[str, Any],
    threads: int,
    progress: Progress,
) -> None:
    """Make every file of `plan` on a cluster ("ray" is the one there is), a task each.

    `task` makes one split of one output, given `call`, the output's type, the split's number and
    the `threads` it may use. Progress is counted in bytes of the source, by the splits
    that are ready. Raises ClusterError, and whatever a task raises.
    """
    if cluster != "ray":
        raise UsageError(f"unknown cluster {cluster!r}; 'ray' is the one there is")
    try:
        import ray
    except ImportError:
        raise ClusterError("Ray is not installed; pip install 'quantkit-gguf[ray]'") from None
    ours = not ray.is_initialized()
    if ours:  # RAY_ADDRESS names a cluster; without it, Ray starts one on this machine
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        remote = ray.remote(num_cpus=threads, max_retries=RETRIES)(task)
        shared = ray.put(dict(call))
        share = plan.source_bytes / sum(f.size for f in plan.files)
        pending = {
            remote.remote(shared, output.type, i + 1, threads): round(f.size * share)
            for output in plan.outputs
            for i, f in enumerate(output.files)
        }
        step, done = " ".join(output.type for output in plan.outputs), 0
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as e:
                if isinstance(e.cause, QuantkitError):
                    raise e.cause from None
                raise
            except ray.exceptions.RayError as e:
                raise ClusterError(f"a worker died {RETRIES + 1} times ({type(e).__name__})") from e
            done += pending.pop(ready)
            progress.update(step, done, plan.source_bytes)
    finally:
        if ours:
            ray.shutdown()
