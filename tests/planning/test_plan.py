"""Plans: every offset known beforehand, and `check` that refuses what does not tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit import errors
from quantkit.gguf.splits import Splits
from quantkit.gguf.types import type_by_name
from quantkit.model.model import Model, ModelTensor
from quantkit.model.open import open_checkpoint
from quantkit.planning import build
from quantkit.planning.plan import check
from quantkit.planning.schedule import CHUNK_WEIGHTS, Schedule
from quantkit.recipes.file_types import find_recipe
from quantkit.source.segments import Segment
from quantkit.source.tensors import SourceTensor


def small(counts: list[int], n: int, order: tuple[int, ...] = ()) -> Model:
    """A model of one tensor, stacked from sources of `counts` rows."""
    sources, segments, row = {}, [], 0
    for i, count in enumerate(counts):
        name = f"s{i}"
        sources[name] = SourceTensor(name, type_by_name("BF16"), (count, n), Path("x"), 0)
        segments.append(Segment(name, 0, row, count, order))
        row += count
    tensor = ModelTensor("token_embd.weight", (row, n), "BF16", tuple(segments))
    return Model("m", "llama", (tensor,), sources, ())


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 500), min_size=1, max_size=5),
    blocks=st.integers(1, 64),
    group=st.sampled_from([1, 2, 8]),
)
def test_chunks_cover_every_row_once(counts: list[int], blocks: int, group: int) -> None:
    counts = [c * group for c in counts]
    order = tuple(reversed(range(group))) if group > 1 else ()
    model = small(counts, 256 * blocks, order)
    outputs = [(find_recipe("Q8_0"), Path("a")), (find_recipe("F32"), Path("b"))]
    with mock.patch.object(build, "_check_loads"):  # it is nothing that llama.cpp would load
        p = build.plan_quantization(model, outputs)
    row = 0
    whole = Schedule(p, 3)
    for chunk in whole.chunks():
        assert chunk.row == row
        assert chunk.count % group == 0
        assert chunk.count == group or chunk.count * 256 * blocks <= CHUNK_WEIGHTS
        row += chunk.count
    assert row == sum(counts)
    assert p.source_bytes == row * 256 * blocks * 2
    assert whole.stages == (2, 3, 2)
    largest = max(map(whole.chunk_bytes, whole.chunks()))
    assert whole.least_memory == (2 + 3 + 2 + 2) * largest


def test_memory_does_not_grow_with_the_model() -> None:
    few, many = (
        Schedule(build.laid_out(small([rows], 4096), "BF16", Path("a")), 2).least_memory
        for rows in (10_000, 10_000_000)
    )
    assert few == many < 51e6


def test_planned_sizes_are_the_bytes_on_disk(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from quantkit.jobs import quantize

    p = quantize(checkpoint("mixtral-5x"), ["Q4_K_M", "Q8_0", "F16", "BF16", "F32"], tmp_path)
    for f in p.files:
        assert f.path.stat().st_size == f.size


def test_a_plan_is_a_value(checkpoint: Callable[[str], Path]) -> None:
    outputs = [(find_recipe("Q4_K_M"), Path("a.gguf"))]
    a, b = (
        build.plan_quantization(open_checkpoint(checkpoint("mixtral-4x"), None), outputs)
        for _ in range(2)
    )
    assert a.outputs == b.outputs
    assert a.segments == b.segments


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s[1:], "filled by nothing"),
        (lambda s: s[:-1], "do not make"),
        (lambda s: (s[0], replace(s[1], first_row=3)), "filled by nothing"),
        (lambda s: (s[0], replace(s[1], source_row=1)), "not used once"),
        (lambda s: (s[0], replace(s[1], source="s0")), "not used once"),
        (lambda s: (s[0], replace(s[1], order=(0, 1, 2))), "filled by nothing"),
    ],
)
def test_check_refuses_what_does_not_tile(damage: Callable[..., object], words: str) -> None:
    good = build.laid_out(small([4, 4], 256), "BF16", Path("a"))
    check(good)
    bad = replace(good, segments={"token_embd.weight": damage(good.segments["token_embd.weight"])})
    with pytest.raises(errors.PlanError, match=words):
        check(bad)


def test_check_refuses_a_gap_in_the_file() -> None:
    good = build.laid_out(small([4], 256), "BF16", Path("a"))
    f = good.files[0]
    moved = replace(f, tensors=(replace(f.tensors[0], offset=f.tensors[0].offset + 32),))
    with pytest.raises(errors.PlanError, match="starts at"):
        check(replace(good, outputs=(replace(good.outputs[0], files=(moved,)),)))


def test_a_source_that_nothing_uses_is_refused() -> None:
    model = small([4], 256)
    sources = {**model.sources, "spare": replace(model.sources["s0"], name="spare")}
    with pytest.raises(errors.PlanError, match="spare"):
        build.laid_out(replace(model, sources=sources), "BF16", Path())


def test_a_headers_size_is_known_before_its_bytes(checkpoint: Callable[[str], Path]) -> None:
    model = open_checkpoint(checkpoint("mixtral-4x"), "auto")
    splits = Splits(max_tensors=6, no_tensor_first=True)
    found = build.laid_out(model, "BF16", Path("x.gguf"), splits)
    assert len(found.files) > 3
    for f in found.files:
        assert f.header_size == len(f.header)
        assert [t.offset for t in f.tensors[:1]] in ([], [f.header_size])
