"""Encoders that are refused: in one line, by name, before a byte is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.architectures.rules import ConversionOptions
from quantkit.jobs import convert
from quantkit.model.open import Reading, open_checkpoint
from tests.damage import edit_config, edit_tensors

Get = Callable[[str], Path]

MMPROJ = Reading(options=ConversionOptions(mmproj=True))

REFUSED = {
    "no encoder": (
        lambda s: edit_config(s, vision_config=None),
        errors.ConfigError, "neither a vision_config nor an audio_config",
    ),
    "an encoder that is left out": (
        lambda s: edit_config(s, architectures=["PocketTTSModel"]),
        errors.UnsupportedArchitecture, "what speaks after the text, which is not converted",
    ),
    "an encoder of nobody": (
        lambda s: edit_config(s, architectures=["NobodysModel"]),
        errors.UnsupportedArchitecture, "the encoder of 'NobodysModel' is not supported; those of",
    ),
    "no preprocessor": (
        lambda s: (s / "preprocessor_config.json").unlink(),
        errors.ConfigError, "preprocessor_config.json: 'image_mean' is missing",
    ),
    "a preprocessor of words": (
        lambda s: (s / "preprocessor_config.json").write_text('{"image_mean": ["a", 1, 1]}'),
        errors.ConfigError, "'image_mean' is",
    ),
    "an image of one colour": (
        lambda s: (s / "preprocessor_config.json").write_text('{"image_mean": [0.5]}'),
        errors.ConfigError, "llama.cpp wants a value a colour",
    ),
    "a tensor of another shape": (
        lambda s: edit_tensors(s, lambda t: t.update(
            {"model.visual.merger.norm.weight": ("BF16", [64], bytes(128))})),
        errors.TensorShape, "shape [64] found, [128] expected",
    ),
    "a tensor that is missing": (
        lambda s: edit_tensors(s, lambda t: t.pop("model.visual.blocks.1.norm1.bias") and None),
        errors.TensorMissing, "visual.blocks.1.norm1.bias",
    ),
    "a tensor without a place": (
        lambda s: edit_tensors(s, lambda t: t.update(
            {"model.visual.blocks.0.extra.weight": ("BF16", [2], bytes(4))})),
        errors.TensorUnknown, "visual.blocks.0.extra.weight has no place",
    ),
    "a picture of a layer that is not there": (
        lambda s: _vision(s, deepstack_visual_indexes=[0, 9]),
        errors.ConfigError, "'deepstack_visual_indexes' is [0, 9], of 4 layers",
    ),
    "three frames": (
        lambda s: _vision(s, temporal_patch_size=3),
        errors.ConfigError, "'vision_config.temporal_patch_size' is 3",
    ),
    "a patch of none": (
        lambda s: _vision(s, patch_size=0), errors.ConfigError, "the model has no patch",
    ),
    "many layers": (
        lambda s: _vision(s, depth=100_000), errors.ConfigError, "an encoder of 100000 layers",
    ),
    "heads that do not divide the width": (
        lambda s: _vision(s, num_heads=3),
        errors.NotLoadable, "head_count is 3, for a width of 128",
    ),
}  # fmt: skip


def _vision(source: Path, **changes: Any) -> None:
    config = json.loads((source / "config.json").read_text())
    edit_config(source, vision_config={**config["vision_config"], **changes})


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_a_byte_is_written(
    what: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    spoil, error, words = REFUSED[what]
    source, out = broken("qwen3vl-mmproj"), tmp_path / "out"
    spoil(source)
    out.mkdir()
    with pytest.raises(error) as caught:
        convert(source, out, "bf16", reading=MMPROJ)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == []


def test_layers_that_the_config_does_not_count(broken: Callable[..., Path], tmp_path: Path) -> None:
    """Under a name that is the encoder's: refused, not left out."""
    source = broken("janus-mmproj")
    _vision(source, depth=2)
    with pytest.raises(errors.TensorUnknown, match=r"aligner\.hidden_layers\.1"):
        convert(source, tmp_path, reading=MMPROJ)


