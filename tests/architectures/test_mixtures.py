"""Mixtures of 2026: both spellings of experts, what llama.cpp cannot run, and tensors in pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf.container import read_header
from quantkit.model.edits import keep_experts, use_experts
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.architectures.test_architectures import convert
from tests.architectures.test_wrapped import read, rewrite
from tests.checkpoints import architectures, read_safetensors
from tests.damage import edit_config, edit_tensors
from tests.golden import tensors

Broken = Callable[..., Path]
EXPERT = re.compile(r"(.*)\.(mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
PARTS = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1, "down_proj": 2, "w2": 2}


def fuse(tensors: dict[str, Any]) -> None:
    """Experts as transformers 5 keeps them in memory."""
    found: dict[str, dict[int, list[Any]]] = {}
    for name in list(tensors):
        if (m := EXPERT.fullmatch(name)) is not None:
            block, _, expert, part = m.groups()
            place = found.setdefault(block, {}).setdefault(int(expert), [None] * 3)
            place[PARTS[part]] = tensors.pop(name)
    for block, experts in found.items():
        stacks = [
            np.stack(
                [
                    np.frombuffer(experts[i][part][2], np.uint16).reshape(experts[i][part][1])
                    for i in range(len(experts))
                ]
            )
            for part in range(3)
        ]
        for name, x in (("gate_up_proj", np.concatenate(stacks[:2], 1)), ("down_proj", stacks[2])):
            tensors[f"{block}.mlp.experts.{name}"] = ("BF16", list(x.shape), x.tobytes())


FUSED = (
    "glm5 glm53-flash deepseek-v32 minimax-m3 omni ling3-flash laguna mellum maple hy3 dots3-note "
    "mimo-v25 glm45v sarvam k2-horizon-mova"
)


@pytest.mark.parametrize("case", FUSED.split())
def test_fused_experts(case: str, broken: Broken, checkpoint: Broken, tmp_path: Path) -> None:
    """The same file from either spelling, with and without `language_model.` in the names."""
    source, pre = broken(case), architectures()[case]["golden"]["pre"]
    edit_tensors(source, fuse)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    convert(checkpoint(case), a, "bf16", pre, ConversionOptions())
    convert(source, b, "bf16", pre, ConversionOptions())
    assert a.read_bytes() == b.read_bytes()


def test_mimo_as_transformers_saves_it(broken: Broken, checkpoint: Broken, tmp_path: Path) -> None:
    """The same file from config.json as transformers 5 writes it, at which llama.cpp's stops."""
    case = "mimo-v2-flash-trunk"
    source, pre = broken(case), architectures()[case]["golden"]["pre"]
    edit_config(
        source,
        **dict.fromkeys(("hybrid_layer_pattern", "moe_layer_freq", "topk_method")),
        **dict.fromkeys(("add_swa_attention_sink_bias", "add_full_attention_sink_bias")),
        **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "swa_num_attention_heads")),
        **dict.fromkeys(("swa_num_key_value_heads", "sliding_window_size", "layernorm_epsilon")),
        **dict.fromkeys(("rope_theta", "swa_rope_theta", "partial_rotary_factor")),
        layer_types=["full_attention", "sliding_attention"],
        mlp_layer_types=["dense", "sparse"],
        rope_parameters={
            kind: {"partial_rotary_factor": 0.334, "rope_theta": theta, "rope_type": "default"}
            for kind, theta in (("full_attention", 5e6), ("sliding_attention", 1e4))
        },
    )
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    convert(checkpoint(case), a, "bf16", pre, ConversionOptions())
    convert(source, b, "bf16", pre, ConversionOptions())
    assert a.read_bytes() == b.read_bytes()


RESPELLED = {
    "kimi-linear": ((r"(layers\.0)\.mlp\.", r"\1.block_sparse_moe."),),
    "hy4": (
        (r"model\.hc_head\.", "model.hc_pre.hc_head."),
        (r"(hc_(attn|mlp)_layer)\.hc_pre\.", r"hc_pre.\1."),
        (r"(layers\.\d\.mlp\.(shared_experts\.)?)gate_proj", r"\1linear_gate"),
    ),
}


