"""How much memory a run may take."""

from __future__ import annotations

from dataclasses import replace

from quantkit.errors import RecipeError
from quantkit.plan import Plan

BASE_MEMORY = 250_000_000  # bytes of the interpreter with its libraries and compiled kernels
USUAL_MEMORY = 1_000_000_000  # bytes that a run stays below if it can
ROOM = 1 << 27  # bytes of chunks that wait for a slow disk, if there is so much
_LEAST = 1 << 12  # weights in a chunk


def within(plan: Plan, threads: int, memory: int | None) -> Plan:
    """The plan in chunks so small that `threads` workers stay within `memory` bytes, what the
    interpreter and its libraries take included. Without a number: below a gigabyte, if they can.
    Raises RecipeError if the smallest chunks do not keep within a number that was given."""
    most = (memory or USUAL_MEMORY) - BASE_MEMORY
    while (needed := plan.memory(threads)) > most:
        if plan.chunk_weights < _LEAST:
            if memory is None:
                break
            raise RecipeError(
                f"--memory {memory / 1e6:.0f}MB is too little: {threads} threads need at least "
                f"{(BASE_MEMORY + needed) / 1e6:.0f}MB; give more, or fewer --threads"
            )
        plan = replace(plan, chunk_weights=plan.chunk_weights // 2)
    return replace(plan, room=max(needed, min(ROOM, most)))
