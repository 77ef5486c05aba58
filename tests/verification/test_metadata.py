"""Structure, metadata and vocabulary: what does not hold together, or is not the source's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.execution import pipeline
from quantkit.gguf.container import KeyValue, header_bytes, read_header, string, uint32
from quantkit.loading import splitting
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.open import Reading
from quantkit.planning.build import laid_out
from quantkit.planning.schedule import Schedule
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.verification.verify import Verdict, verify
from tests.checkpoints import architectures
from tests.verification.damage import instead, rewritten, without

KINDS, TOKENS = "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"
FLAT = KeyValue("tokenizer.ggml.scores", struct.pack("<IIQ", 9, 6, 2048) + bytes(4 * 2048))


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        (without("general.architecture"), "general.architecture is not there"),
        (without("llama.block_count"), "llama.block_count is not there"),
        (without("tokenizer.ggml.model"), "tokenizer.ggml.model is not there"),
        (without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens is not there"),
        (without("tokenizer.ggml.scores"), "tokenizer.ggml.scores is not there"),
        (instead(FLAT), "tokenizer.ggml.scores are all 0: they were lost"),
        (instead(KeyValue(FLAT.key, struct.pack("<IIQff", 9, 6, 2, 0, -1))),
         "tokenizer.ggml.scores has 2 entries for 2048 tokens"),
        (instead(uint32("llama.block_count", 4)), "block_count is 4, and layer 3 has no tensors"),
        (instead(uint32("llama.block_count", 2)), "is 2, and there are tensors of layer 2"),
        (instead(uint32("llama.embedding_length", 128)),
         "llama.embedding_length is 128, token_embd.weight is 256 wide"),
        (instead(uint32("llama.expert_count", 8)),
         "llama.expert_count is 8, not the 4 of blk.0.ffn_down_exps.weight and 11 more tensors"),
        (without("llama.expert_count"), "llama.expert_count is 0, not the 4 of blk.0.ffn_down"),
        (instead(uint32("llama.expert_used_count", 5)), "used_count is 5, of 4 experts"),
        (instead(uint32("llama.expert_used_count", 0)), "used_count is 0, of 4 experts"),
        (instead(uint32("tokenizer.ggml.eos_token_id", 2048)), "is 2048, of 2048 tokens"),
        (instead(string("tokenizer.ggml.model", "gpt2")), "tokenizer.ggml.merges is not there"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together(
    kv: Any, words: str, files: dict[str, Path], tmp_path: Path
) -> None:
    found = verify(rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=kv))
    assert not found.good
    assert any(words in finding for finding in found.findings), found.findings


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        (instead(uint32("llama.expert_used_count", 1)),
         "llama.expert_used_count is 1 in the file, the source gives 2"),
        (without("llama.rope.freq_base"), "llama.rope.freq_base is not in the file"),
        (without("tokenizer.ggml.scores"), "tokenizer.ggml.scores is not in the file; the source "
                                           "gives 2048 entries"),
        (instead(FLAT), "tokenizer.ggml.scores[260] is 0, the source gives -1 (1788 of 2048"),
        (instead(uint32("tokenizer.ggml.bos_token_id", 3)), "tokenizer.ggml.bos_token_id is 3 in"),
        (instead(KeyValue(FLAT.key, struct.pack("<IIQff", 9, 6, 2, 0, -1))),
         "has 2 entries in the file, the source gives 2048"),
        (instead(string("general.architecture", "qwen2")), "architecture qwen2, the source of ll"),
    ],
)  # fmt: skip
def test_metadata_that_is_not_the_source_s(
    kv: Any, words: str, files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    found = verify(rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=kv), source)
    assert any(words in finding for finding in found.findings), found.findings


def test_a_vocabulary_that_splits_text_otherwise(
    files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    raw = next(i.raw for i in read_header(files["Q2_K"]).kv if i.key == FLAT.key)
    scores = np.frombuffer(raw[16:], np.float32)[::-1].tobytes()
    turned = KeyValue(FLAT.key, raw[:16] + scores)
    found = verify(rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=instead(turned)), source)
    said = [text for text in found.findings if "tokens in llama.cpp" in text]
    assert len(said) >= 3
    assert said[0].startswith("'The quick brown fox")


def test_a_vocabulary_that_ends_llama_cpp(
    files: dict[str, Path], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It throws where nothing catches: no token is a byte. That is said by name; and if it were not
    known, llama.cpp would end in a process of its own."""
    raw = next(i.raw for i in read_header(files["Q2_K"]).kv if i.key == KINDS)
    kinds = np.frombuffer(raw[16:], np.int32).copy()
    kinds[kinds == 6] = 1
    kv = instead(KeyValue(KINDS, raw[:16] + kinds.tobytes()))
    header = read_header(files["Q2_K"])
    tokens = next(i.raw for i in header.kv if i.key == TOKENS)
    assert b"<0x41>" in tokens
    other = KeyValue(TOKENS, tokens.replace(b"<0x", b"<1x"))
    bad = rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=lambda old: instead(other)(kv(old)))
    assert any("bytes have no token" in f for f in verify(bad, source).findings)
    monkeypatch.setattr(splitting, "faults", lambda *_: iter(()))
    (finding,) = (f for f in verify(bad, source).findings if "does not read its vocabulary" in f)
    assert finding.startswith(str(tmp_path / "bad.gguf"))