@pytest.mark.parametrize("case", RESPELLED)
def test_names_as_transformers_saves_them(
    case: str, broken: Broken, checkpoint: Broken, tmp_path: Path
) -> None:
    """The same tensors from names that transformers 5 gives them, at which llama.cpp's stops."""
    source, pre = broken(case), architectures()[case]["golden"]["pre"]

    def edit(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            new = name
            for pattern, replacement in RESPELLED[case]:
                new = re.sub(pattern, replacement, new)
            tensors[new] = tensors.pop(name)
        assert not tensors.keys() <= set(as_released)

    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    as_released = read_safetensors(source / "model.safetensors")
    edit_tensors(source, edit)
    convert(checkpoint(case), a, "bf16", pre, ConversionOptions())
    convert(source, b, "bf16", pre, ConversionOptions())
    found, expected = ({t["name"]: t["sha256"] for t in tensors(path)} for path in (b, a))
    assert found == expected


def test_granite_hybrid_as_transformers_saves_it(
    broken: Broken, checkpoint: Broken, tmp_path: Path
) -> None:
    """llama.cpp's converter makes a file of such layer types that does not load."""
    source = broken("granitehybrid")
    types = ["linear_attention", "full_attention"] * 2
    edit_config(source, layer_types=types)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path, where in ((a, checkpoint("granitehybrid")), (b, source)):
        convert(where, path, "bf16", "qwen2", ConversionOptions())
    assert a.read_bytes() == b.read_bytes()


def test_experts_in_fp8_where_llama_cpp_stops(checkpoint: Broken, tmp_path: Path) -> None:
    path = tmp_path / "v4.gguf"
    convert(checkpoint("deepseek-v4-fp8-experts"), path, "bf16", "deepseek-v3", ConversionOptions())
    kinds = {t.name: t.ggml_type for t in read_header(path).tensors if "_exps" in t.name}
    assert len(kinds) == 12
    assert set(kinds.values()) == {8}  # Q8_0


def test_experts_that_a_table_names_stay(checkpoint: Broken) -> None:
    model = read(checkpoint("deepseek-v4"), pre="deepseek-v3")
    for change in (lambda: keep_experts(model, (0, 1)), lambda: use_experts(model, 1)):
        with pytest.raises(errors.RecipeError, match=r"tid2eid.*lists them, token by token"):
            change()


@pytest.mark.parametrize("expert", [-1, 4, 1 << 40])
def test_a_table_that_names_an_expert_that_is_not_there(
    broken: Broken, tmp_path: Path, expert: int
) -> None:
    """llama.cpp ends at it, with the first text that has the token."""
    source, out = broken("deepseek-v4"), tmp_path / "out.gguf"
    name = "layers.0.ffn.gate.tid2eid"

    def edit(tensors: dict[str, Any]) -> None:
        kind, shape, data = tensors[name]
        assert kind == "I64"
        table = np.frombuffer(data, np.int64).reshape(shape).copy()
        table[7, 1] = expert
        tensors[name] = kind, shape, table.tobytes()

    edit_tensors(source, edit)
    with pytest.raises(errors.CorruptFile, match=rf"{name}, row 7: {expert} is not one of 0 to 3;"):
        convert(source, out, "bf16", "deepseek-v3", ConversionOptions())
    assert not out.exists()


def test_predicting_layers_that_are_not_converted(checkpoint: Broken) -> None:
    files = CheckpointFiles.local(checkpoint("deepseek-v3"))
    with pytest.raises(errors.ConfigError, match="further tokens are not converted"):
        from_checkpoint(files, pre="deepseek-v3", options=ConversionOptions(mtp="only"))


def test_half_of_a_pair_ahead(broken: Broken) -> None:
    source = broken("deepseek-v4-mtp")
    edit_tensors(source, lambda t: t.pop("mtp.0.h_proj.weight") and t.pop("mtp.0.h_proj.scale"))
    with pytest.raises(errors.TensorMissing, match=r"mtp\.0\.h_proj\.weight"):
        from_checkpoint(
            CheckpointFiles.local(source),
            pre="deepseek-v3",
            options=ConversionOptions(mtp="only"),
        )


@pytest.mark.parametrize(
    ("lost", "named"),
    [("layers.1.mlp_res_norm", "layers.1.mlp_res_norm"), ("output_attn_res_proj", "res_proj")],
)
def test_half_of_a_product(lost: str, named: str, broken: Broken) -> None:
    source = broken("kimi-k3")

    def lose(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if lost in name]:
            tensors.pop(name)

    edit_tensors(source, lose)
    with pytest.raises(errors.TensorMissing, match=f"{named}.* is not in the checkpoint; .* needs"):
        read(source, pre="kimi-k2")


def test_a_product_of_two_lengths(broken: Broken) -> None:
    source = broken("kimi-k3")

    def shorten(tensors: dict[str, Any]) -> None:
        name = "language_model.model.output_attn_res_norm.weight"
        tensors[name] = ("BF16", [128], tensors[name][2][:256])

    edit_tensors(source, shorten)
    with pytest.raises(errors.TensorShape, match=r"shape \[128\] found; it is multiplied by"):
        read(source, pre="kimi-k2")


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("glm52", {"indexer_types": ["full"]}, "must say full or shared for each of 3 layers"),
        ("glm52", {"indexer_types": ["full", "some", "full"]}, "must say full or shared"),
        ("glm5", {"partial_rotary_factor": 0.5}, "runs glm-dsa with 1.0"),
        ("glm53-flash", {"layer_types": None}, "'layer_types' must name each of 3 layers"),
        ("minimax-m3", {"moe_layer_freq": [0, 1, 0, 1]}, "must follow those without"),
        ("minimax-m3", {"moe_layer_freq": [0, 1]}, "must tell of each of the layers"),
        ("deepseek-v4", {"compress_ratios": [0, 4, 16, 4]}, "must be 0, 4 or 128"),
        ("kimi-k3", {"hidden_act": "silu"}, "needs 'situ'"),
        ("kimi-linear-48b", {"num_expert_group": 2}, "needs 1"),
    ],
)
def test_what_llama_cpp_does_not_run(
    case: str, changes: dict[str, Any], words: str, broken: Broken
) -> None:
    def change(config: dict[str, Any]) -> dict[str, Any]:
        (config.get("text_config") or config).update(changes)
        return config

    with pytest.raises(errors.QuantkitError, match=words):
        read(rewrite(broken(case), change))


