"""What llama.cpp computes with by the number of layers or experts, whatever config.json says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.architectures import find
from quantkit.architectures.rules import Config
from quantkit.gguf.container import uint32
from quantkit.model.edits import keep_experts
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.open import open_checkpoint
from quantkit.model.pruning import prune
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.checkpoints import architectures
from tests.damage import edit_config
from tests.model.test_pruning import model

Get = Callable[[str], Path]
WIDE = {"hidden_size": 4608, "num_attention_heads": 32, "head_dim": 128}  # of Gemma 2's 27B


@pytest.mark.parametrize(
    ("case", "changes", "told"),
    [
        ("gemma2-dense", {}, None),
        ("gemma2-dense", {"query_pre_attn_scalar": 144}, "'query_pre_attn_scalar' is 144"),
        ("gemma3-dense", {"query_pre_attn_scalar": 168}, "as if it were 64"),
        ("gemma3-dense", {"use_bidirectional_attention": True}, "_attention' is True"),
        ("llama4", {"attention_chunk_size": 8192, "attn_temperature_tuning": 4}, None),
        ("llama4", {"use_qk_norm": False}, "'use_qk_norm' is False"),
        ("llama4", {"no_rope_layers": [0, 1, 1, 1]}, "'no_rope_layers' is"),
        ("llama4", {"no_rope_layers": [1, 1, 1, 0]}, None),
        ("llama4", {"attn_scale": 0.2}, "'attn_scale' is 0.2"),
        ("llama4-full", {}, None),
        ("llama4-full", {"attn_temperature_tuning": True}, "'attn_temperature_tuning' is True"),
        ("minicpm3", {"scale_emb": 10}, "'scale_emb' is 10"),
        ("t5-small", {"relative_attention_max_distance": 64}, "_max_distance' is 64"),
        (
            "smallthinker",
            {"rope_layout": [1, 1, 1, 1], "sliding_window_size": 4096},
            "'rope_layout' is [1, 1",
        ),
        ("granitehybrid", {"position_embedding_type": "rope"}, "'position_embedding_type'"),
        ("lfm2moe", {"norm_topk_prob": False}, "'norm_topk_prob' is False"),
        ("mimo2", {"routed_scaling_factor": 2.5}, "'routed_scaling_factor' is 2.5"),
        ("deepseek-v2", {"n_group": 2, "topk_method": "group_limited_greedy"}, "'topk_method'"),
        ("deepseek-v2", {"n_group": 1, "topk_method": "greedy"}, None),
    ],
)
def test_another_value_is_told(
    case: str, changes: dict[str, Any], told: str | None, broken: Callable[..., Path]
) -> None:
    source = broken(case)
    if case == "llama4":
        text = CheckpointFiles.local(source).json("config.json")["text_config"]
        changes = {"text_config": {**text, "attention_chunk_size": 8192, **changes}}
    edit_config(source, **changes)
    pre = architectures()[case]["golden"]["pre"]
    notes = from_checkpoint(CheckpointFiles.local(source), "bf16", pre).notes
    found = [note for note in notes if "llama.cpp computes as if" in note]
    assert [told in note for note in found] == [True] if told else not found


@pytest.mark.parametrize(
    ("case", "changes", "told"),
    [
        ("mistral-dense", {"sliding_window": 64}, "2 of 2 layers see 64 tokens"),
        ("mistral-dense", {"sliding_window": 1 << 20}, None),  # more than the context
        ("qwen3-dense", {"sliding_window": 64}, None),
        ("qwen3-dense", {"sliding_window": 64, "use_sliding_window": True,
                         "max_window_layers": 1}, "1 of 2 layers see 64 tokens"),
        ("qwen3-dense", {"sliding_window": 64, "use_sliding_window": True,
                         "layer_types": ["full_attention"] * 2}, None),
        ("phi3", {"sliding_window": 64}, "layers see 64 tokens"),
        ("gemma2-dense", {"sliding_window": 64}, None),
    ],
)  # fmt: skip
def test_windows_that_llama_cpp_has_not_are_told(
    case: str, changes: dict[str, Any], told: str | None, broken: Callable[..., Path]
) -> None:
    source = broken(case)
    edit_config(source, **changes)
    pre = "default" if case not in architectures() else architectures()[case]["golden"]["pre"]
    notes = from_checkpoint(CheckpointFiles.local(source), "bf16", pre).notes
    found = [note for note in notes if "differently to longer texts" in note]
    assert [told in note for note in found] == [True] if told else not found


@pytest.mark.parametrize(("layers", "scalar"), [(46, 144), (45, 128), (60, 128)])
def test_the_27b_is_known_by_its_layers(layers: int, scalar: int) -> None:
    """A merge of its layers, or a part of them, is scaled otherwise in llama.cpp."""
    (scale,) = find("Gemma2ForCausalLM").assumes
    values = {**WIDE, "num_hidden_layers": layers, "architectures": ["Gemma2ForCausalLM"]}
    assert scale.differs(Config({**values, "query_pre_attn_scalar": scalar})) is None
    said = scale.differs(Config({**values, "query_pre_attn_scalar": 272 - scalar}))
    assert f"as if it were {scalar}" in (said or "")


@pytest.mark.parametrize(("layers", "gone", "head"), [(46, (3, 4), 128), (47, (3,), 128)])
def test_layers_of_a_27b_cannot_be_pruned(layers: int, gone: tuple[int, ...], head: int) -> None:
    kv = (
        uint32("gemma2.embedding_length", 4608),
        uint32("gemma2.attention.head_count", 32),
        uint32("gemma2.attention.key_length", head),
    )
    with pytest.raises(errors.RecipeError, match="another way with 46 layers"):
        prune(model("gemma2", layers, *kv), gone)
    prune(model("gemma2", layers, *kv[:2], uint32(kv[2].key, 144)), gone)  # of that width anyway


def test_experts_of_128_cannot_be_left_out_of_llama4(checkpoint: Get) -> None:
    whole = open_checkpoint(checkpoint("llama4"), None)
    kv = tuple(uint32(i.key, 128) if i.key == "llama4.expert_count" else i for i in whole.kv)
    with pytest.raises(errors.RecipeError, match="but not with 128 experts"):
        keep_experts(replace(whole, kv=kv), range(64))


@pytest.mark.parametrize(
    ("case", "kind"),
    [("qwen3-dense", "llama3"), ("granite-dense", "llama3"), ("qwen3-dense", "longrope"),
     ("gemma2-dense", "su")],
)  # fmt: skip
def test_positions_that_no_tensor_scales_are_refused(
    case: str, kind: str, broken: Callable[..., Path]
) -> None:
    """llama.cpp's converter stops, or its file scales nothing."""
    source = broken(case)
    edit_config(source, rope_scaling={"rope_type": kind, "factor": 8.0})
    with pytest.raises(errors.ConfigError, match=f"{kind}' is not one that llama.cpp runs with"):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen2")
