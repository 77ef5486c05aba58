"""Configs, tensors and vocabularies that make no model: a named error in one line, and nothing left
behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.jobs import Run, convert, quantize
from quantkit.model.open import Reading
from tests.damage import edit_config, edit_tensors, fails
from tests.told import Told

Broken = Callable[..., Path]


def test_unsupported_architecture(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_config(source, architectures=["MixtralForSequenceClassification"])
    fails(
        errors.UnsupportedArchitecture,
        "'MixtralForSequenceClassification' & nearest: Mixtral & inspect --architectures",
        source,
        tmp_path / "out",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # of a class that is not known: others have defaults
        (
            {"num_attention_heads": None, "model_type": "merged"},
            "'num_attention_heads' is missing",
        ),
        ({"num_attention_heads": "four"}, "'num_attention_heads' must be uint32, not 'four'"),
        ({"num_attention_heads": 0}, "no heads"),
        (
            {"num_experts_per_tok": None, "model_type": "merged"},
            "'num_experts_per_tok' is missing",
        ),
        ({"num_experts_per_tok": 5}, "5 experts are used of 4"),
        ({"num_local_experts": 0}, "no experts"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu' & 'silu'"),
        ({"head_dim": 63}, "63 channels cannot be rotated"),
        ({"rope_theta": "many"}, "must be float32"),
        ({"rope_scaling": {"type": "spiral"}}, "'spiral'"),
        (
            {"rope_scaling": {"type": "linear", "factor": "two"}},
            "'rope.scaling.factor' must be float32",
        ),
        ({"architectures": []}, "'architectures'"),
    ],
)
def test_config_values(changes: dict[str, Any], words: str, broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_config(source, **changes)
    fails(errors.ConfigError, f"config.json & {words}", source, tmp_path / "out")


@pytest.mark.parametrize("case", ["mixtral-4x", "mixtral-4x-tf5fused"])
def test_tensor_missing(case: str, broken: Broken, tmp_path: Path) -> None:
    source = broken(case)
    gone: list[str] = []

    def drop(tensors: dict[str, Any]) -> None:
        gone.append(next(n for n in tensors if "layers.1" in n and "experts" in n))
        del tensors[gone[0]]

    edit_tensors(source, drop)
    fails(errors.TensorMissing, f"{gone[0]} & 2 layers and 4 experts", source, tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_the_embedding(tied: bool, broken: Broken, tmp_path: Path) -> None:
    """llama.cpp takes the embedding, whatever the config says; where it says otherwise, that is
    told."""
    source, told = broken(), Told()
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    edit_config(source, tie_word_embeddings=tied)
    plan = quantize(source, ["Q4_K_M"], tmp_path / "out", run=Run(progress=told))
    assert plan.outputs[0].by_name["token_embd.weight"].format == "Q6_K"
    assert any("no lm_head.weight is there" in note for note in told.notes) != tied


def test_a_head_that_llama_cpp_asks_for(broken: Broken, tmp_path: Path) -> None:
    source = broken("minimax-m2")
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    fails(errors.TensorMissing, "lm_head.weight", source, tmp_path / "out")


def test_tensor_of_the_wrong_shape(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    name = "model.layers.0.self_attn.k_proj.weight"

    def shrink(tensors: dict[str, Any]) -> None:
        dtype, (rows, n), data = tensors[name]
        tensors[name] = (dtype, [rows // 2, n], data[: len(data) // 2])

    edit_tensors(source, shrink)
    fails(
        errors.TensorShape,
        f"{name} & [64, 256] found & [128, 256] expected",
        source,
        tmp_path / "out",
    )


def test_tensor_that_has_no_place(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_tensors(
        source,
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": ("F32", [1], b"\0" * 4)}),
    )
    fails(errors.TensorUnknown, "q_norm.weight & MixtralForCausalLM", source, tmp_path / "out")


def test_more_experts_or_layers_than_the_config_says(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_config(source, num_hidden_layers=1)
    fails(errors.TensorUnknown, "layer 1 & num_hidden_layers 1", source, tmp_path / "out")


def test_both_spellings_at_once(broken: Broken, tmp_path: Path) -> None:
    source = broken()

    def add(tensors: dict[str, Any]) -> None:
        down = b"".join(
            tensors[f"model.layers.0.block_sparse_moe.experts.{i}.w2.weight"][2] for i in range(4)
        )
        tensors["model.layers.0.mlp.experts.down_proj"] = ("BF16", [4, 256, 256], down)

    edit_tensors(source, add)
    fails(errors.TensorUnknown, "second spelling & blk.0.ffn_down_exps", source, tmp_path / "out")


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("model.layers.1.block_sparse_moe.experts.2.w3.weight", 200),
        ("model.layers.0.self_attn.q_proj.weight", 37),  # its rows are permuted on the way
        ("model.norm.weight", 7),
        ("lm_head.weight", 511),
    ],
)
def test_a_weight_that_is_not_finite(
    name: str, row: int, bits: int, broken: Broken, tmp_path: Path
) -> None:
    source = broken()

    def poison(tensors: dict[str, Any]) -> None:
        dtype, shape, data = tensors[name]
        x = np.frombuffer(data, np.uint16).copy()
        x[row * (shape[1] if len(shape) == 2 else 1)] = bits
        tensors[name] = (dtype, shape, x.tobytes())

    edit_tensors(source, poison)
    fails(errors.NonFiniteWeight, f"{name} & row {row};", source, tmp_path / "out")


def test_tokenizer_missing(broken: Broken, tmp_path: Path) -> None:
    source = broken("llama-dense")
    (source / "tokenizer.json").unlink()
    fails(errors.TokenizerError, "neither tokenizer.model nor", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("case", "lender"),
    [
        ("openelm", "meta-llama/Llama-2-7b-hf"),
        ("mamba-hf", "EleutherAI/gpt-neox-20b"),
        ("mamba2", "EleutherAI/gpt-neox-20b"),
    ],
)
def test_tokenizer_that_another_model_lends(
    case: str, lender: str, broken: Broken, tmp_path: Path
) -> None:
    source = broken(case)
    for path in source.glob("tokenizer*"):
        path.unlink()
    words = f"neither tokenizer.model nor & use that of {lender}: copy tokenizer*"
    fails(errors.TokenizerError, words, source, tmp_path / "out")


def test_tokenizer_model_that_is_junk(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "tokenizer.model").write_bytes(b"\xff" * 100)
    fails(errors.TokenizerError, "tokenizer.model & SentencePiece", source, tmp_path / "out")


def test_front_matter_that_is_not_yaml(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "README.md").write_text("---\nlicense: [mit\n---\n")
    fails(errors.CorruptFile, "README.md", source, tmp_path / "out")


def test_unknown_pre_tokenizer_is_named_on_the_command_line(broken: Broken, tmp_path: Path) -> None:
    source = broken("llama-dense")
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace(r"\\p{N}{1,3}", r"\\p{N}{1,7}"))
    fails(errors.TokenizerError, "--pre", source, tmp_path / "out")
    plan = convert(source, tmp_path / "m.gguf", reading=Reading(pre="llama-bpe"))
    assert plan.files[0].path.exists()
