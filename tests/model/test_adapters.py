"""LoRA adapters against llama.cpp's converter: each key and each tensor, and the file itself; what
llama.cpp computes with them against the merged model."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import api, errors
from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf import tensor_names
from quantkit.gguf.container import align, header_bytes, read_header
from quantkit.gguf.types import type_by_name
from quantkit.jobs import convert
from quantkit.loading import adapted
from quantkit.loading.adapted import ignores_adapter
from quantkit.loading.needs import needs
from quantkit.model.checkpoint_config import read_config
from quantkit.model.open import Reading
from quantkit.model.pairs import placed_pairs
from quantkit.model.peft import Pair
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.tensors import SourceTensor
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
from tests.record.adapters import pairs, recipe
from tests.runtime import Llama

Get = Callable[[str], Path]
Tensors = dict[str, tuple[str, list[int], bytes]]

PROMPT = [3, 141, 59, 265, 358, 97, 93, 238, 46, 264, 338, 327, 95, 28, 84, 197]
WEIGHTS = "adapter_model.safetensors"
# held against what they were made from: in one tensor each, and experts
VERIFIED = ("lora-llama", "lora-mixtral")


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


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
@pytest.mark.parametrize("case", VERIFIED)
def test_a_file_against_its_adapter(
    case: str, outtype: str, checkpoint: Get, tmp_path: Path
) -> None:
    source, path = checkpoint(case), tmp_path / "out.gguf"
    reading = based_on(source / adapters()[case]["golden"]["base"])
    convert(source, path, outtype, reading=reading)
    verdict = api.verify(path, source, reading=reading)
    assert verdict.good
    assert "every tensor is byte for byte what its format gives" in verdict.proven
    data = bytearray(path.read_bytes())
    data[-40:] = bytes(40)  # the end of the last tensor
    path.write_bytes(data)
    assert not api.verify(path, source, reading=reading).good


def test_an_adapter_is_held_against_an_adapter(checkpoint: Get, tmp_path: Path) -> None:
    source, path = checkpoint(VERIFIED[0]), tmp_path / "out.gguf"
    base = source / adapters()[VERIFIED[0]]["golden"]["base"]
    convert(source, path, "f32", reading=based_on(base))
    with pytest.raises(errors.UsageError, match="held against the adapter's own directory"):
        api.verify(path, checkpoint("llama-plain"))
    other = adapters()[VERIFIED[1]]["golden"]["base"]
    verdict = api.verify(path, checkpoint(VERIFIED[1]), reading=based_on(
        checkpoint(VERIFIED[1]) / other))  # fmt: skip
    assert not verdict.good


def test_every_bit_by_default(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("lora-llama-tables")  # bfloat16
    plan = convert(source, tmp_path, reading=based_on(source / "base"))
    (file,) = plan.files
    assert file.path.name == "tiny-adapter-F32-LoRA.gguf"
    assert {t.format for t in file.tensors} == {"F32"}


def test_what_it_is_is_told(checkpoint: Get, tmp_path: Path) -> None:
    source, path = checkpoint("lora-llama-tables"), tmp_path / "lora.gguf"
    convert(source, path, "q8_0", reading=based_on(source / "base"))
    assert "a LoRA adapter; rank 4, alpha 9.5; " in api.inspect(path).as_data()["facts"]["kind"]
    assert api.verify(path).good


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


# families that llama.cpp multiplies with an adapter in part
IN_PART = ["hy4", "glm5", "ling3-flash", "nemotron-puzzle"]


@pytest.mark.slow
@pytest.mark.parametrize("case", IN_PART)
def test_what_llama_cpp_leaves_out_is_known(case: str, broken: Get, tmp_path: Path) -> None:
    """Each kind of matrix in an adapter of its own: what changes nothing is what a note tells."""
    base, whole = broken(case), base_recipe(case)
    names = _taken(base, whole)
    made = recipe(whole, "", rf"^({'|'.join(map(re.escape, names))})$", settings={"lora_alpha": 8})
    adapter = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    plain, lora, one = (tmp_path / f"{name}.gguf" for name in ("plain", "lora", "one"))
    convert(adapter, lora, reading=based_on(base))
    pre = architectures()[case]["golden"]["pre"]
    convert(base, plain, "f32", reading=Reading(pre, ConversionOptions(mtp="without")))
    arch, header = read_header(plain).get("general.architecture"), read_header(lora)
    before = Llama(plain, exact=True).log_probabilities(PROMPT)
    kinds = {tensor_names.parse(t.name.rpartition(".")[0]).role for t in header.tensors}
    idle = set()
    for kind in kinds:
        held = [t for t in header.tensors if f".{kind}.weight.lora_" in t.name]
        infos, data = [], b""
        for t in held:
            start, size = header.data_offset + t.offset, 4 * int(np.prod(t.shape))
            infos.append(replace(t, offset=len(data)))
            data += lora.read_bytes()[start : start + size].ljust(align(size), b"\0")
        one.write_bytes(header_bytes(header.kv, infos) + data)
        if Llama(plain, exact=True, adapter=one).log_probabilities(PROMPT) == before:
            idle.add(kind)
    assert (
        idle == {kind for kind in kinds if ignores_adapter(arch, f"blk.0.{kind}.weight")} != set()
    )


def test_families_that_leave_changes_out_go_by_llama_cpp_s_names() -> None:
    assert set(adapted._PLAIN) <= needs().keys()


REFUSED = errors.TensorUnknown, errors.TensorShape, errors.UnsupportedSource
# each for a way in which rows or columns land elsewhere
ELSEWHERE = [
    "falcon-40b", "falcon-h1", "gpt2", "glm4v", "internlm2", "dbrx", "bamba", "granitehybrid",
    "jamba", "qwen35moe-perexpert", "qwen3next", "nemotron-h-moe", "minimax-m1", "llama4",
    "deepseek-v2", "kimi-linear", "bailingmoe", "phimoe", "starcoder1", "stablelm2-12b", "bert-bge",
    "t5-small",
]  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE)
def test_the_product_of_the_halves_is_the_change(case: str, broken: Get, tmp_path: Path) -> None:
    """`lora_b` times `lora_a` is, bit for bit, what the row maps make of B times A, for every
    matrix in the blocks that is not refused by name."""
    base, whole = broken(case), base_recipe(case)
    names = _taken(base, whole)
    made = recipe(whole, "", rf"^({'|'.join(map(re.escape, names))})$", settings={"lora_alpha": 4})
    adapter = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    convert(adapter, tmp_path / "lora.gguf", reading=based_on(base))
    for path in base.glob("*.safetensors"):
        write_safetensors(path, {n: (d, s, bytes(len(x))) for n, (d, s, x) in
                                 read_safetensors(path).items()}, {"format": "pt"})  # fmt: skip
    if case == "gpt2":
        (base / "turned").touch()
    merged(base, adapter, lambda module, rank: 1.0)
    pre = architectures()[case]["golden"]["pre"]
    reading = Reading(pre, ConversionOptions(mtp="without"))
    convert(base, tmp_path / "base.gguf", "f32", reading=reading)
    halves, changes = _values(tmp_path / "lora.gguf"), _values(tmp_path / "base.gguf")
    stems = {name.rpartition(".")[0] for name in halves}
    assert len(stems) > 4
    for name in stems:
        a, b = (halves[f"{name}.lora_{half}"].astype(np.float64) for half in "ab")
        assert np.allclose(b @ a, changes[name], rtol=1e-5, atol=1e-7), name


def _taken(base: Path, whole: dict[str, Any]) -> list[str]:
    """The matrices of the blocks of which an adapter is made."""
    arch, config = read_config(CheckpointFiles.local(base), "config.json")
    shapes = {t["name"]: t["shape"] for f in whole["weights"].values() for t in f["tensors"]}
    taken = []
    for name, shape in shapes.items():
        if len(shape) != 2 or not re.search(r"\.\d+\..*\.weight$", name):
            continue
        halves = pairs([{"name": name, "shape": shape}], 2, "F32", "GPT2LM" in str(whole["files"]))
        a, b = (
            SourceTensor(t["name"], type_by_name("F32"), tuple(t["shape"]), base, 0) for t in halves
        )
        with contextlib.suppress(*REFUSED):
            with contextlib.suppress(errors.TensorMissing):  # the other experts
                placed_pairs(arch, config, [Pair(name[:-7], a, b, False, 4.0)])
            taken.append(name)
    return taken


@pytest.mark.parametrize(
    ("case", "module", "name"),
    [("bert-bge", "embeddings.word_embeddings", "token_embd"), ("deepseek-v4", "head", "output")],
)
def test_tables_of_tokens_by_other_names(
    case: str, module: str, name: str, checkpoint: Get, tmp_path: Path
) -> None:
    made = recipe(base_recipe(case), "", rf"^{re.escape(module)}\.weight$")
    adapter = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    convert(adapter, tmp_path / "lora.gguf", reading=based_on(checkpoint(case)))
    found = {t.name for t in read_header(tmp_path / "lora.gguf").tensors}
    assert found == {f"{name}.weight.lora_a", f"{name}.weight.lora_b"}


def test_the_template_of_deepseek_ocr(checkpoint: Get, tmp_path: Path) -> None:
    """Which llama.cpp's converter writes as soon as it knows the model."""
    made = recipe(base_recipe("deepseekocr-text"), "", r"self_attn\.o_proj\.weight$")
    adapter = recipes.write(made, GOLDEN / "tokenizers", tmp_path)
    convert(adapter, tmp_path / "lora.gguf", reading=based_on(checkpoint("deepseekocr-text")))
    keys = [item.key for item in read_header(tmp_path / "lora.gguf").kv]
    assert keys[:3] == ["general.architecture", "tokenizer.chat_template", "general.type"]