def test_indexers_are_counted_as_transformers_counts(checkpoint: Broken) -> None:
    """Layer 0, and every second from there: as `indexer_types` of the other case lists them."""
    models = [read(checkpoint(case), pre="glm4") for case in ("glm52", "glm52-freq")]
    key = "glm-dsa.attention.indexer.types"
    listed, counted = (next(i.value for i in m.kv if i.key == key) for m in models)
    assert listed == counted == [True, False, True]


def test_mistral_4_without_its_images(checkpoint: Broken) -> None:
    """The text part alone, which llama.cpp does not know by its name: the same model."""
    alone, whole = (read(checkpoint(case), "tekken") for case in ("mistral4-text", "mistral4"))
    assert {t.name: (t.shape, t.stored) for t in alone.tensors} == {
        t.name: (t.shape, t.stored) for t in whole.tensors
    }
    assert {i.key: i.value for i in alone.kv} == {i.key: i.value for i in whole.kv}


def test_tokens_that_were_never_trained_are_never_written(broken: Broken, tmp_path: Path) -> None:
    """As llama.cpp's converter finds them: those before the added ones do not count."""
    source = broken("minimax-m1")
    plain = len(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"])

    def zero(tensors: dict[str, Any]) -> None:
        kind, shape, data = tensors["model.embed_tokens.weight"]
        width, rows = len(data) // shape[0], bytearray(data)
        for row in (5, plain + 1, shape[0] - 1):
            rows[row * width : (row + 1) * width] = bytes(width)
        tensors["model.embed_tokens.weight"] = kind, shape, bytes(rows)

    edit_tensors(source, zero)
    convert(source, tmp_path / "m.gguf", "bf16", "minimax-m2", ConversionOptions())
    found = read_header(tmp_path / "m.gguf").get("tokenizer.ggml.suppress_tokens")
    assert list(found) == [plain + 1, 519]


def test_a_row_that_the_config_chooses_keeps_the_keys_of_its_name(broken: Broken) -> None:
    """Gemma 4 unified has suppressed tokens, with inputs of each layer and without."""
    source = broken("gemma4-e2b")
    edit_config(source, architectures=["Gemma4UnifiedForConditionalGeneration"])
    (source / "generation_config.json").write_text('{"suppress_tokens": [5, 9, 77]}')
    model = from_checkpoint(CheckpointFiles.local(source), "bf16")
    assert "per_layer_model_proj.weight" in {t.name for t in model.tensors}
    (found,) = (item for item in model.kv if item.key == "tokenizer.ggml.suppress_tokens")
    assert [*found.value] == [5, 9, 77]
