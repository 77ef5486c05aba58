"""Sets of files, compared; and runs that stop as if the machine had lost its power."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.releases.release import Release
from quantkit.reporting.inspection import Description, Parameters
from tests.conftest import sha256

NAME = "frankenmoe-4x2.2M"
DENSE = Description(
    name="M", architecture="llama", parameters=Parameters(7_241_732_096, 7_241_732_096),
    layers=None, embedding=None, context=None, experts=None, part_bytes={}, dtypes={},
    tied_embeddings=False, tokenizer=None,
)  # fmt: skip


def names(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


def assert_same(out: Path, whole: Release) -> None:
    assert names(out) == names(whole.directory)
    for f in whole.manifest.files:
        assert sha256(out / f.name) == f.sha256
    ours, theirs = ((d / "manifest.json").read_text() for d in (out, whole.directory))
    assert ours == theirs


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> list[int]:
    """Make a function fail as if the machine had lost its power, after so many calls. Returns the
    numbers of the calls."""
    calls: list[int] = []
    do = getattr(where, name)

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(len(calls))
        if len(calls) > count:
            raise KeyboardInterrupt
        return do(*args, **kwargs)

    monkeypatch.setattr(where, name, counted)
    return calls
