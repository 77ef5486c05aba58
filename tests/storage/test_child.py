"""Work in a process of its own: its limits are of the processor's time, not of a busy machine's."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from quantkit.storage import child

WAITS = "import time; time.sleep(1.5); print('[1]')"  # as one that others keep from the processor
WORKS = "import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 1))\nwhile True: pass"


def _runs(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quant_types import isolated

    def command(*args: Any, **limits: Any) -> list[str]:
        return [sys.executable, "-c", program]

    monkeypatch.setattr(isolated, "command", command)


@pytest.mark.skipif(os.name != "posix", reason="processor time is not limited there")
def test_who_waits_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(WAITS, monkeypatch)
    assert child.ask("module", {}, seconds=1) == [1]
    monkeypatch.setattr(child, "PATIENCE", 1)
    with pytest.raises(child.ChildFailed, match=r"longer than 1 s$"):
        child.ask("module", {}, seconds=1)


@pytest.mark.skipif(os.name != "posix", reason="processor time is not limited there")
def test_who_works_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(WORKS, monkeypatch)
    with pytest.raises(child.ChildFailed, match="longer than 1 s, or more memory"):
        child.ask("module", {}, seconds=1)
