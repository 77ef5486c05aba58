"""LoRA adapters against llama.cpp's converter: each key and each tensor, and the file itself; what
llama.cpp computes with them against the merged model; and what is refused, by name."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.gguf.container import read_header
from quantkit.jobs import Run, convert
from quantkit.model.open import Reading
from tests import golden
from tests.checkpoints import (
    DTYPES,
    GOLDEN,
    adapters,
    architectures,
    from_recipe,
    read_safetensors,
    write_safetensors,
)
from tests.conftest import sha256
from tests.fake_hub import Hub
from tests.record import recipes
from tests.record.adapters import recipe
from tests.runtime import Llama

Get = Callable[[str], Path]
Tensors = dict[str, tuple[str, list[int], bytes]]

PROMPT = [3, 141, 59, 265, 358, 97, 93, 238, 46, 264, 338, 327, 95, 28, 84, 197]
WEIGHTS = "adapter_model.safetensors"


def base_recipe(case: str) -> dict[str, Any]:
    if case in architectures():
        found: dict[str, Any] = architectures()[case]["recipe"]
        return found
    found = json.loads((GOLDEN / "recipes" / f"{case}.json").read_text())
    return found


def based_on(directory: Path) -> Reading:
    return Reading(base=str(directory))


def cases() -> list[tuple[str, str]]:
    return [(case, kind) for case, d in adapters().items() for kind in d["golden"]["outtypes"]]


@pytest.mark.parametrize(("case", "outtype"), cases())
def test_same_file_as_llama_cpp(case: str, outtype: str, checkpoint: Get, tmp_path: Path) -> None:
    source, theirs = checkpoint(case), adapters()[case]["golden"]
    path = tmp_path / "out.gguf"
    convert(source, path, outtype, reading=based_on(source / theirs["base"]))
    golden.assert_same(path, theirs["outtypes"][outtype])
    assert sha256(path) == theirs["outtypes"][outtype]["file_sha256"]


def test_every_bit_by_default(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("lora-llama-tables")  # bfloat16
    plan = convert(source, tmp_path, reading=based_on(source / "base"))
    (file,) = plan.files
    assert file.path.name == "tiny-adapter-F32-LoRA.gguf"
    assert {t.format for t in file.tensors} == {"F32"}


def merged(base: Path, adapter: Path, factor: Callable[[str, int], float]) -> None:
    """Add the changes to the base's weights, in float64."""
    halves = {
        name.removeprefix("base_model.model."): np.frombuffer(data, DTYPES[dtype])
        .astype(np.float64)
        .reshape(shape)
        for name, (dtype, shape, data) in read_safetensors(adapter / WEIGHTS).items()
    }
    tensors: Tensors = {}
    for name, (dtype, shape, data) in read_safetensors(base / "model.safetensors").items():
        weights = np.frombuffer(data, DTYPES[dtype]).astype(np.float64).reshape(shape)
        module = name.removesuffix(".weight")
        for table, ends in ((False, ".lora_{}.weight"), (True, ".lora_embedding_{}")):
            a, b = (halves.get(module + ends.format(half)) for half in "AB")
            if a is not None and b is not None:
                change = b @ a * factor(module, len(a))
                turned = table or (base / "turned").exists()
                weights = weights + (change.T if turned else change)
        tensors[name] = ("F32", shape, weights.astype(np.float32).tobytes())
    write_safetensors(base / "model.safetensors", tensors, {"format": "pt"})


def _plain(module: str, rank: int) -> float:
    return 2.0  # alpha is twice the rank


def _by_root(module: str, rank: int) -> float:
    return float(2 * rank / np.sqrt(rank))


def _by_name(module: str, rank: int) -> float:
    alpha = 3.0 if module.endswith("q_proj") else 7.3 if module.endswith("w1") else 2.0 * rank
    return alpha / rank


PROJECTIONS = r"(_proj|w[123])\.weight$"
# Case of the base, its matrices, more of the adapter's config, the factor of a change, and the
# bound on the largest difference of a log-probability: 1.9e-6 was the most where all is float32,
# 7.5e-4 and 4.8e-5 where ggml takes GELU from a table of 16-bit floats
MODELS: list[tuple[str, str, dict[str, Any], Callable[[str, int], float], float]] = [
    ("llama-dense", PROJECTIONS, {}, _plain, 1e-5),
    ("llama-dense", r"(q_proj|embed_tokens|lm_head)\.weight$", {}, _plain, 1e-5),
    ("llama-dense", PROJECTIONS, {"use_rslora": True}, _by_root, 1e-5),
    ("mixtral-4x", PROJECTIONS, {}, _plain, 1e-5),
    ("mixtral-4x", PROJECTIONS, {"alpha_pattern": {"q_proj": 3, "w1": 7.3}}, _by_name, 1e-5),
    ("qwen3moe", PROJECTIONS, {}, _plain, 1e-5),
    ("phi3", PROJECTIONS, {}, _plain, 1e-5),
    ("falcon-h1", PROJECTIONS, {}, _plain, 1e-5),  # llama.cpp's own converter stops
    ("gpt2-ft", r"c_\w+\.weight$", {}, _plain, 1e-3),  # it makes `[in, out]` of what is not
    ("gemma2-dense", PROJECTIONS, {}, _plain, 5e-3),
]


