"""Names of tensors as tools leave them, and layers that config and weights disagree on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.errors import TensorMissing, TensorUnknown
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.model import Model
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.checkpoints import read_safetensors, write_safetensors
from tests.damage import edit_config, edit_tensors

Broken = Callable[..., Path]
CASES = ("qwen3moe", "gemma3-dense", "llama-dense", "mixtral-4x", "glm4moe", "qwen3next")


def rename(source: Path, change: Callable[[str], str]) -> None:
    for path in source.glob("*.safetensors"):
        tensors = read_safetensors(path)
        write_safetensors(path, {change(name): t for name, t in tensors.items()})
    (source / "model.safetensors.index.json").unlink(missing_ok=True)


def converted(source: Path, mtp: str = "with") -> Model:
    return from_checkpoint(CheckpointFiles.local(source), "bf16", None, ConversionOptions(mtp))


def shapes(model: Model) -> dict[str, Any]:
    return {t.name: (t.shape, t.stored) for t in model.tensors}


WRAPPED: dict[str, Callable[[str], str]] = {
    "compiled": lambda n: f"_orig_mod.{n}",
    "compiled inside": lambda n: n.replace("model.", "model._orig_mod.", 1),
    "data parallel": lambda n: f"module.{n}",
    "both": lambda n: f"module._orig_mod.{n}",
    "fsdp": lambda n: n.replace("layers.", "_fsdp_wrapped_module.layers."),
    "mlx": lambda n: f"language_model.{n}",
    "transformers 5": lambda n: n.replace("model.", "model.language_model.", 1),
    "no model.": lambda n: n.removeprefix("model."),
    "twice": lambda n: f"model.{n}",
    "inside another": lambda n: f"llm.{n}",
    "inside another, from its inside": lambda n: f"llm.{n.removeprefix('model.')}",
    "as GPT-2": lambda n: f"transformer.{n.removeprefix('model.')}",
    "with its outside": lambda n: f"transformer.{n}",
    "each list": lambda n: n.replace("layers.", "layers.module."),
    "each layer": lambda n: re.sub(r"(layers\.\d+\.)", r"\1module.", n),
    "text": lambda n: f"text_model.{n}",
    "fabric": lambda n: f"_forward_module.{n}",
    "many": lambda n: f"module.llm.transformer.model.{n}",
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("case", CASES)
def test_prefixes(case: str, how: str, broken: Broken, checkpoint: Callable[[str], Path]) -> None:
    source = broken(case)
    rename(source, WRAPPED[how])
    wanted, found = converted(checkpoint(case)), converted(source)
    assert shapes(found) == shapes(wanted)
    keys = {item.key: item.raw for item in found.kv}
    assert {k: v for k, v in keys.items() if not k.startswith("general.")} == {
        i.key: i.raw for i in wanted.kv if not i.key.startswith("general.")
    }


@pytest.mark.parametrize("prefix", ["", "own.", "model.own.", "llm.own.", "llm.", "module."])
@pytest.mark.parametrize(
    ("case", "own"),
    [("gpt2-ft", "transformer."), ("falcon-11b", "transformer."), ("mamba-hf", "backbone.")],
)
def test_families_whose_own_names_begin_as_wrappers_do(
    case: str, own: str, prefix: str, broken: Broken, checkpoint: Callable[[str], Path]
) -> None:
    source = broken(case)
    rename(source, lambda name: prefix.replace("own.", own) + name.removeprefix(own))
    assert shapes(converted(source)) == shapes(converted(checkpoint(case)))


@pytest.mark.parametrize(
    "prefix", ["", "language_model.", "model.", "_orig_mod.", "module.", "llm.", "transformer."]
)
def test_what_is_dropped_is_dropped_under_any_prefix(prefix: str, broken: Broken) -> None:
    """Gemma 2's head, frequencies, the vision part."""
    source = broken("gemma2-dense")
    path = source / "model.safetensors"
    tensors = read_safetensors(path)
    extra = (
        "lm_head.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.encoder.layers.0.weight",
    )
    for name in extra:
        tensors[name] = tensors["model.embed_tokens.weight"]
    write_safetensors(path, {prefix + name: t for name, t in tensors.items()})
    names = {t.name for t in converted(source).tensors}
    assert "output.weight" not in names
    assert "token_embd.weight" in names


