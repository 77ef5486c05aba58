"""What single architectures ask: a line at each value that llama.cpp ends at, none at others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.errors import NotLoadable
from quantkit.gguf.container import KeyValue, array, read_header, replaced, scalar, uint32
from quantkit.jobs import convert
from quantkit.loading.families import CHECKS
from quantkit.loading.keys import KEYS, RANGES
from quantkit.loading.model import faults
from quantkit.loading.needs import needs
from tests.loading.test_model import infos

BAD: list[tuple[str, KeyValue, str]] = [
    (
        "gemma4-e2b",
        uint32("gemma4.rope.dimension_count", 0),
        "dimension_count is 0, of heads of 128",
    ),
    ("gemma4-e2b", uint32("gemma4.rope.dimension_count", 63), "dimension_count is 63, of heads"),
    ("gemma4-e2b", uint32("gemma4.rope.dimension_count_swa", 0), "_swa is 0, of heads of 64"),
    ("gemma4-e2b", array("tokenizer.ggml.suppress_tokens", ["a"]), "is no array of INT32"),
    ("gemma4-e2b", uint32("tokenizer.ggml.bos_token_id", 0xFFFFFFFF), "get a bos_token_id, and no"),
    ("starcoder1", uint32("starcoder.context_length", 3), "not the 128 of position_embd.weight"),
    ("deepseek-v4", uint32("deepseek4.expert_used_count", 1), "not the 2 of blk.0.ffn_gate_tid"),
    ("deepseek-v4", uint32("deepseek4.expert_gating_func", 2), "llama.cpp works with 4 alone"),
    (
        "deepseek-v4",
        uint32("deepseek4.hyper_connection.sinkhorn_iterations", 0),
        "works with 1 to 1000",
    ),
    ("glm53-flash", uint32("glm5-next.attention.indexer.top_k", 63), "no multiple of pools of"),
    ("qwen4-mtp", uint32("qwen4exp.attention.indexer.top_k", 63), "no multiple of pools of 4"),
    ("qwen4-mtp", array("qwen4exp.attention.compress_ratios", [4, 8] * 3), "compress by 4 and 8"),
    ("k2-horizon-mova", uint32("k2-horizon.expert_gating_func", 4), "neither 1 (softmax) nor 2"),
    ("k2-horizon-mova", uint32("k2-horizon.attention.value_expert_used_count", 5), "of 4 value"),
    ("k2-horizon-mova", uint32("k2-horizon.attention.value_expert_count", 2), "not the 4 of blk.1"),
    ("ling3-flash", scalar("bailingmoe3.kda.safe_gate", 7, False), "works with 1 alone"),
    ("ling3-flash", scalar("bailingmoe3.kda.gate_lower_bound", 6, 0.0), "gate_lower_bound is 0"),
    (
        "ministral3",
        uint32("mistral3.rope.scaling.original_context_length", 0),
        "temperature_scale without",
    ),
    ("glm52", array("glm-dsa.attention.indexer.types", [False, False, True]), "layer 0 shares"),
    ("glm52", array("glm-dsa.attention.indexer.types", [True] * 3), "blk.1.indexer.attn_k.weight"),
    ("minimax-m3", uint32("minimax-m3.leading_dense_block_count", 4), "4 layers are dense"),
    ("bert-bge", uint32("tokenizer.ggml.token_type_count", 3), "3, not the 2 of token_types.weigh"),
    ("flan-t5", uint32("t5.block_count", 3), "enc.blk.2.attn_norm.weight is not there"),
    ("flan-t5", uint32("t5.decoder_block_count", 3), "dec.blk.2.attn_norm.weight is not there"),
    ("flan-t5", uint32("t5.block_count", 1), "decoder_block_count is 2, of 1 layers"),
    ("flan-t5", uint32("t5.context_length", 1 << 20), "context_length is 1048576"),
    ("flan-t5", uint32("t5.decoder_start_token_id", 1 << 20), "decoder_start_token_id is 1048576"),
    ("t5-encoder", uint32("t5encoder.block_count", 3), "enc.blk.2.attn_norm.weight is not there"),
    (
        "embeddinggemma",
        array("gemma-embedding.attention.sliding_window_pattern", [True] * 6),
        "all 6 layers have a sliding window",
    ),
    ("kimi-k3", array("kimi-k3.attention.head_count_kv", [0] * 4), "4 layers are recurrent"),
    ("gemma4-dense", uint32("gemma4.attention.shared_kv_layers", 3), "two have their own"),
    (
        "gemma4-dense",
        uint32("gemma4.attention.shared_kv_layers", 1),
        "one of the two has a sliding",
    ),
    (
        "qwen25vl",
        array("qwen2vl.rope.dimension_sections", [8, 8, 8]),
        "3 values; llama.cpp reads 4",
    ),
    ("hrm-text", uint32("hrm_text.hrm.h_cycles", 3), "block_count is "),
    ("lfm2-d1-omni", uint32("lfm2.decision.block_count", 6), "a head of 6 layers decides"),
    ("lfm2-d1-omni", scalar("lfm2.attention.causal", 7, True), "that is for an encoder"),
    ("laya", uint32("modern-bert.decision.block_count", 6), "a head of 6 layers decides, and"),
    ("k2-dense", uint32("k2-horizon.attention.group_norm_groups", 3), "which does not divide"),
    ("deepseek-v4", uint32("deepseek4.attention.head_count_kv", 2), "works with 1 alone"),
    (
        "bert-bge",
        uint32("bert.attention.head_count", 0),
        "bert.attention.head_count is 0",
    ),
    ("arctic", array("arctic.expert_used_count", [1, 2]), "expert_used_count differs by layer"),
]


@pytest.mark.parametrize(("case", "item", "words"), BAD, ids=[words for *_, words in BAD])
def test_every_check_has_a_line(
    case: str,
    item: KeyValue,
    words: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = convert(checkpoint(case), tmp_path / "m.gguf").files[0].path
    header = read_header(path)
    assert faults(header.kv, infos(header)) == []
    found = faults(replaced(header.kv, item), infos(header))
    assert any(words in line for line in found), found


def test_one_of_two_keys(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    path = convert(checkpoint("cohere-mtp"), tmp_path / "m.gguf").files[0].path
    header = read_header(path)
    kv = [item for item in header.kv if not item.key.endswith("_epsilon")]
    assert len(kv) < len(header.kv)
    found = faults(kv, infos(header))
    assert any("neither attention.layer_norm_rms_epsilon nor" in line for line in found), found


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("llama4-full", "sliding_window is 0"),
        ("hy4-layer-types", "layer 0 shares the indexer of a layer before it"),
        ("exaone-moe-llama3", "leave them out with --no-mtp"),
    ],
)
def test_a_checkpoint_that_llama_cpp_ends_at_is_not_converted(
    case: str, words: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(NotLoadable, match=words):
        convert(checkpoint(case), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_the_checks_are_of_architectures_and_keys_that_there_are() -> None:
    assert CHECKS.keys() <= needs().keys()
    for key in RANGES:
        arch, _, name = key.partition(".")
        assert key in KEYS or (arch in needs() and name in KEYS), key