def test_full_attention_of_no_pattern_is_refused(
    broken: Callable[..., Path], tmp_path: Path
) -> None:
    source = broken("qwen25vl-mmproj")
    _vision(source, fullatt_block_indexes=[1, 2])
    with pytest.raises(errors.ConfigError, match="not every nth layer"):
        convert(source, tmp_path, reading=MMPROJ)


def test_no_token_that_ends_a_row(broken: Callable[..., Path], tmp_path: Path) -> None:
    source = broken("mistral3-mmproj")
    (source / "tokenizer_config.json").write_text("{}")
    with pytest.raises(errors.ConfigError, match=r"no token \[IMG_BREAK\]"):
        convert(source, tmp_path, reading=MMPROJ)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("blocks.2.2.attn.key.norm.weight", "blocks.2.2.attn.key.norm.weight is not in the"),
        ("blocks.1.0.", r"blocks \[1\] of stage 1 of MobileNet, not all from 0 on"),
        ("blocks.3.0.pw_exp.conv.weight", "blocks.3.0.pw_exp.conv.weight is not in the"),
    ],
)
def test_a_mobilenet_with_holes(
    lost: str, words: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    source = broken("gemma3n-mmproj")
    prefix = f"model.vision_tower.timm_model.{lost}"

    def lose(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    edit_tensors(source, lose)
    with pytest.raises(errors.TensorMissing, match=words):
        convert(source, tmp_path, reading=MMPROJ)


def test_a_batch_norm_without_its_variance(broken: Callable[..., Path], tmp_path: Path) -> None:
    source = broken("lfm2audio-mmproj")
    name = "conformer.layers.1.conv.batch_norm.running_var"
    edit_tensors(source, lambda t: t.pop(name) and None)
    with pytest.raises(errors.TensorMissing, match=f"{name} is not in the checkpoint"):
        convert(source, tmp_path, reading=MMPROJ)
    edit_tensors(source, lambda t: t.update({name: ("BF16", [7], bytes(14))}))
    with pytest.raises(errors.TensorShape, match=r"running_var: BF16 \[7\] found"):
        convert(source, tmp_path, reading=MMPROJ)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"downsample_rate": "4"}, "'downsample_rate' is '4', not two numbers"),
        ({"deepstack_layer_map": [[0]]}, "'deepstack_layer_map' is not a list of pairs"),
        ({"spatial_target_layers": ["a"]}, "'spatial_target_layers' is not a list of layers"),
        ({"image_grid_pinpoints": [3]}, "'image_grid_pinpoints' is not a list of sizes"),
    ],
)
def test_granite_vision_of_another_plan(
    changes: dict[str, Any], words: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    source = broken("granite4vision-mmproj")
    edit_config(source, **changes)
    with pytest.raises(errors.ConfigError, match=words):
        convert(source, tmp_path, reading=MMPROJ)


def test_joined_matrices_are_the_texts(checkpoint: Get) -> None:
    asked = replace(MMPROJ, options=ConversionOptions(mmproj=True, fuse_qkv=True))
    with pytest.raises(errors.ConfigError, match="no joined qkv"):
        open_checkpoint(checkpoint("gemma3-4b-mmproj"), "bf16", asked)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_without_the_folder_of_sound(
    name: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    source = broken("mimov2-mmproj")
    (source / "audio_tokenizer" / name).unlink()
    with pytest.raises(errors.SourceNotFound, match=rf"audio_tokenizer/{name} is not there"):
        convert(source, tmp_path, reading=MMPROJ)


@pytest.mark.parametrize(
    ("shape", "words"), [([12, 8], r"\[12, 8\] found; it is a codebook"), (None, "are not all")]
)
def test_codebooks_that_do_not_fit(
    shape: list[int] | None, words: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    source = broken("mimov2-mmproj")
    name = "encoder.quantizer.vq.layers.1._codebook.embed"

    def edit(tensors: dict[str, Any]) -> None:
        del tensors[name]
        if shape:
            tensors[name] = ("F32", shape, bytes(4 * shape[0] * shape[1]))

    edit_tensors(source / "audio_tokenizer", edit)
    with pytest.raises(errors.ModelError, match=words):
        convert(source, tmp_path, reading=MMPROJ)
