"""Models as transformers 5 saves them, where its class is another than the release's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf.container import read_header
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.architectures.test_architectures import convert, options
from tests.architectures.test_mixtures import fuse
from tests.checkpoints import architectures
from tests.damage import edit_config, edit_tensors
from tests.golden import tensors

Broken = Callable[..., Path]
DELTA = r"(?<=layers\.0\.)attention"  # the layer with delta attention
IN_MEMORY = (
    (r"word_embeddings", "embed_tokens"),
    (r"attention\.(f_proj|dt_bias|A_log)", r"attention.forget_gate.\1"),
    (r"(?<!_)attention\.", "self_attn."),
    (r"expert_bias", "e_score_correction_bias"),
    (r"\.dense\.", ".o_proj."),
)


def _saved(named: dict[str, Any]) -> None:
    """Under the authors' names, but for one."""
    for name in [*named]:
        named[re.sub(rf"{DELTA}\.o_proj", "attention.dense", name)] = named.pop(name)


def _joined(named: dict[str, Any]) -> None:
    """The convolutions of queries, keys and values as one."""
    for first in [name for name in named if name.endswith(".q_conv1d.weight")]:
        stem = first.removesuffix(".q_conv1d.weight")
        convs = [named.pop(f"{stem}.{name}_conv1d.weight") for name in "qkv"]
        dtype, (rows, *shape), _ = convs[0]
        joined = b"".join(data for _, _, data in convs)
        named[f"{stem}.conv1d.weight"] = (dtype, [3 * rows, *shape], joined)


def _in_memory(named: dict[str, Any]) -> None:
    """Under its own, and joined."""
    fuse(named)
    _joined(named)
    for name in [*named]:
        new = name
        for pattern, replacement in IN_MEMORY:
            new = re.sub(pattern, replacement, new)
        named[new] = named.pop(name)


@pytest.mark.parametrize("edit", [_saved, _in_memory])
def test_ling_3(
    edit: Callable[[dict[str, Any]], None], broken: Broken, checkpoint: Broken, tmp_path: Path
) -> None:
    """llama.cpp's converter does not know the class; the file is that of the release."""
    source, pre = broken("ling3-flash"), architectures()["ling3-flash"]["golden"]["pre"]
    edit_config(
        source,
        architectures=["BailingHybridForCausalLM"], head_dim=32, linear_head_dim=64,
        layer_types=["linear_attention", "full_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
        model_max_length=262144, moe_renormalize=True, num_expert_group=2,
        num_experts_per_token=2,
        rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 6e6, "rope_type": "default"},
        **dict.fromkeys((
            "max_position_embeddings", "norm_topk_prob", "n_group", "num_experts_per_tok",
            "first_k_dense_replace", "moe_shared_expert_intermediate_size", "no_kda_lora",
            "gated_attention_proj_granularity_type", "score_function", "scoring_func",
        )),
    )  # fmt: skip
    edit_tensors(source, edit)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    convert(checkpoint("ling3-flash"), a, "bf16", pre, ConversionOptions())
    convert(source, b, "bf16", pre, ConversionOptions())
    assert read_header(a).kv == read_header(b).kv
    found, expected = ({t["name"]: t["sha256"] for t in tensors(path)} for path in (b, a))
    assert found == expected
    if edit is _saved:
        assert a.read_bytes() == b.read_bytes()


def test_a_draft_of_gemma_4(broken: Broken, checkpoint: Broken) -> None:
    """The sizes of its layers are in a table of those that differ, and llama.cpp's converter, with
    transformers 5.23, stops at any."""
    case = "gemma4-dspark"
    source, golden = broken(case), architectures()[case]["golden"]
    sizes = {"head_dim": 128, "num_key_value_heads": 1}
    edit_config(
        source,
        global_head_dim=None, num_global_key_value_heads=None,
        per_layer_config={"0": sizes, "1": sizes},
    )  # fmt: skip
    found, released = (
        from_checkpoint(
            CheckpointFiles.local(where), "bf16", golden["pre"], options(golden["args"], where)
        )
        for where in (source, checkpoint(case))
    )
    assert found.kv == released.kv
    assert found.tensors == released.tensors
    assert all(
        np.array_equal(t.data, released.sources[name].data)
        for name, t in found.sources.items()
        if t.data is not None
    )


@pytest.mark.parametrize(
    ("case", "renames"),
    [
        ("kimi-linear-48b", (
            (r"\.block_sparse_moe\.", ".mlp."),
            (r"\.self_attn\.(f_a_proj|f_b_proj|dt_bias|A_log)", r".self_attn.forget_gate.\1"),
        )),
        ("mimo-v2-flash", ((r"attention_sink_bias$", "sinks"),)),
    ],
)  # fmt: skip
def test_names_in_memory(
    case: str,
    renames: tuple[tuple[str, str], ...],
    broken: Broken,
    checkpoint: Broken,
    tmp_path: Path,
) -> None:
    """The same tensors from what transformers 5 calls them (`save_original_format=False`)."""
    source, pre = broken(case), architectures()[case]["golden"]["pre"]

    def edit(named: dict[str, Any]) -> None:
        fuse(named)
        _joined(named)
        for name in [*named]:
            new = name
            for pattern, replacement in renames:
                new = re.sub(pattern, replacement, new)
            named[new] = named.pop(name)

    edit_tensors(source, edit)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    convert(checkpoint(case), a, "bf16", pre, ConversionOptions())
    convert(source, b, "bf16", pre, ConversionOptions())
    assert read_header(a).kv == read_header(b).kv
    found, expected = ({t["name"]: t["sha256"] for t in tensors(path)} for path in (b, a))
    assert found == expected
