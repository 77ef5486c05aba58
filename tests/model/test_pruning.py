"""Layers left out: arrays of one value a layer, counts and patterns follow, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit import api, errors
from quantkit.gguf.container import KeyValue, array, read_header, uint32
from quantkit.jobs import convert, quantize
from quantkit.loading.patterns import PATTERNS, UNPRUNABLE
from quantkit.model.model import Model, ModelTensor
from quantkit.model.open import open_checkpoint
from quantkit.model.pruning import prune

Get = Callable[[str], Path]


def value(kv: tuple[KeyValue, ...], key: str) -> Any:
    return next((item.value for item in kv if item.key == key), None)


def model(arch: str, layers: int, *kv: KeyValue) -> Model:
    tensors = tuple(
        ModelTensor(f"blk.{i}.attn_norm.weight", (4,), "F32", ()) for i in range(layers)
    )
    count = uint32(f"{arch}.block_count", layers)
    return Model("m", arch, tensors, {}, (count, *kv))


@pytest.mark.parametrize("case", ["lfm2moe", "granitehybrid", "mimo2", "step35", "nemotron-h-moe"])
@pytest.mark.parametrize("gone", [(0,), (1,), (2, 3)])
def test_arrays_are_cut_where_layers_are(case: str, gone: tuple[int, ...], checkpoint: Get) -> None:
    """Of every array of as many values as there are layers, those of the layers that stay."""
    whole = open_checkpoint(checkpoint(case), None)
    pruned, count, _ = prune(whole, gone)
    layers = value(whole.kv, f"{whole.arch}.block_count")
    assert count.value == layers - len(gone)
    cut = 0
    for item in whole.kv:
        new = next(i for i in pruned.kv if i.key == item.key)
        if item.key.startswith(f"{whole.arch}.") and item.type == "ARRAY" and item.length == layers:
            cut += 1
            assert new.element_type == item.element_type
            assert new.value == [x for i, x in enumerate(item.value) if i not in gone], item.key
    assert cut > 0


@pytest.mark.parametrize(
    ("gone", "dense", "ahead"), [((0,), 1, 2), ((4,), 2, 2), ((7,), 2, 1), ((0, 1, 6, 7), 0, 0)]
)
def test_counts_of_layers(gone: tuple[int, ...], dense: int, ahead: int) -> None:
    """The first two of eight layers are dense, the last two predict further tokens."""
    whole = model(
        "glm4moe",
        8,
        uint32("glm4moe.leading_dense_block_count", 2),
        uint32("glm4moe.nextn_predict_layers", 2),
    )
    pruned, count, _ = prune(whole, gone)
    assert count.value == 8 - len(gone)
    assert value(pruned.kv, "glm4moe.leading_dense_block_count") == dense
    assert value(pruned.kv, "glm4moe.nextn_predict_layers") == ahead


@pytest.mark.parametrize("arch", sorted(PATTERNS.keys() - UNPRUNABLE.keys()))
def test_a_pattern_is_spelled_out_where_numbers_change(arch: str) -> None:
    pattern = PATTERNS[arch]
    period = pattern.period
    window = uint32(f"{arch}.attention.sliding_window", 64)
    whole = model(arch, 3 * period, window)
    key = f"{arch}.{pattern.key}"
    steps = {"afmoe": 4, "llama4": 4, "smallthinker": 4}
    if arch not in steps:
        pruned, _, _ = prune(whole, [0])
        before = [pattern.of_layer(i, period) for i in range(3 * period)]
        assert value(pruned.kv, key) == before[1:]
    else:
        with pytest.raises(errors.RecipeError, match="prune 4 in a row"):
            prune(whole, [0])
    shorter, _, _ = prune(whole, range(period))  # the numbers say the same of those that stay
    assert value(shorter.kv, key) is None


def test_a_pattern_that_is_an_array_stays_one() -> None:
    key = "gemma3.attention.sliding_window_pattern"
    whole = model("gemma3", 4, array(key, [True, False, True, False]))
    pruned, _, _ = prune(whole, [1])
    assert value(pruned.kv, key) == [True, True, False]


@pytest.mark.parametrize(
    ("arch", "kv", "gone", "words"),
    [
        ("ernie4_5-moe", [uint32("ernie4_5-moe.interleave_moe_layer_step", 2)], (0,), "every 2"),
        ("gemma3n", [], (0,), "of gemma3n cannot be pruned"),
        ("rwkv7", [], (0,), "layer 0 of rwkv7 cannot be pruned"),
        ("llama", [], (0, 1, 2, 3), "all layers would be pruned"),
        ("llama", [], (4,), "layer 4 cannot be pruned; the model has 4 layers"),
        ("exaone4", [], (1,), "only 64 slide"),
    ],
)
def test_what_cannot_be_mended_is_refused(
    arch: str, kv: list[KeyValue], gone: tuple[int, ...], words: str
) -> None:
    layers = 64 if arch == "exaone4" else 4
    with pytest.raises(errors.RecipeError, match=words):
        prune(model(arch, layers, *kv), gone)


def test_a_tensor_of_all_layers_keeps_them(checkpoint: Get, tmp_path: Path) -> None:
    with pytest.raises(errors.RecipeError, match=r"per_layer_.* holds a part of each of them"):
        quantize(checkpoint("gemma4-e2b"), ["Q8_0"], tmp_path, prune=(1,))
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_what_it_holds(checkpoint: Get, tmp_path: Path) -> None:
    """Through a file as from the checkpoint."""
    quantize(checkpoint("lfm2moe"), ["F16"], tmp_path / "whole.gguf")
    for source, name in ((tmp_path / "whole.gguf", "a"), (checkpoint("lfm2moe"), "b")):
        quantize(source, ["Q8_0"], tmp_path / f"{name}.gguf", prune=(1,))
    a, b = (read_header(tmp_path / f"{name}.gguf") for name in "ab")
    assert a.kv == b.kv
    assert len(a.get("lfm2moe.attention.head_count_kv")) == a.get("lfm2moe.block_count")


def test_what_is_said_of_tensors_by_name(checkpoint: Get, tmp_path: Path) -> None:
    """Which matrices of NVFP4 meet activations of 16 bits: of the file as of the checkpoint."""
    names, source = "general.tensor_extra.name", checkpoint("qwen3moe-w4a16")
    whole, less = tmp_path / "whole.gguf", tmp_path / "less.gguf"
    convert(source, whole)
    assert api.verify(whole, source).good
    quantize(whole, ["COPY"], less, prune=(0,))
    before, after = (read_header(path).get(names) for path in (whole, less))
    assert [n for n in before if n.startswith("blk.0.")] == after
    assert len(read_header(less).get("general.tensor_extra.prec_a4")) == len(after) == 3
    assert api.verify(less).good


@pytest.mark.parametrize(("layers", "gone", "fine"), [(66, (1, 2), True), (64, (3,), False)])
def test_norms_of_heads_that_depend_on_the_number_of_layers(
    layers: int, gone: tuple[int, ...], fine: bool
) -> None:
    whole = model("command-r", layers)
    assert len(prune(whole, gone)[0].tensors) == layers - len(gone)
    norms = tuple(
        ModelTensor(f"blk.{i}.attn_q_norm.weight", (4,), "F32", ()) for i in range(layers)
    )
    whole = replace(whole, tensors=(*whole.tensors, *norms))
    if fine:
        assert len(prune(whole, gone)[0].tensors) == 2 * (layers - len(gone))
        return
    with pytest.raises(errors.RecipeError, match="in models of 64 layers and more"):
        prune(whole, gone)
