"""llama.cpp loads what comes of an edit, and completes; or it is refused by name, before a byte is
written. Every edit of every golden architecture (slow), and a sample of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from quantkit.errors import QuantkitError
from quantkit.jobs import convert
from tests.checkpoints import architectures
from tests.edits import Edit, combined, edits, outcome
from tests.real_loader import Judge

# drafts run beside the model that they are for, and not by themselves
DRAFTS = (
    "dflash", "dspark", "eagle3", "gemma4-dspark", "gemma4-assistant", "gemma4-unified-assistant",
    "muse-glimmer-assistant", "deepseek-v4-dspark-own",
)  # fmt: skip
CASES = sorted(case for case in architectures() if not case.startswith(DRAFTS))
# llama.cpp loads no file of these checkpoints: more experts used than there are, a bias or a rank
# that is missing, layers of another kind than it knows, no layer in chunks, no indexer to share,
# factors of rotary positions beside a layer that predicts, two layers that predict (converted
# without them alone); and sizes that it does not know:
# DeepSeek V2 without compressed queries has 26 or 27 layers, Command R+ 64
UNLOADABLE = {
    "glm4moe-tf5fused", "minimax-m2-tf5fused", "olmoe-tf5fused", "qwen3moe-yarn-mixed",
    "phimoe-tf5fused", "llama4-full", "hy4-layer-types", "exaone-moe-llama3", "deepseek-v2-lite",
    "command-r-plus", "nemotron-h-two-without",
}  # fmt: skip
SAMPLED, TRIED = 30, 12  # one architecture in so many, and so many edits of it
TOGETHER = 6  # combinations of several edits


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def _faults(
    case: str,
    checkpoint: Path,
    judge: Judge,
    directory: Path,
    wanted: Callable[[Path], list[Edit]],
) -> list[str]:
    source, out = directory / "source.gguf", directory / "out"
    out.mkdir()
    try:
        convert(checkpoint, source)
    except QuantkitError:
        assert case in UNLOADABLE
        assert list(directory.iterdir()) == [out]
        return []
    assert case not in UNLOADABLE
    found = {e.words: outcome(e, checkpoint, source, judge, out) for e in wanted(source)}
    assert found
    return [
        f"{words}: {said}"
        for words, said in found.items()
        if said != "loads" and not said.startswith("refused: ")
    ]


def _some(case: str, source: Path) -> list[Edit]:
    every = edits(source)
    step = max(len(every) // TRIED, 1)
    return every[CASES.index(case) % step :: step]


@pytest.mark.parametrize("case", CASES[::SAMPLED])
def test_some_edits(
    case: str, checkpoint: Callable[[str], Path], judge: Judge, tmp_path: Path
) -> None:
    assert _faults(case, checkpoint(case), judge, tmp_path, partial(_some, case)) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_edit(
    case: str, checkpoint: Callable[[str], Path], judge: Judge, tmp_path: Path
) -> None:
    assert _faults(case, checkpoint(case), judge, tmp_path, edits) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[::2])
def test_several_edits_at_once(
    case: str, checkpoint: Callable[[str], Path], judge: Judge, tmp_path: Path
) -> None:
    wanted = partial(combined, case=case, n=TOGETHER)
    assert _faults(case, checkpoint(case), judge, tmp_path, wanted) == []
