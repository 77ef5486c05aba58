"""Layers that predict further tokens: those that llama.cpp loads and does not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.errors import NotLoadable
from quantkit.gguf.container import read_header, replaced, uint32
from quantkit.jobs import convert, quantize
from quantkit.loading.ahead import ALONE, unrun
from quantkit.loading.model import faults
from quantkit.loading.values import of_architecture
from quantkit.model.open import Reading
from tests.loading.test_model import infos
from tests.real_loader import Judge

ONLY = Reading(options=ConversionOptions(mtp="only"))
# a golden of each architecture whose layers may be a file of their own (of DeepSeek V3 and V4 none
# are converted)
CASES = [
    "cohere-mtp", "deepseek-v32", "glm4moe", "glm4moelite", "glm5", "glm53-flash", "hy3",
    "ling3-flash", "mimo-v25", "nemotron-h-mtp", "qwen35-dense", "qwen35moe", "qwen3next",
    "qwen4-mtp", "step35",
]  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


@pytest.mark.parametrize("case", CASES)
def test_alone_they_run(
    case: str, checkpoint: Callable[[str], Path], judge: Judge, tmp_path: Path
) -> None:
    for kind in ("F16", "Q4_K_M"):
        plan = quantize(checkpoint(case), [kind], tmp_path / f"{kind}.gguf", reading=ONLY)
        assert judge.complaint(plan.files[0].path) == ""


def test_every_architecture_has_a_case(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    found = set()
    for case in CASES:
        path = convert(checkpoint(case), tmp_path / f"{case}.gguf", reading=ONLY).files[0].path
        found.add(read_header(path).get("general.architecture"))
    assert ALONE - found == {"deepseek4", "nemotron_h"}  # as DeepSeek V4's; without experts


def test_three_matrices_of_mimo(
    checkpoint: Callable[[str], Path], judge: Judge, tmp_path: Path
) -> None:
    """llama.cpp ends at them when it drafts; a whole model runs without them, with a note."""
    source, out = checkpoint("mimo-v2-flash"), tmp_path / "m.gguf"
    with pytest.raises(NotLoadable, match=r"queries, keys and values of layer .* are three"):
        convert(source, out, reading=ONLY)
    assert list(tmp_path.iterdir()) == []
    convert(source, out)
    assert judge.complaint(out) == ""
    header = read_header(out)
    (why,) = unrun("mimo2", of_architecture("mimo2", header.kv), infos(header))
    assert "llama.cpp runs it where they are one" in why
    assert faults(header.kv, infos(header)) == []


@pytest.mark.parametrize("case", ["deepseek-v32", "mimo-v25"])
def test_what_none_can_do_without(
    case: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each tensor that llama.cpp asks for is missed, by name."""
    path = convert(checkpoint(case), tmp_path / "m.gguf", reading=ONLY).files[0].path
    header = read_header(path)
    for role in ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "attn_norm", "ffn_norm"):
        found = faults(header.kv, [t for t in infos(header) if f".{role}." not in t.name])
        assert any(f"{role}.weight is not there" in line for line in found), (role, found)


def test_more_than_llama_cpp_runs(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    path = convert(checkpoint("glm4moe"), tmp_path / "m.gguf").files[0].path
    header = read_header(path)
    kv = replaced(header.kv, uint32("glm4moe.nextn_predict_layers", 2))
    found = [*unrun("glm4moe", of_architecture("glm4moe", kv), infos(header))]
    assert "glm4moe: 2 layers predict further tokens, and llama.cpp runs one" in found
