"""What llama.cpp's loader would say: a line for every precondition, nothing for files that load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.gguf.container import (
    Header,
    KeyValue,
    array,
    read_header,
    replaced,
    scalar,
    string,
    uint32,
)
from quantkit.gguf.splits import Splits
from quantkit.gguf.types import type_by_id
from quantkit.jobs import Run, convert, merge, quantize, split
from quantkit.loading.keys import ARRAYS, KEYS
from quantkit.loading.model import faults
from quantkit.loading.needs import needs
from quantkit.loading.patterns import PATTERNS, STEPS
from quantkit.loading.values import Info
from quantkit.loading.vocabulary import PRE_TOKENIZERS
from quantkit.tokenizer.pre_tokenizer_hashes import HASHES
from quantkit.tokenizer.wordpiece import PRE_NAMES
from quantkit.verification.verify import verify
from tests.verification.damage import rewritten

Model = tuple[tuple[KeyValue, ...], tuple[Info, ...]]
Change = Callable[[Model], Model]


@pytest.fixture(scope="module")
def file(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of four experts in two layers, of which llama.cpp reads every key."""
    return (
        convert(checkpoint("mixtral-4x"), tmp_path_factory.mktemp("good") / "m.gguf").files[0].path
    )


@pytest.fixture(scope="module")
def good(file: Path) -> Model:
    header = read_header(file)
    return header.kv, infos(header)


def infos(header: Header) -> tuple[Info, ...]:
    """What is known of the tensors of a file."""
    types = [type_by_id(t.ggml_type) for t in header.tensors]
    return tuple(
        Info(t.name, t.shape, ggml.name)
        for t, ggml in zip(header.tensors, types, strict=True)
        if ggml
    )


def keys(*new: KeyValue) -> Change:
    return lambda model: (replaced(model[0], *new), model[1])


def without(key: str) -> Change:
    return lambda model: (tuple(i for i in model[0] if i.key != key), model[1])


def tensor(which: str, **new: Any) -> Change:
    return lambda model: (
        model[0],
        tuple(t._replace(**new) if t.name == which else t for t in model[1]),
    )


def no_tensor(name: str) -> Change:
    return lambda model: (model[0], tuple(t for t in model[1] if t.name != name))


def more(name: str, format: str = "F32") -> Change:
    return lambda model: (model[0], (*model[1], Info(name, (4,), format)))


def tokens(change: Callable[[list[str]], None]) -> Change:
    def changed(model: Model) -> Model:
        found = next(i.value for i in model[0] if i.key == "tokenizer.ggml.tokens")
        change(found)
        return replaced(model[0], array("tokenizer.ggml.tokens", found)), model[1]

    return changed


def twice(model: Model) -> Model:
    return (*model[0], model[0][3]), model[1]


def one_text(found: list[str]) -> None:
    found[300] = found[299]


