"""Mutated files for every reader, for two seconds; CI and `make fuzz` go on for longer."""

from __future__ import annotations

import sys

import pytest


# what pickletools says of escapes in opcodes that are refused
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.skipif(sys.platform == "win32", reason="limits are of POSIX")
def test_no_mutated_file_is_outside_the_oracle() -> None:
    from tests.attacks.fuzz import run

    counts, outside = run(2, seed=17)
    assert outside == []
    assert min(counts.values()) > 5
