"""What may take for ever, or all memory, or the process with it: done in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

SECONDS = 10  # of the processor's time that a child has, unless it is told
# Others may have the processor meanwhile: so many times as long is waited, where the system counts
# what a process takes.
PATIENCE = 8 if os.name == "posix" else 1
_OUT_OF_TIME = (-9, -24)  # SIGKILL, SIGXCPU
MEMORY = 1 << 30  # bytes of address space
_LONGEST = 200  # characters of what a child complains of


class ChildFailed(Exception):
    """A child that gave no answer; the text says why."""


def ask(module: str, question: Any, seconds: int = SECONDS, memory: int = MEMORY) -> Any:
    """What `module`, run as a program, answers a question: both are values that JSON has.

    Raises ChildFailed: it ended without an answer, or was ended at a limit.
    """
    from quant_types import isolated  # brings NumPy, for which the other side has no use

    try:
        done = subprocess.run(
            isolated.command(module, memory=memory, seconds=seconds),
            input=json.dumps(question).encode(),
            capture_output=True,
            timeout=PATIENCE * seconds,
            cwd=isolated.DIRECTORY,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"it takes longer than {PATIENCE * seconds} s") from None
    if done.returncode in _OUT_OF_TIME:
        raise ChildFailed(f"it takes longer than {seconds} s, or more memory than there is")
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        if "MemoryError" in (said or [""])[-1] or "memory allocation" in "".join(said[-1:]):
            raise ChildFailed(f"it takes more than {memory >> 20} MiB of memory")
        raise ChildFailed((said or [f"it ended with {done.returncode}"])[-1][:_LONGEST])
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise ChildFailed("it gave no answer") from None


def answer(respond: Callable[[Any], Any]) -> None:
    """The other side: `respond` to the question on stdin, on stdout."""
    sys.stdout.write(json.dumps(respond(json.load(sys.stdin))))