GATE = "blk.1.ffn_gate_inp.weight"
BAD: list[tuple[Change, str]] = [
    (twice, "is there 2 times"),
    (without("general.architecture"), "general.architecture is not there"),
    (keys(string("general.architecture", "llama9")), "'llama9', which llama.cpp does not know"),
    (keys(string("general.alignment", "32")), "not a power of two of type UINT32"),
    (keys(uint32("general.alignment", 48)), "general.alignment is 48"),
    (tensor(GATE, name=f"blk.1.{'x' * 58}"), "has 64 bytes; 63 is the most"),
    (tensor(GATE, name="blk.0.ffn_gate_inp.weight"), "is there 2 times"),
    (tensor(GATE, shape=(4, 1, 1, 1, 256)), "does not fit"),
    (tensor("blk.1.attn_q.weight", format="Q4_K", shape=(256, 255)), "does not fit Q4_K"),
    (without("llama.block_count"), "llama.block_count is not there"),
    (without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon is not there"),
    (keys(uint32("llama.attention.layer_norm_rms_epsilon", 1)), "where llama.cpp reads FLOAT32"),
    (keys(scalar("llama.attention.layer_norm_rms_epsilon", 6, float("nan"))), "is nan; llama.cpp"),
    (keys(scalar("llama.rope.freq_base", 6, 0.0)), "llama.rope.freq_base is 0; llama.cpp works"),
    (keys(string("llama.rope.scaling.type", "mrope")), "'mrope', not one of linear"),
    (keys(array("llama.expert_count", [4, 4])), "is an array where llama.cpp reads one UINT32"),
    (keys(scalar("llama.expert_count", 5, 4)), "is INT32 where llama.cpp reads UINT32"),
    (keys(array("llama.feed_forward_length", [512] * 3)), "has 3 values for 2 layers"),
    (keys(array("llama.attention.head_count", [4.0, 4.0])), "an array of FLOAT32 where"),
    (keys(array("llama.attention.sliding_window_pattern", [True])), "has 1 values for 2 layers"),
    (keys(uint32("llama.nextn_predict_layers", 2)), "nextn_predict_layers is 2, of 2 layers"),
    (keys(uint32("llama.block_count", 3)), "block_count is 3, and layer 2 has no tensors"),
    (keys(uint32("llama.block_count", 1)), "there are tensors of layer 1"),
    (keys(uint32("llama.block_count", 513)), "works with 1 to 512"),
    (keys(uint32("llama.expert_used_count", 0)), "expert_used_count is 0, of 4 experts"),
    (keys(uint32("llama.expert_used_count", 5)), "expert_used_count is 5, of 4 experts"),
    (keys(array("llama.expert_used_count", [2, 5])), "expert_used_count is [2, 5], of 4"),
    (keys(uint32("llama.expert_group_count", 4)), "4, of 4 experts; a group has 2 or more"),
    (keys(uint32("llama.expert_group_count", 3)), "3, which does not divide 4 experts"),
    (keys(uint32("llama.expert_group_count", 2)), "expert_group_used_count is 0, of 2 groups"),
    (keys(uint32("llama.expert_count", 3)), "expert_count is 3, not the 4 of"),
    (keys(uint32("llama.embedding_length", 128)), "token_embd.weight is 256 wide"),
    (tensor(GATE, shape=(3, 256)), "not the 3 of blk.1.ffn_gate_inp.weight"),
    (no_tensor("output_norm.weight"), "output_norm.weight is not there"),
    (no_tensor("blk.1.attn_output.weight"), "blk.1.attn_output.weight is not there"),
    (no_tensor("blk.1.attn_k.weight"), "blk.1.attn_k.weight is not there"),
    (no_tensor("blk.1.ffn_up_exps.weight"), "blk.1.ffn_up_exps.weight is not there"),
    (more("blk.0.ffn_gate_tid2eid.weight", "I32"), "tid2eid.weight: llama.cpp asks for no such"),
    (more("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight: llama.cpp asks for no such tensor"),
    (more("blk.1.attn_qkv.bias"), "blk.1.attn_qkv.bias: llama.cpp asks for no such tensor"),
    (more("blk.1.ffn_gate_inp.scale"), "ffn_gate_inp.scale: llama.cpp asks for no such tensor"),
    (more("rope_factors_long.weight"), "rope_factors_long.weight: llama.cpp asks for no such"),
    (more("v.blk.0.ln1.weight"), "v.blk.0.ln1.weight: llama.cpp asks for no such tensor"),
    (without("tokenizer.ggml.model"), "the file has no vocabulary"),
    (without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens is not there"),
    (keys(string("tokenizer.ggml.model", "unigram")), "'unigram', which llama.cpp does not know"),
    (keys(string("tokenizer.ggml.model", "gpt2")), "tokenizer.ggml.merges is not there"),
    (keys(array("tokenizer.ggml.scores", [1.0])), "scores has 1 entries for"),
    (keys(array("tokenizer.ggml.token_type", ["1"])), "token_type is no array of INT32"),
    (keys(string("tokenizer.ggml.bos_token_id", "1")), "where llama.cpp reads UINT32"),
    (keys(uint32("tokenizer.ggml.eos_token_id", 99999)), "eos_token_id is 99999, of"),
    (keys(uint32("tokenizer.ggml.add_bos_token", 1)), "is UINT32 where llama.cpp reads BOOL"),
    (tokens(one_text), "tokens 299 and 300 have the same text"),
    (tokens(lambda found: found.append("more")), "token_embd.weight"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words for _, words in BAD])
def test_every_precondition_has_a_line(change: Change, words: str, good: Model) -> None:
    found = faults(*change(good))
    assert any(words in line for line in found), found
    assert all("\n" not in line for line in found)


def test_a_file_that_loads_has_no_faults(good: Model) -> None:
    assert faults(*good) == []


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.1.attn_q.scale", "blk.1.ffn_up_exps.input_scale",
             "rope_freqs.weight", "blk.0.attn_output.bias"],
)  # fmt: skip
def test_what_need_not_be_there_may(name: str, good: Model) -> None:
    assert faults(*more(name)(good)) == []


def test_the_tables_agree() -> None:
    for arch, keys in needs().items():
        assert {*keys} <= KEYS.keys() | ARRAYS, arch
    assert {p.key for p in PATTERNS.values()} <= KEYS.keys()
    assert {s.key for steps in STEPS.values() for s in steps if s.key} <= KEYS.keys()
    assert PATTERNS.keys() | STEPS.keys() <= needs().keys()
    assert len(needs()) > 150


def test_llama_cpp_knows_every_pre_tokenizer_that_is_written() -> None:
    # it does not read those of WordPiece
    assert {*HASHES.values()} - {*PRE_NAMES} <= PRE_TOKENIZERS


def test_it_is_fast(good: Model) -> None:
    """A vocabulary of 256k tokens, and 100,000 tensors."""
    kv = replaced(
        good[0],
        array("tokenizer.ggml.tokens", [f"token {i}" for i in range(1 << 18)]),
        array("tokenizer.ggml.scores", [float(-i) for i in range(1 << 18)]),
        array("tokenizer.ggml.token_type", [1] * (1 << 18)),
    )
    many = [Info(f"blk.{i % 500}.extra_{i}.weight", (256, 256), "Q4_K") for i in range(100_000)]
    started = time.process_time()
    faults(kv, [*good[1], *many])
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("general.architecture"), "cannot tell what model it is"),
        (twice, "is there 2 times"),
        (keys(uint32("llama.expert_group_count", 3)), "does not divide 4 experts"),
        (without("tokenizer.ggml.model"), "the file has no vocabulary"),
    ],
)
def test_nothing_is_made_of_what_verify_calls_bad(
    change: Change, words: str, file: Path, good: Model, tmp_path: Path
) -> None:
    """Every job refuses it by name, before a byte is written; so does a release."""
    from quantkit.releases.release import release

    bad = rewritten(file, tmp_path / "bad.gguf", kv=lambda kv: change((kv, ()))[0])
    out = tmp_path / "out"
    out.mkdir()
    jobs: Sequence[Callable[[], object]] = (
        lambda: quantize(bad, ["Q4_K_M", "Q8_0"], out),
        lambda: split(bad, out / "split.gguf", Splits(max_tensors=9)),
        lambda: merge(bad, out / "merged.gguf"),
        lambda: release(bad, out / "release", ["Q4_K_M"]),
    )
    assert any(words in line for line in verify(bad).findings)
    said = [line for line in map(_refusal, jobs) if line]
    assert all(words in line and "\n" not in line for line in said)
    assert len(said) == len(jobs) or (words.startswith("cannot tell") and len(said) == 2)
    left = {p.name for p in out.iterdir()}
    assert not any(name.endswith((".partial", ".journal")) for name in left)
    if len(said) == len(jobs):
        assert left == set()


def _refusal(job: Callable[[], object]) -> str:
    try:
        job()
    except errors.NotLoadable as e:
        return str(e)
    return ""


def test_merging_into_a_directory_is_refused_first(file: Path, tmp_path: Path) -> None:
    splits = split(file, tmp_path / "s.gguf", Splits(max_tensors=9)).files
    out = tmp_path / "directory.gguf"
    out.mkdir()
    with pytest.raises(errors.OutputError, match="is a directory; name the file"):
        merge(splits[0].path, out, Run(force=True))
    assert list(out.iterdir()) == []
    assert not list(tmp_path.glob("*.partial"))
