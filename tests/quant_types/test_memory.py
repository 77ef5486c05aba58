"""One call's peak: the input, the output and at most 8 MiB."""

from __future__ import annotations

import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import quant_types
from quant_types import BlockFormat
from tests.quant_types.weights import importance, needed
from tests.sampling import one_in

FORMATS = [pytest.param(fmt, id=fmt.name) for fmt in quant_types.FORMATS]
LIMIT = 8 << 20


def weights(rows: int = 1024) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((rows, 4096)).astype(np.float32)


@pytest.mark.parametrize("fmt", one_in(5, quant_types.FORMATS))
def test_array_engine(fmt: BlockFormat) -> None:
    x = weights(64 if fmt.grid else 1024)
    quant_types.table_bytes([fmt])  # counted for themselves
    for given in (needed(fmt, 4096), importance(4096)):
        tracemalloc.start()
        data = quant_types.quantize(x, fmt, given, "array")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used - data.nbytes < LIMIT
    tracemalloc.start()
    back = quant_types.dequantize(data, fmt)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used - back.nbytes < LIMIT


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own high-water mark is Linux's")
@pytest.mark.parametrize("fmt", FORMATS)
def test_lanes_engine(fmt: BlockFormat) -> None:
    """Kernels allocate behind tracemalloc's back, so the process is measured."""

    def resident(field: str) -> int:
        match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert match is not None
        return int(match[1]) << 10

    x, out = weights(), np.ones((1024, fmt.row_bytes(4096)), np.uint8)
    for given in (needed(fmt, 4096), importance(4096)):
        quant_types.quantize(x[:1], fmt, given, "lanes")  # compiled before it is measured
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew
        quant_types.quantize(x, fmt, given, "lanes", out)
        assert resident("VmHWM") - before < LIMIT
