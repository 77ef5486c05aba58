"""The formats with a grid: their tables, what they need, and what ggml aborts on."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import quant_types
from quant_types import grids, kernels
from tests import oracle
from tests.quant_types.weights import importance

GRIDS = {"IQ1_S": 2048, "IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ3_XXS": 256, "IQ3_S": 512}
ABORTS = """
import sys, numpy as np
from tests import oracle
x = np.full((1, 256), np.float32(sys.argv[2]))
oracle.quantize(x, sys.argv[1], np.ones(256, np.float32))
"""


@pytest.mark.parametrize("name", GRIDS)
def test_lists(name: str) -> None:
    """Each code is on the grid or has a list: nearest first, equally near ones in order."""
    grid = grids.grid(name)
    digits = grid.base ** np.arange(grid.dim)
    assert len(grid.odd) == GRIDS[name]
    assert ((grid.place >= 0) == (grid.sizes == 0)).all()
    levels = grid.odd.astype(int) // 2
    on_grid = np.flatnonzero(grid.place >= 0)
    assert np.array_equal(np.sort(levels @ digits), on_grid)
    for code in np.flatnonzero(grid.sizes)[::97]:
        first = -1 - grid.place[code]
        points = grid.points[first:].reshape(-1)[: grid.sizes[code]]
        apart = np.square(levels[points] - code // digits % grid.base).sum(1)
        assert (np.diff(apart * 4096 + points) > 0).all()
        every = np.square(levels - code // digits % grid.base).sum(1)
        assert (every <= apart[-1]).sum() == len(points)
        near = grid.near[first:].transpose(0, 2, 1).reshape(-1, grid.dim)[: len(points)]
        assert np.array_equal(near, grid.odd[points])
        listed = grid.listed[first:].reshape(-1)[: len(points)]
        off = 0 if name == "IQ1_S" else grids.OFF
        assert np.array_equal(listed, grid.packed[points] | off)


@pytest.mark.parametrize("name", GRIDS)
def test_short_lists(name: str) -> None:
    """They have the nearest of the whole list, whatever the weights, where values round to the
    code; behind them is the whole list of each code."""
    grid = grids.grid(name)
    rng = np.random.default_rng(0)
    digits = grid.base ** np.arange(grid.dim)
    for code in rng.choice(np.flatnonzero(grid.sizes), 100):
        level = code // digits % grid.base
        lists = []
        for cell in grid.cells[::-1, code]:
            chunk, size = divmod(-1 - cell, 1 << grids.SIZE_BITS)
            lists.append(grid.points[chunk:].reshape(-1)[:size])
            if grid.dim == 4:
                words = grid.listed[chunk:].reshape(-1)[:size]
                assert np.array_equal(words, grid.packed[lists[-1]] | grids.OFF)
        first = -1 - grid.place[code]
        assert np.array_equal(lists[0], grid.points[first:].reshape(-1)[: grid.sizes[code]])
        assert set(lists[1]) <= set(lists[0])
        for _ in range(20):
            x = (2 * level + 1 + rng.uniform(-0.999, 0.999, grid.dim)).astype(np.float32)
            w = (rng.random(grid.dim) ** 8).astype(np.float32)
            nearest = [
                points[np.argmin((w * np.square(grid.odd[points] - x)).sum(1))] for points in lists
            ]
            assert nearest[0] == nearest[1]


def test_tables_are_made_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(grids.grid, ["IQ3_S"] * 8))
    assert all(grid.table is found[0].table for grid in found)
    table = found[0].table
    assert table.ctypes.data % kernels.LINE == 0
    assert not table.flags.writeable
    one, two = (quant_types.table_bytes(names) for names in (["IQ1_S"], ["IQ1_M", "IQ1_S", "Q4_K"]))
    assert one == two == grids.grid("IQ1_S").table.nbytes
    assert quant_types.table_bytes(["F16"]) == 0
    assert quant_types.table_bytes(quant_types.FORMATS) < 21 << 20


@pytest.mark.parametrize("engine", ["lanes", "array"])
@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ2_XS"])
def test_needs_importance(name: str, engine: str) -> None:
    """What ggml asserts that it has; nothing is written without."""
    x = np.ones((2, 256), np.float32)
    out = np.full(2 * quant_types.get_format(name).row_bytes(256), 0xA5, np.uint8)
    with pytest.raises(quant_types.NeedsImportance, match=f"{name} expects importance") as error:
        quant_types.quantize(x, name, engine=engine, out=out)
    assert error.value.format == name
    other = np.full(2 * 144, 0xA5, np.uint8)
    with pytest.raises(quant_types.NeedsImportance):
        quant_types.quantize_into(x, [("Q4_K", other), (name, out)])
    assert (out == 0xA5).all()
    assert (other == 0xA5).all()


def test_who_needs_importance() -> None:
    """`ggml_quantize_requires_imatrix`, of every format."""
    ask = oracle.library().ggml_quantize_requires_imatrix
    for fmt in quant_types.FORMATS:
        assert bool(ask(fmt.ggml_type) & 1) == fmt.needs_importance, fmt.name


@pytest.mark.parametrize("name", list(GRIDS)[1:])
def test_out_of_range(name: str) -> None:
    """Errors that overflow float32: said by both engines."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((4, 256)) * 1e16).astype(np.float32)
    for engine in ("lanes", "array"):
        with pytest.raises(quant_types.OutOfRange, match="ggml aborts"):
            quant_types.quantize(x, name, np.ones(256, np.float32), engine)