# what PEFT 0.21 writes, and 0.5 does not
NEWER = dict.fromkeys(
    ("alora_invocation_tokens", "arrow_config", "corda_config", "eva_config", "exclude_modules",
     "kasa_config", "layer_replication", "lora_ga_config", "megatron_config", "monteclora_config",
     "target_parameters", "trainable_token_indices", "use_bdlora", "velora_config")
) | {
    "alpha_pattern": {}, "ensure_weight_tying": False, "loftq_config": {}, "lora_bias": False,
    "peft_version": "0.21.2", "qalora_group_size": 16, "use_dora": False, "use_qalora": False,
    "use_rslora": False, "init_lora_weights": True,
}  # fmt: skip
SAME: dict[str, dict[str, Any]] = {
    "of PEFT 0.21": NEWER,
    "modules by an expression": {"target_modules": r".*\.(q|v)_proj"},
    "every linear module": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    "ranks by name": {"rank_pattern": {r"layers.\d+.self_attn.q_proj": 4}},
    "turned matrices": {"fan_in_fan_out": True},
}


@pytest.mark.parametrize("what", SAME)
def test_what_says_how_it_was_trained(what: str, tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    change_settings(source, **SAME[what])
    convert(source, tmp_path / "out.gguf", reading=based_on(source / "base"))
    expected = adapters()["lora-llama"]["golden"]["outtypes"]["f32"]["file_sha256"]
    assert sha256(tmp_path / "out.gguf") == expected


def test_an_adapter_that_began_as_mica_does(checkpoint: Get, tmp_path: Path) -> None:
    """Its base is what it was."""
    source = from_recipe("lora-llama", tmp_path)
    change_settings(source, init_lora_weights="mica", velora_config=None, monteclora_config=None)
    convert(source, tmp_path / "out.gguf", reading=based_on(source / "base"))
    expected = adapters()["lora-llama"]["golden"]["outtypes"]["f32"]["file_sha256"]
    assert sha256(tmp_path / "out.gguf") == expected


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


def change_settings(source: Path, **changes: Any) -> None:
    """Change keys of an adapter's config; `...` takes one out."""
    path = source / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def test_the_base_that_it_names(checkpoint: Get, tmp_path: Path) -> None:
    source = from_recipe("lora-llama", tmp_path)
    change_settings(source, base_model_name_or_path=str(source / "base"))
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
