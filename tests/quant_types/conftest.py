from __future__ import annotations

import os

import pytest

import quant_types


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """All kernels, compiled side by side where this machine does not have them yet."""
    wanted = [(fmt, importance) for fmt in quant_types.FORMATS for importance in (False, True)]
    quant_types.prepare(wanted, threads=os.cpu_count() or 1)
