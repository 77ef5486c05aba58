"""Tensors that llama.cpp asks for, one more and one less, and what it says itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.errors import NotLoadable
from quantkit.gguf.container import read_header
from quantkit.jobs import convert
from quantkit.loading.asked import lines
from quantkit.loading.needs import needs

# experts after dense layers, compressed queries, two kinds of layers, experts beside a dense part,
# layers that predict, queries joined with keys, an encoder and a decoder
CASES = ("deepseek-v3", "lfm2moe", "gemma4-moe", "qwen35-dense", "glm52", "jina-v3", "flan-t5")


@pytest.mark.skipif(sys.platform == "win32", reason="children are forked")
@pytest.mark.parametrize("case", CASES)
def test_a_tensor_more_and_a_tensor_less(
    case: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    from tests.attacks.header_parts import parts
    from tests.loading.one_tensor import Found, compare

    path = convert(checkpoint(case), tmp_path / "m.gguf").files[0].path
    found = Found()
    compare(case, parts(path), read_header(path).get("general.architecture"), found, surplus=4)
    assert found.dangerous == []
    assert found.agreed["refused by both"] > 20
    # it skips layers whose first is not there, and those that predict
    assert all(" without " in line for line in found.strict)
    assert len(found.strict) < 16


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("command-r-plus", "attn_k_norm.weight and 3 more tensors: llama.cpp asks for no such"),
        ("deepseek-v2-lite", "loads models of 26 and 27 layers, not of 2"),
    ],
)
def test_sizes_that_llama_cpp_does_not_know(
    case: str, words: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """It takes a model for another by the number of its layers; its converter does not mind."""
    with pytest.raises(NotLoadable, match=words):
        convert(checkpoint(case), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_both_tables_are_of_all_architectures() -> None:
    assert lines().keys() == needs().keys()
