"""Files of encoders in the real llama.cpp: its mtmd loads them beside a text of the same width, and
what it sees of a picture, or hears of a sound, is finite."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf.container import read_header
from quantkit.jobs import convert
from quantkit.model.open import Reading
from tests.checkpoints import read_safetensors, values, write_safetensors
from tests.sampling import one_in

VOCABULARY = 520
WIDE, WIDE_SOUND = "clip.vision.projection_dim", "clip.audio.projection_dim"
MMPROJ = Reading(options=ConversionOptions(mmproj=True))
# tokens that llama.cpp makes of a picture of 64 pixels
TOKENS = {
    "glmocr-mmproj": 64,
    "kimik25-mmproj": 64,
    "minimaxm3-mmproj": 64,
    "qwen25omni-mmproj": 64,
    "janus-mmproj": 16,
    "dotsocr-mmproj": 64,
    "lightonocr-mmproj": 4,
    "exaone45-mmproj": 64,
    "youtuvl-mmproj": 64,
    "cogvlm-mmproj": 18,
    "deepseekv4v-mmproj": 13,
    "gemma4-unified-mmproj": 81,
    "museglimmer-mmproj": 9,
    "mimov2-mmproj": 9,
    "d1omni-mmproj": 64,
    "granite4vision-mmproj": 172,
    "qwen3omni-mmproj": 64,
    "hunyuanvl-mmproj": 4162,
}
# and of half a minute: two seconds of sound, then silence (Qwen3-ASR takes three seconds).
# Voxtral is not among them: mtmd counts 187 tokens, makes 188, and ends, whatever the file
HEARD = {
    "ultravox-mmproj": 750,
    "qwen25omni-mmproj": 750,
    "audioflamingo3-mmproj": 750,
    "glmasr-mmproj": 377,
    "meralion2-mmproj": 100,
    "qwen3asr-mmproj": 39,
    "mimov2-mmproj": 9,
    "dots3note-mmproj": 25,
    "granitespeech-mmproj": 21,
    "lfm2audio-mmproj": 26,
    "qwen3omni-mmproj": 39,
}
IN_THREE_AXES = ("hunyuanvl-mmproj",)  # places of tokens: mtmd takes it beside such a text alone
LAYERED = {"granite4vision-mmproj": 4}  # pictures of so many layers stand side by side
CHANNELS = 512  # of LFM2-Audio's table of distances in llama.cpp, whatever the width
MOMENTS = 1500  # of half a minute, after a convolution of stride two


def _text(source: Path, path: Path, width: int, axes: bool = False) -> None:
    """A text of one layer, of the width that an encoder's checkpoint has; `axes`: whose tokens have
    places in three axes."""
    config = json.loads((source / "config.json").read_text())
    config |= {
        "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2,
        "num_key_value_heads": 2, "num_hidden_layers": 1,
    }  # fmt: skip
    layer = "model.layers.0"
    biases = {}
    if axes:
        section = [width // 16, width // 16, width // 8]
        config |= {
            "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
            "rope_scaling": {"type": "mrope", "mrope_section": section}, "vision_config": {},
        }  # fmt: skip
        biases = {f"{layer}.self_attn.{part}_proj.bias": [width] for part in "qkv"}
    (source / "config.json").write_text(json.dumps(config))
    for file in source.glob("*.safetensors*"):
        file.unlink()
    shapes = {
        "model.embed_tokens": [VOCABULARY, width], "lm_head": [VOCABULARY, width],
        "model.norm": [width], f"{layer}.input_layernorm": [width],
        f"{layer}.post_attention_layernorm": [width],
        **{f"{layer}.self_attn.{part}_proj": [width, width] for part in "qkvo"},
        f"{layer}.mlp.gate_proj": [2 * width, width], f"{layer}.mlp.up_proj": [2 * width, width],
        f"{layer}.mlp.down_proj": [width, 2 * width],
    }  # fmt: skip
    how = {"mean": 0.0, "std": 0.05}
    named = {f"{name}.weight": shape for name, shape in shapes.items()} | biases
    write_safetensors(
        source / "model.safetensors",
        {
            name: ("BF16", shape, values(name, "BF16", shape, how).tobytes())
            for name, shape in named.items()
        },
    )
    convert(source, path, "f32", reading=Reading(pre="llama-bpe"))


def _fitting(source: Path) -> Path:
    """The small checkpoint with sizes that fit each other in llama.cpp. Its Granite Speech looks
    up distances as far as the context; of Qwen3-Omni, mtmd takes no file with both encoders where
    pictures of several layers stand side by side, which makes what it sees wider than what it
    hears; Granite 4 Vision's windows are of eight patches a side, and LFM2-Audio's
    channels are 512."""
    path = source / "config.json"
    config = json.loads(path.read_text())
    if "encoder_config" in config and "max_pos_emb" in config["encoder_config"]:
        config["encoder_config"]["context_size"] = config["encoder_config"]["max_pos_emb"]
    if "vision_config" in config.get("thinker_config", {}):
        config["thinker_config"]["vision_config"]["deepstack_visual_indexes"] = []
        for file in source.glob("*.safetensors"):
            tensors = read_safetensors(file)
            write_safetensors(file, {n: t for n, t in tensors.items() if "merger_list" not in n})
    if "spatial_target_layers" in config:
        config["vision_config"]["image_size"] = 128
        _lengthen(source, "position_embedding.weight", 64)
    if "encoder" in config:
        config["encoder"] |= {"d_model": CHANNELS, "n_layers": 1}
        _widen(source, 64)
    path.write_text(json.dumps(config))
    return source


def _widen(source: Path, width: int) -> None:
    """The first layer of a conformer of so many channels, with as many as llama.cpp counts on."""
    by = CHANNELS // width
    for file in source.glob("*.safetensors"):
        tensors = {}
        for name, (dtype, shape, data) in read_safetensors(file).items():
            if re.search(r"layers\.[1-9]", name):
                continue
            wide = [n * by if n == width else n for n in shape]
            if "pointwise_conv1" in name or "pos_bias" in name:
                wide = [n * by if n in (2 * width, width // 4) else n for n in wide]
            if wide != shape:
                how = {"mean": float("norm" in name), "std": 0.05}
                data = values(name, dtype, wide, how).tobytes()
            tensors[name] = (dtype, wide, data)
        write_safetensors(file, tensors)


def _lengthen(source: Path, table: str, rows: int) -> None:
    """A table of positions of so many rows in place of the small one."""
    for file in source.glob("*.safetensors"):
        tensors = read_safetensors(file)
        for name, (dtype, shape, _) in tensors.items():
            if name.endswith(table):
                long, how = [rows, shape[1]], {"mean": 0.0, "std": 0.05}
                tensors[name] = (dtype, long, values(name, dtype, long, how).tobytes())
        write_safetensors(file, tensors)


@pytest.mark.parametrize("case", one_in(2, TOKENS))
def test_llama_cpp_sees_a_picture(case: str, broken: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from tests.real_mtmd import seen

    text, projector = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    source = _fitting(broken(case))
    convert(source, projector, "f32", reading=MMPROJ)
    shutil.rmtree(source)  # both may be called ckpt
    width = {item.key: item.value for item in read_header(projector).kv}[WIDE]
    width *= LAYERED.get(case, 1)
    _text(broken("llama-plain"), text, width, case in IN_THREE_AXES)
    picture = np.random.default_rng(7).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rows = seen(text, projector, picture, tmp_path)
    assert rows.shape == (TOKENS[case], width)
    assert np.isfinite(rows).all()


def _for_half_a_minute(source: Path) -> None:
    """The small table of positions in time as one that mtmd can use."""
    config = json.loads((source / "config.json").read_text())
    for table in ("audio_config", "whisper_config", "speech_config"):
        if table in config:
            config[table]["max_source_positions"] = MOMENTS
    (source / "config.json").write_text(json.dumps(config))
    _lengthen(source, "embed_positions.weight", MOMENTS)


@pytest.mark.parametrize("case", one_in(2, HEARD))
def test_llama_cpp_hears_a_sound(case: str, broken: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from tests.real_mtmd import seen

    text, projector = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    source = _fitting(broken(case))
    _for_half_a_minute(source)
    convert(source, projector, "f32", reading=MMPROJ)
    shutil.rmtree(source)  # both may be called ckpt
    width = {item.key: item.value for item in read_header(projector).kv}[WIDE_SOUND]
    _text(broken("llama-plain"), text, width)
    t = np.arange(32000) / 16000
    noise = np.random.default_rng(7).standard_normal(len(t))
    sound = (0.3 * np.sin(2 * np.pi * 440 * t) + 0.05 * noise).astype(np.float32)
    rows = seen(text, projector, sound, tmp_path)
    assert rows.shape == (HEARD[case], width)
    assert np.isfinite(rows).all()
    assert rows.std(axis=0).max() > 0  # not the same at every moment