def test_tensors_that_are_missing_or_of_another_shape(
    files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    header, path = read_header(files["Q2_K"]), tmp_path / "bad.gguf"
    data = files["Q2_K"].read_bytes()[header.data_offset :]

    def other(**changes: Any) -> Verdict:
        changed = "blk.0.attn_q.weight"
        infos = [replace(t, **changes) if t.name == changed else t for t in header.tensors]
        path.write_bytes(header_bytes(header.kv, infos) + data)
        return verify(path, source)

    found = other(name="blk.0.attn_z.weight")
    assert {
        "blk.0.attn_q.weight is not there",
        "blk.0.attn_z.weight: llama.cpp asks for no such tensor of llama",
        "blk.0.attn_q.weight is not in the file",
        "blk.0.attn_z.weight is not in the source",
    } >= {*found.findings[:3]}
    assert "blk.0.attn_z.weight is not in the source" in found.findings
    found = other(shape=(128, 512))
    assert found.findings == [
        "blk.0.attn_q.weight is [128, 512] in the file, [256, 256] in the source"
    ]
    start = next(t for t in header.tensors if t.name == "blk.0.attn_k.weight").offset
    found = other(offset=start)
    assert any("begins at byte" in finding for finding in found.findings)
    path.write_bytes(header_bytes(header.kv, header.tensors) + data + b"more")
    (finding,) = verify(path).findings
    assert f"{path.stat().st_size} bytes, of which {path.stat().st_size - 4} are" in finding


def test_truncated_files(files: dict[str, Path], tmp_path: Path) -> None:
    path, whole = tmp_path / "bad.gguf", files["Q2_K"].read_bytes()
    for size, words in (
        (len(whole) - 1000, "it is truncated"),
        (5000, "truncated or damaged"),
        (2, "truncated"),
    ):
        path.write_bytes(whole[:size])
        (finding,) = verify(path).findings
        assert words in finding
    path.write_bytes(b"GGML" + whole[4:])
    assert verify(path).findings == [f"{path}: not a GGUF file (it does not start with 'GGUF')"]


@pytest.mark.parametrize("case", ["qwen3next-mtp-only", "nemotron-h-mtp-only"])
def test_layers_that_predict_are_seen_to_be_alone(
    case: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """A file of nothing else is held against nothing else of its source."""
    source, path = checkpoint(case), tmp_path / "m.gguf"
    pre = architectures()[case]["golden"]["pre"]
    model = from_checkpoint(
        CheckpointFiles.local(source), "bf16", pre, ConversionOptions(mtp="only")
    )
    pipeline.execute(Schedule(laid_out(model, "BF16", path), 1))
    found = verify(path, source, reading=Reading(pre))
    assert found.good, found.findings
