"""Which of many cases run in `make test`; all of them run in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(n: int, cases: Iterable[Any]) -> list[Any]:
    """Every n-th case at once, the others where there is time. A tuple is one argument each; what
    has a name is called by it."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[pytest.mark.slow] if i % n else [],
            id=getattr(case, "name", None),
        )
        for i, case in enumerate(cases)
    ]
