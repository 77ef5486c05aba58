"""Small files changed in form: a few of each kind; `make fuzz` goes through all, for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.attacks import small_files, structured

VOCABULARIES = ("llama-dense", "mixtral-4x", "qwen2-dense-slowtok", "kimi-k2", "vocab-t-json")


def test_a_few_of_each_kind(tmp_path: Path) -> None:
    tried = [
        *small_files.of_vocabularies(tmp_path / "v", VOCABULARIES),
        *small_files.of_configs(tmp_path / "c", ("mixtral-4x-sharded", "gemma3-tiny-mmproj")),
        *small_files.of_adapters(tmp_path / "a", ("lora-mixtral-attention",)),
        *small_files.of_matrices(tmp_path),
        *small_files.of_tensor_types(tmp_path),
    ]
    before = sorted(tmp_path.rglob("*"))
    counts, outside = small_files.run(tried, 600, seed=17, rounds=8)
    assert outside == []
    assert set(counts.values()) == {8}
    assert set(tmp_path.rglob("*")) <= {*before, *(t.path for t in tried)}


@pytest.mark.slow
def test_many_of_each_kind(tmp_path: Path) -> None:
    tried = small_files.everything(tmp_path)
    counts, outside = small_files.run(tried, 1800, seed=1, rounds=3)
    assert outside == []
    assert min(counts.values()) == 3


def test_a_protobuf_message_comes_apart_and_together() -> None:
    data = b"\x08\x96\x01\x12\x03abc\x1d\0\0\x80\x3f"
    assert structured._message(structured._fields(data)) == data
    changed = {structured.in_protobuf(data, random.Random(i)) for i in range(50)}
    assert len(changed) > 20
