from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.calibration.imatrix import Imatrix, read_imatrix
from quantkit.jobs import quantize
from quantkit.planning.plan import Plan
from tests.checkpoints import DATA


@pytest.fixture(scope="session")
def imatrix() -> Imatrix:
    return read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")


@pytest.fixture(scope="session")
def source(frankenmoe: dict[str, Path]) -> Path:
    return frankenmoe["mergekit"]


@pytest.fixture(scope="session")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return quantize(source, ["Q4_K_M", "Q2_K", "F32"], tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def files(plain: Plan) -> dict[str, Path]:
    return {o.type: o.files[0].path for o in plain.outputs}


@pytest.fixture(scope="session")
def weighed(source: Path, imatrix: Imatrix, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file made with an importance matrix."""
    plan = quantize(source, ["Q2_K"], tmp_path_factory.mktemp("weighed"), imatrix=imatrix)
    return plan.files[0].path