def test_ggml_aborts() -> None:
    """On what we call out of range it ends the process, and on what we do not it does not."""

    def run(size: str) -> int:
        command = [sys.executable, "-c", ABORTS, "IQ3_XXS", size]
        return subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, check=False
        ).returncode

    assert run("1e16") < 0
    assert run("1e9") == 0


@pytest.mark.parametrize("engine", ["lanes", "array"])
@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M", *list(GRIDS)[1:]])
def test_empty_sub_blocks(name: str, engine: str) -> None:
    """Zeros among others; IQ3_S stores the next sub-block where an empty one belongs."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((64, 512)).astype(np.float32)
    parts = x.reshape(64, -1, 16 if name in ("IQ1_M", "IQ2_XS", "IQ2_S") else 32)
    parts[rng.random(parts.shape[:2]) < 0.4] = 0
    parts[0] = 0
    given = importance(512)
    found = quant_types.quantize(x, name, given, engine)
    assert np.array_equal(found, oracle.quantize(x, name, given))


@pytest.mark.parametrize("engine", ["lanes", "array"])
@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M", *list(GRIDS)[1:]])
def test_between_levels(name: str, engine: str) -> None:
    """Weights on the border between two levels, equal ones, and channels that count for nothing.
    The greatest of a sub-block is a multiple of an inverse scale that is tried."""
    rng = np.random.default_rng(7)
    top = np.array([16, 41, 47, 59], np.float32).repeat(32)[:, None]
    x = np.round(rng.uniform(-top, top, (128, 256))).astype(np.float32)
    x[:, ::16] = top
    x[::2] *= np.float32(2.0**-9)
    for given in (np.ones(256), rng.random(256) < 0.3, rng.random(256) ** 30):
        values = np.asarray(given, np.float32)
        found = quant_types.quantize(x, name, values, engine)
        assert np.array_equal(found, oracle.quantize(x, name, values))


@pytest.mark.parametrize("engine", ["lanes", "array"])
@pytest.mark.parametrize("name", list(GRIDS)[1:])
def test_denormal_sub_blocks(name: str, engine: str) -> None:
    """Scales whose inverse is infinite, and importance that makes their errors count."""
    rng = np.random.default_rng(8)
    for great, weight in ((1, 1e30), (1e3, 1e20), (1e3, 1e30)):
        x = (np.abs(rng.standard_normal((16, 512))) * 1e-44).astype(np.float32)
        x[:, 5::256] = great
        given = np.full(512, weight, np.float32)
        found = quant_types.quantize(x, name, given, engine)
        assert np.array_equal(found, oracle.quantize(x, name, given))
