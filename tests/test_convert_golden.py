"""Conversion against llama.cpp's converter: every key and every tensor of every case, and the file
itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.gguf.container import read_header
from quantkit.jobs import convert
from quantkit.model.open import Reading
from tests.checkpoints import GOLDEN, architectures
from tests.conftest import sha256
from tests.golden import assert_same, fingerprint

CASES = [
    "mixtral-4x", "mixtral-5x", "mixtral-8x", "mixtral-2x-12l", "mixtral-4x-sharded",
    "mixtral-4x-rawst", "mixtral-4x-tf5", "mixtral-4x-tf5fused", "mixtral-4x-headdim",
    "mixtral-4x-f16src", "mixtral-4x-f32src", "mixtral-4x-spm-pad", "mixtral-4x-spm-trunc",
    "mistral-dense", "llama-dense",
]  # fmt: skip
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")


def _jobs() -> list[tuple[str, str]]:
    goldens = {
        case: json.loads((GOLDEN / "convert" / f"{case}.json").read_text()) for case in CASES
    }
    return [(c, o) for c, g in goldens.items() for o in g["outtypes"] if o in OUTTYPES]


@pytest.mark.parametrize(("case", "outtype"), _jobs())
def test_same_file_as_llama_cpp(
    case: str, outtype: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    golden = json.loads((GOLDEN / "convert" / f"{case}.json").read_text())
    path = tmp_path / "out.gguf"
    convert(checkpoint(case), path, outtype)
    assert_same(path, golden["outtypes"][outtype], golden.get("either"))
    if not golden.get("either"):
        assert sha256(path) == golden["outtypes"][outtype]["file_sha256"]


@pytest.mark.parametrize("case", ["mixtral-4x-hfvocab", "mixtral-4x-hfvocab-pad"])
def test_lone_tokenizer_json(case: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Where llama.cpp gives every piece one score and does not pad, ours derives and pads; all the
    rest is the same."""
    golden = json.loads((GOLDEN / "convert" / f"{case}.json").read_text())["outtypes"]["bf16"]
    path = tmp_path / "out.gguf"
    convert(checkpoint(case), path, "bf16")
    header = read_header(path)
    ours = {item.key: fingerprint(item) for item in header.kv}
    differ = {k for k in ours if ours[k] != golden["kv"].get(k)}
    vocab = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
    assert list(ours) == golden["kv_order"]
    assert differ <= vocab
    tokens, scores = header.get("tokenizer.ggml.tokens"), header.get("tokenizer.ggml.scores")
    rows = next(t.shape[0] for t in header.tensors if t.name == "token_embd.weight")
    assert len(tokens) == len(scores) == rows == header.get("llama.vocab_size")
    assert len(set(scores)) > rows // 3
    assert tokens[515:] == [f"[PAD{i}]" for i in range(515, rows)]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # some rows are of no whole blocks and become F16, as embedding and output do
        ("arwkv7", "805d03c0e1754474d0b6bb019eefe4d4e9ffa81e31ee30d46f255f89d23ec20b"),
        ("hy3", "24facf8dc63391f0528a96476eb57f49db2656254b2c101a0bcab6a7304940aa"),
    ],
)
def test_ternary(
    case: str, expected: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The sums are of what llama.cpp's converter (b11549) wrote with --outtype tq2_0."""
    path, pre = tmp_path / "out.gguf", architectures()[case]["golden"]["pre"]
    convert(checkpoint(case), path, "tq2_0", reading=Reading(pre))
    assert sha256(path) == expected
