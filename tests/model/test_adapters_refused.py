"""LoRA adapters that are refused: each by name, in one line, before anything is written."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.gguf.container import read_header
from quantkit.jobs import Run, convert
from quantkit.model.adapter import adapter_from_files
from quantkit.model.open import Reading
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.architectures.config_fuzz import VALUES, changed, places
from tests.checkpoints import GOLDEN, from_recipe, read_safetensors, write_safetensors
from tests.model.test_adapters import (
    WEIGHTS,
    Tensors,
    base_recipe,
    based_on,
    change_settings,
)
from tests.record import recipes
from tests.record.adapters import recipe

Get = Callable[[str], Path]
U, C = errors.UnsupportedSource, errors.ConfigError


def _says(kind: type[Exception], words: str, source: Path, base: Path | None = None) -> None:
    """A conversion fails in one line with all of `words` (`a & b`), and writes nothing."""
    out = source.parent / "out"
    out.mkdir()
    with pytest.raises(kind) as e:
        convert(source, out / "x.gguf", reading=based_on(base or source / "base"), run=Run())
    message = str(e.value)
    assert all(word in message for word in words.split(" & ")), message
    assert "\n" not in message
    assert not list(out.iterdir())


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"peft_type": "IA3"}, U, "'peft_type' is 'IA3' & merge"),
    ({"use_dora": True}, U, "'use_dora' & DoRA & merge_and_unload"),
    ({"lora_bias": True}, U, "'lora_bias' & biases"),
    ({"layer_replication": [[0, 2]]}, U, "'layer_replication'"),
    ({"trainable_token_indices": [1]}, U, "'trainable_token_indices'"),
    ({"kasa_config": {}, "arrow_config": {"a": 1}}, U, "'arrow_config'"),
    ({"init_lora_weights": "pissa"}, U, "'pissa' & path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": {"a": 1}}, U, "'init_lora_weights'"),
    ({"lora_alpha": ...}, C, "'lora_alpha' is missing"),
    ({"lora_alpha": "16"}, C, "'lora_alpha' must be a number"),
    ({"lora_alpha": True}, C, "'lora_alpha' must be a number"),
    ({"lora_alpha": 0}, C, "'lora_alpha' is 0"),
    ({"lora_alpha": 1e99}, C, "'lora_alpha' is 1e+99"),
    ({"alpha_pattern": [1]}, C, "'alpha_pattern' is no table"),
    ({"alpha_pattern": {"(a+)+$": 1}}, U, "'(a+)+$' & names of modules"),
    ({"alpha_pattern": {"q_proj": None}}, C, "'q_proj' must be a number"),
    ({"alora_invocation_tokens": [-1]}, C, "no list of token ids"),
    ({"alora_invocation_tokens": "x"}, C, "no list of token ids"),
    ({"invocation_string": "<|start|>"}, U, "'invocation_string' & alora_invocation_tokens"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), REFUSED)
def test_configs_that_are_refused(
    changes: dict[str, Any], kind: type[Exception], words: str, tmp_path: Path
) -> None:
    source = from_recipe("lora-llama", tmp_path)
    change_settings(source, **changes)
    _says(kind, words, source)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
ONE = ("F32", [1], bytes(4))
BESIDE = [
    (f"{Q}.lora_magnitude_vector", "of DoRA"),
    (f"{Q}.lora_B.bias", "save the adapter with save_pretrained"),
    (f"{Q}.lora_A.default.weight", "save the adapter with save_pretrained"),
    (f"{Q}.bias", "a bias that was trained"),
    (f"{Q}.lora_E", "other than LoRA"),
    (f"{Q}.lora_velora_embed", "of VeLoRA or MonteCLoRA"),
    ("base_model.model.model.norm.weight", "a norm, which llama.cpp leaves out"),
    ("base_model.model.lm_head.weight", "a whole table of tokens"),
    ("base_model.model.score.weight", "modules_to_save"),
    ("base_model.model.x.base_layer.weight", "modules_to_save"),
]


@pytest.mark.parametrize(("name", "words"), BESIDE)
def test_tensors_that_are_no_pair(name: str, words: str, tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    tensors = read_safetensors(source / WEIGHTS)
    write_safetensors(source / WEIGHTS, {**tensors, name: ONE})
    _says(errors.TensorUnknown, f"{name} is no lora_A or lora_B & {words} & merge_and_unload",
          source)  # fmt: skip


def test_the_layer_below_a_pair_is_the_base_s_own(tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    tensors = read_safetensors(source / WEIGHTS)
    write_safetensors(source / WEIGHTS, {**tensors, f"{Q}.base_layer.weight": ONE})
    convert(source, tmp_path / "out.gguf", reading=based_on(source / "base"))
    assert len(read_header(tmp_path / "out.gguf").tensors) == len(tensors)


def _zeros(*shape: int) -> tuple[str, list[int], bytes]:
    return "F32", list(shape), bytes(4 * int(np.prod(shape)))


X = "base_model.model.model"
CHANGED: list[tuple[Tensors, type[Exception], str]] = [
    ({f"{Q}.lora_A.weight": _zeros(4, 64)}, errors.TensorShape, "lora_B & 4 columns expected"),
    ({f"{Q}.lora_A.weight": _zeros(4, 8, 8)}, errors.TensorShape, "a matrix is expected"),
    ({f"{Q}.lora_A.weight": ("I32", [32, 64], bytes(8192))}, U, "is I32; floats are read"),
    ({f"{X}.layers.0.mlp.what.lora_A.weight": _zeros(4, 64)}, errors.TensorMissing,
     "without its lora_B"),
    ({f"{X}.layers.0.mlp.what.lora_A.weight": _zeros(4, 64),
      f"{X}.layers.0.mlp.what.lora_B.weight": _zeros(64, 4)}, errors.TensorUnknown,
     "mlp.what.lora_A.weight has no place in Llama & another base"),
    ({f"{X}.layers.7.self_attn.q_proj.lora_A.weight": _zeros(4, 64),
      f"{X}.layers.7.self_attn.q_proj.lora_B.weight": _zeros(64, 4)}, errors.TensorUnknown,
     "of layer 7 & num_hidden_layers 2"),
    ({f"{X}.norm.lora_A.weight": _zeros(4, 64), f"{X}.norm.lora_B.weight": _zeros(64, 4)},
     errors.TensorUnknown, "no matrix"),
    ({f"{X}.layers.0.mlp.experts.base_layer.lora_A.weight": _zeros(4, 64),
      f"{X}.layers.0.mlp.experts.base_layer.lora_B.weight": _zeros(64, 4)}, errors.TensorUnknown,
     "has no place in Llama"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "kind", "words"), CHANGED)
def test_pairs_that_are_refused(
    more: Tensors, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    source = from_recipe("lora-llama", tmp_path)
    write_safetensors(source / WEIGHTS, {**read_safetensors(source / WEIGHTS), **more})
    _says(kind, words, source)


def test_of_another_base(checkpoint: Get, tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    config = json.loads((source / "base" / "config.json").read_text())
    config["intermediate_size"] *= 2
    (source / "base" / "config.json").write_text(json.dumps(config))
    _says(errors.TensorShape, "down_proj.lora_A.weight: shape [32, & expected (ffn & another base",
          source)  # fmt: skip


def test_a_base_that_is_no_model(checkpoint: Get, tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    (source / "base" / "config.json").unlink()
    _says(errors.SourceNotFound, "base/config.json: no such file", source)


def test_no_base_at_all(tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    change_settings(source, base_model_name_or_path=None)
    with pytest.raises(C, match="'base_model_name_or_path' is missing; say with --base"):
        convert(source, tmp_path / "x.gguf")


def test_a_base_that_is_not_here(tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    change_settings(source, base_model_name_or_path="/home/me/llama")
    with pytest.raises(errors.SourceNotFound, match=r"its base is /home/me/llama.*--base"):
        convert(source, tmp_path / "x.gguf")


def test_weights_that_are_missing(tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    (source / WEIGHTS).unlink()
    _says(errors.SourceNotFound, "no adapter_model.safetensors and no adapter_model.bin", source)


def test_a_pickle_that_runs_what_it_holds(tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    (source / WEIGHTS).unlink()
    with zipfile.ZipFile(source / "adapter_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch ran'\ntR.")
    _says(errors.CorruptFile, "adapter_model.bin & os.system & not run", source)
    assert not (tmp_path / "ran").exists()


def test_a_part_of_the_experts(tmp_path: Path) -> None:
    source = from_recipe("lora-mixtral", tmp_path)
    tensors = read_safetensors(source / WEIGHTS)
    left = {k: v for k, v in tensors.items() if "layers.0.block_sparse_moe.experts.2.w1" not in k}
    assert len(left) == len(tensors) - 2
    write_safetensors(source / WEIGHTS, left)
    _says(errors.TensorMissing, "only part of blk.0.ffn_gate_exps.weight", source)


def test_kinds_of_experts_that_an_adapter_has_not(tmp_path: Path) -> None:
    """All experts of some of their matrices are enough."""
    source = from_recipe("lora-mixtral", tmp_path)
    tensors = read_safetensors(source / WEIGHTS)
    write_safetensors(source / WEIGHTS, {k: v for k, v in tensors.items() if ".w2." not in k})
    convert(source, tmp_path / "x.gguf", reading=based_on(source / "base"))
    names = {t.name for t in read_header(tmp_path / "x.gguf").tensors}
    assert "blk.0.ffn_up_exps.weight.lora_a" in names
    assert "blk.0.ffn_down_exps.weight.lora_a" not in names


def test_experts_of_several_ranks(tmp_path: Path) -> None:
    source = from_recipe("lora-mixtral", tmp_path)
    tensors = read_safetensors(source / WEIGHTS)
    for name, (dtype, shape, data) in list(tensors.items()):
        if ".layers.0.block_sparse_moe.experts.2.w1." in name:
            half = [n // 2 if n == 4 else n for n in shape]
            tensors[name] = (dtype, half, data[: len(data) // 2])
    write_safetensors(source / WEIGHTS, tensors)
    _says(U, "experts.2.w1.lora_A.weight is of rank 2 & of rank 4", source)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_table_that_is_the_output_too(module: str, broken: Get, tmp_path: Path) -> None:
    made = recipe(base_recipe("llama-dense"), "", rf"{module}\.weight$")
    source = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    config = json.loads((source / "base" / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (source / "base" / "config.json").write_text(json.dumps(config))
    _says(U, f"{module}.lora_ & tie_word_embeddings & merge", source)


@pytest.mark.parametrize("matrix", ["attn.attn_resid", "mlp.mlp_resid"])
def test_a_product_with_a_gain(matrix: str, checkpoint: Get, tmp_path: Path) -> None:
    """llama.cpp adds the change after the gain (`build_lora_mm`)."""
    made = recipe(base_recipe("talkie"), "", rf"{re.escape(matrix)}\.weight$")
    adapter = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    with pytest.raises(errors.UnsupportedSource, match="before it adds a change"):
        convert(adapter, tmp_path / "x.gguf", reading=based_on(checkpoint("talkie")))


def test_what_llama_cpp_leaves_out_is_told(tmp_path: Path) -> None:
    source = from_recipe("lora-deepseek", tmp_path)
    told: list[str] = []

    class Told:
        def tell(self, text: str) -> None:
            told.append(text)

        def update(self, *_: Any) -> None:
            pass

    run = Run(dry=True, progress=Told())  # type: ignore[arg-type]
    convert(source, tmp_path, reading=based_on(source / "base"), run=run)
    assert any("llama.cpp leaves" in text and "deepseek2" in text for text in told), told


def test_options_of_models(tmp_path: Path, checkpoint: Get) -> None:
    source = from_recipe("lora-llama", tmp_path)
    with pytest.raises(errors.UsageError, match="is an adapter"):
        convert(source, tmp_path / "x.gguf", reading=Reading(experts_used=1))
    with pytest.raises(errors.UsageError, match="--base is for an adapter"):
        convert(checkpoint("llama-dense"), tmp_path / "x.gguf", reading=based_on(source))


def test_no_key_of_either_config_ends_in_a_traceback(tmp_path: Path) -> None:
    """Values that do not fit, in the adapter's config and in its base's."""
    source = from_recipe("lora-mixtral-attention", tmp_path)
    change_settings(source, use_rslora=False, alpha_pattern={"q_proj": 3}, rank_pattern={},
              alora_invocation_tokens=[1], init_lora_weights=True, use_dora=False)  # fmt: skip
    refused, tried, said = 0, 0, list[str]()
    for name in ("adapter_config.json", "base/config.json"):
        text = (source / name).read_text()
        for path in places(json.loads(text)):
            for value in VALUES:
                change = changed(json.loads(text), {path: value})
                (source / name).write_text(json.dumps(change))
                tried += 1
                try:
                    adapter_from_files(CheckpointFiles.local(source), source / "base")
                except errors.QuantkitError as e:
                    refused += 1
                    said.append(str(e))
                except Exception as e:
                    raise AssertionError(f"{name} with {path} {value!r}: {e!r}") from e
        (source / name).write_text(text)
    assert 0 < refused < tried
    assert not [text for text in said if "\n" in text]


def test_no_ternary_adapter(tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    with pytest.raises(errors.UsageError, match="of which no tq1_0 is made"):
        convert(source, tmp_path / "x.gguf", "tq1_0", reading=based_on(source / "base"))
    assert not (tmp_path / "x.gguf").exists()