@pytest.mark.parametrize(("case", "pattern", "settings", "factor", "bound"), MODELS)
def test_llama_cpp_computes_what_the_merged_model_gives(
    case: str,
    pattern: str,
    settings: dict[str, Any],
    factor: Callable[[str, int], float],
    bound: float,
    broken: Get,
    tmp_path: Path,
) -> None:
    made, base = recipe(base_recipe(case), "", pattern, settings=settings), broken(case)
    adapter = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    reading = Reading(architectures()[case]["golden"]["pre"] if case in architectures() else None)
    plain, whole, lora = (tmp_path / f"{name}.gguf" for name in ("plain", "whole", "lora"))
    convert(base, plain, "f32", reading=reading)
    convert(adapter, lora, reading=based_on(base))
    if case.startswith("gpt2"):
        (base / "turned").touch()
    merged(base, adapter, factor)
    convert(base, whole, "f32", reading=reading)
    before, expected, found = (
        Llama(path, exact=True, adapter=beside).log_probabilities(PROMPT)
        for path, beside in ((plain, None), (whole, None), (plain, lora))
    )
    assert max(abs(found[i] - p) for i, p in expected.items()) < bound
    assert max(abs(before[i] - p) for i, p in expected.items()) > 100 * bound or bound > 1e-5


def test_columns_in_another_order(broken: Get, tmp_path: Path) -> None:
    """What a row map does to columns is done to those of A: B times A is the change as the row map
    has it."""
    base = broken("qwen35moe-perexpert")
    made = recipe(base_recipe("qwen35moe-perexpert"), "", r"layers\.0\.linear_attn\.out_proj")
    adapter = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    convert(adapter, tmp_path / "lora.gguf", reading=based_on(base))
    halves = _values(tmp_path / "lora.gguf")
    name = "blk.0.ssm_out.weight"
    change = halves[f"{name}.lora_b"] @ halves[f"{name}.lora_a"]
    tensors = read_safetensors(base / "model.safetensors")
    key = next(k for k in tensors if k.endswith("layers.0.linear_attn.out_proj.weight"))
    a, b = (
        np.frombuffer(data, np.float32).reshape(shape)
        for _, (_, shape, data) in sorted(read_safetensors(adapter / WEIGHTS).items())
    )
    tensors[key] = ("F32", tensors[key][1], (b @ a).tobytes())
    write_safetensors(base / "model.safetensors", tensors, {"format": "pt"})
    pre = architectures()["qwen35moe-perexpert"]["golden"]["pre"]
    convert(base, tmp_path / "base.gguf", "f32", reading=Reading(pre))
    assert np.abs(_values(tmp_path / "base.gguf")[name] - change).max() < 1e-6
    assert np.abs(b @ a - change).max() > 1e-3


def _values(path: Path) -> dict[str, np.ndarray]:
    from gguf import GGUFReader

    return {t.name: np.array(t.data) for t in GGUFReader(path).tensors}


def test_the_order_of_the_file(checkpoint: Get, tmp_path: Path) -> None:
    """Tensors come as the bytes lie, whatever the header's order."""
    source = from_recipe("lora-llama", tmp_path)
    tensors = read_safetensors(source / WEIGHTS)
    backwards = dict(reversed(tensors.items()))
    write_safetensors(source / WEIGHTS, backwards)
    convert(source, tmp_path / "out.gguf", reading=based_on(source / "base"))
    names = [t.name for t in read_header(tmp_path / "out.gguf").tensors]
    assert names[0].startswith("blk.1")
    assert names[-1].startswith("blk.0")


# --- where the base is ------------------------------------------------------------------------


def test_the_base_that_it_names(checkpoint: Get, tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    _settings(source, base_model_name_or_path=str(source / "base"))
    convert(source, tmp_path / "out.gguf")
    expected = adapters()["lora-llama"]["golden"]["outtypes"]["f32"]["file_sha256"]
    assert sha256(tmp_path / "out.gguf") == expected


def test_a_base_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Its config is read, and nothing else."""
    source = from_recipe("lora-llama", tmp_path)
    hub.publish("org/base", source / "base")
    convert(source, tmp_path / "out.gguf")
    expected = adapters()["lora-llama"]["golden"]["outtypes"]["f32"]["file_sha256"]
    assert sha256(tmp_path / "out.gguf") == expected


def test_an_adapter_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    hub.publish("org/base", source / "base")
    hub.publish("org/tiny-adapter", source)
    convert("hf://org/tiny-adapter", tmp_path / "out.gguf")
    expected = adapters()["lora-llama"]["golden"]["outtypes"]["f32"]["file_sha256"]
    assert sha256(tmp_path / "out.gguf") == expected


# --- what is refused ----------------------------------------------------------------------------


def _settings(source: Path, **changes: Any) -> None:
    path = source / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


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


U, C = errors.UnsupportedSource, errors.ConfigError
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"peft_type": "IA3"}, U, "'peft_type' is 'IA3' & merge"),
    ({"use_dora": True}, U, "'use_dora' & DoRA & merge_and_unload"),
    ({"lora_bias": True}, U, "'lora_bias' & biases"),
    ({"layer_replication": [[0, 2]]}, U, "'layer_replication'"),
    ({"trainable_token_indices": [1]}, U, "'trainable_token_indices'"),
    ({"target_parameters": ["mlp.experts.down_proj"]}, U, "'target_parameters'"),
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
    _settings(source, **changes)
    _says(kind, words, source)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
ONE = ("F32", [1], bytes(4))
BESIDE = [
    (f"{Q}.lora_magnitude_vector", "of DoRA"),
    (f"{Q}.lora_B.bias", "save the adapter with save_pretrained"),
    (f"{Q}.lora_A.default.weight", "save the adapter with save_pretrained"),
    (f"{Q}.bias", "a bias that was trained"),
    (f"{Q}.lora_E", "other than LoRA"),
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
     "parameters that are no module"),
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
    _settings(source, base_model_name_or_path=None)
    with pytest.raises(C, match="'base_model_name_or_path' is missing; say with --base"):
        convert(source, tmp_path / "x.gguf")


def test_a_base_that_is_not_here(tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    _settings(source, base_model_name_or_path="/home/me/llama")
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
