"""Runs that die, for the tests of what comes after."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.execution import pipeline
from tests.conftest import sha256

TYPES = ["Q4_K_M", "Q8_0", "BF16"]


def checksums(directory: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in directory.iterdir()}


class Died(Exception):
    """A crash, as far as the code under test can tell."""


def dying_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `n` chunks through and fail at the next, with everything so far on disk."""
    whole = pipeline._write
    left = iter(range(n))

    def write(*args: object) -> int:
        if next(left, None) is None:
            raise Died
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "_write", write)
