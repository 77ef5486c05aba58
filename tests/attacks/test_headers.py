"""Mutated headers before `verify` and llama.cpp; `python -m tests.attacks.headers` tries more."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")
if sys.platform == "win32":
    pytest.skip("children are forked", allow_module_level=True)

from quantkit import errors
from quantkit.gguf.splits import Splits
from quantkit.jobs import merge, quantize, split
from quantkit.verification.verify import verify
from tests.attacks import headers
from tests.attacks.header_parts import Parts
from tests.attacks.small import number


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[list[Parts]]:
    return headers.make_seeds(
        tmp_path_factory.mktemp("seeds"), ("mixtral-4x", "gemma4-e2b", headers.CASES[-1])
    )


def test_what_verify_calls_good_llama_cpp_uses(seeds: list[list[Parts]]) -> None:
    found = headers.run(seeds, 300, seed=17)
    assert not found.dangerous
    assert found.n == 300
    assert found.good > 10
    assert found.bad > 100
    assert found.refused_there > 50


def test_a_key_twice_is_not_written_again(seeds: list[list[Parts]], tmp_path: Path) -> None:
    twice = seeds[0][0].copy()
    twice.kv.append(twice.kv[3])
    twice.write(path := tmp_path / "twice.gguf")
    assert any("is there 2 times" in text for text in verify(path).findings)
    out = tmp_path / "out"
    out.mkdir()
    for make in (
        lambda: quantize(path, ["Q8_0"], out / "a.gguf"),
        lambda: split(path, out / "a.gguf", Splits(max_tensors=5)),
        lambda: merge(path, out / "a.gguf"),
    ):
        with pytest.raises(errors.QuantkitError):
            make()
    assert list(out.iterdir()) == []


def test_tensors_in_another_order_are_put_right(seeds: list[list[Parts]], tmp_path: Path) -> None:
    other = seeds[0][0].copy()
    other.tensors.reverse()
    other.write(path := tmp_path / "other.gguf")
    (finding,) = verify(path).findings
    assert "begins at byte" in finding
    assert split(path, tmp_path / "a.gguf", Splits(max_tensors=5)).files
    assert verify(tmp_path / "a-00001-of-00005.gguf").good


@pytest.mark.parametrize("alignment", [8, 64])
def test_alignments(alignment: int, seeds: list[list[Parts]], tmp_path: Path) -> None:
    """What llama.cpp cannot map is bad; both are read, and written as all files are."""
    p = seeds[0][0].copy()
    p.alignment = alignment
    p.kv.append((b"general.alignment", struct.pack("<II", 4, alignment)))
    p.kv.append((b"x", number(1)))
    while (len(p.head()) % 32 == 0) is (alignment == 8):
        p.kv[-1] = p.kv[-1][0] + b"x", number(1)
    p.lay_out()
    p.write(path := tmp_path / "a.gguf")
    assert verify(path).good is (alignment == 64)
    made = split(path, tmp_path / "b.gguf", Splits(max_tensors=5)).files
    assert verify(made[0].path).good