def test_one_tensor_under_two_names_is_refused(broken: Broken) -> None:
    source = broken("qwen3moe")
    path = source / "model.safetensors"
    tensors = read_safetensors(path)
    tensors["norm.weight"] = tensors["model.norm.weight"]
    write_safetensors(path, tensors)
    with pytest.raises(TensorUnknown, match="second spelling"):
        converted(source)


@pytest.mark.parametrize("name", ["Qwen3Model", "Qwen3ForCausalLM"])
def test_the_inner_model_has_no_head(name: str, broken: Broken) -> None:
    source = broken("qwen3-embedding-st")
    edit_config(source, architectures=[name], tie_word_embeddings=False)
    assert "output.weight" not in {t.name for t in converted(source).tensors}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("count", [0, 1])
def test_the_inner_model_of_qwen35(prefix: str, count: int, broken: Broken) -> None:
    """It has no head, and none of the layers that its config may count: as llama.cpp's converter
    writes it."""
    source = broken("qwen35-dense")
    names = {t.name: t.shape for t in converted(source, "without").tensors}

    def inner(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.startswith(("mtp.", "lm_head."))]:
            del tensors[name]

    edit_tensors(source, inner)
    rename(source, lambda n: prefix + n.removeprefix("model."))
    changes = {"mtp_num_hidden_layers": count, "tie_word_embeddings": False}
    edit_config(source, architectures=["Qwen3_5TextModel"], **changes)
    model = converted(source)
    assert {t.name: t.shape for t in model.tensors} | {"output.weight": ()} == names | {
        "output.weight": ()
    }


# --- layers that predict further tokens ---------------------------------------------------------

COUNTS = {"qwen3next": "mtp_num_hidden_layers", "qwen35moe": "mtp_num_hidden_layers",
          "glm4moe": "num_nextn_predict_layers"}  # fmt: skip


def set_count(source: Path, key: str, count: Any) -> None:
    config = json.loads((source / "config.json").read_text())
    config.get("text_config", config)[key] = count
    (source / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("count", [0, 1, 2, None])
@pytest.mark.parametrize("renamed", [False, True])
def test_without_them_whatever_the_config_says(
    case: str, count: int | None, renamed: bool, broken: Broken
) -> None:
    source = broken(case)
    set_count(source, COUNTS[case], count)
    if renamed:
        rename(source, lambda n: n.replace("mtp.", "model.mtp.", 1))
    model = converted(source, "without")
    assert not any("nextn" in t.name for t in model.tensors)
    assert not any(i.key.endswith("nextn_predict_layers") and i.value for i in model.kv)


@pytest.mark.parametrize("case", COUNTS)
def test_a_count_of_none_with_weights_is_told(
    case: str, broken: Broken, checkpoint: Callable[[str], Path]
) -> None:
    source = broken(case)
    set_count(source, COUNTS[case], 0)
    model = converted(source)
    assert shapes(model) == shapes(converted(checkpoint(case)))
    assert any("0 layers that predict further tokens" in note for note in model.notes)


@pytest.mark.parametrize("case", COUNTS)
def test_a_count_of_more_than_there_are(case: str, broken: Broken) -> None:
    source = broken(case)
    set_count(source, COUNTS[case], 3)
    with pytest.raises(TensorMissing, match="it is of one that predicts; --no-mtp leaves those"):
        converted(source)
    assert converted(source, "without").tensors


def test_those_of_a_family_that_never_has_them(broken: Broken) -> None:
    source = broken("deepseek-v3")
    edit_config(source, num_nextn_predict_layers=0)
    assert not any("nextn" in t.name for t in converted(source).tensors)
