"""The encoders that quantkit converts: of images and of sound, one family a file, listed here with
the names that config.json gives them. A family's file is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from quantkit.encoders.rules import Encoder
from quantkit.errors import UnsupportedArchitecture

# the file of a family -> the names of all its rows (`hf_names`)
FAMILIES: Mapping[str, str] = {
    "cogvlm": "CogVLMForCausalLM",
    "conformer": "Lfm2AudioForConditionalGeneration D1OmniModel",
    "deepseek_ocr": "DeepseekOCRForCausalLM UnlimitedOCRForCausalLM DeepseekOCR2ForCausalLM",
    "deepseek_v4": "DeepseekV4ForCausalLM",
    "dots3_note": "Dots3NoteForCausalLM Dots3NoteForConditionalGeneration",
    "dots_ocr": "DotsOCRForCausalLM",
    "gemma": (
        "Gemma3ForConditionalGeneration Gemma4ForConditionalGeneration EmbeddingGemma2Model "
        "Gemma4UnifiedForConditionalGeneration"
    ),
    "gemma3n": "Gemma3nForConditionalGeneration",
    "glm": (
        "Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration "
        "GlmOcrForConditionalGeneration Glm5NextForConditionalGeneration"
    ),
    "granite": (
        "GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration "
        "Granite4VisionForConditionalGeneration"
    ),
    "hunyuan_vl": "HunYuanVLForConditionalGeneration",
    "intern_vl": "InternVisionModel",
    "janus": "JanusForConditionalGeneration",
    "kimi_vl": (
        "KimiVLForConditionalGeneration KimiK25ForConditionalGeneration "
        "Glm5vForConditionalGeneration"
    ),
    "llama4": "Llama4ForConditionalGeneration",
    "mimo": "MiMoV2ForCausalLM",
    "minimax": "MiniMaxM3SparseForConditionalGeneration MiniMaxM3VLForConditionalGeneration",
    "muse_glimmer": "MuseGlimmerForConditionalGeneration",
    "nemotron": "NemotronH_Nano_VL_V2 RADIOModel",
    "omni": (
        "Qwen2_5OmniModel Qwen3OmniMoeForConditionalGeneration Qwen3ASRForConditionalGeneration"
    ),
    "pixtral": (
        "Mistral3ForConditionalGeneration LlavaForConditionalGeneration "
        "LightOnOCRForConditionalGeneration params.json"
    ),
    "qwen_vl": (
        "Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration "
        "Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration OpenJevModel "
        "Qwen4ExpForConditionalGeneration ClefModel PplxDeciderModel "
        "BailingMoeV3VLForConditionalGeneration"
    ),
    "qwen2_vl": (
        "Qwen2_5_VLForConditionalGeneration Qwen2VLForConditionalGeneration Qwen2VLModel "
        "Sarashina2VisionForCausalLM Exaone4_5_ForConditionalGeneration"
    ),
    "siglip": (
        "SmolVLMForConditionalGeneration Idefics3ForConditionalGeneration "
        "Lfm2VlForConditionalGeneration Cohere2VisionForConditionalGeneration"
    ),
    "siglip2": (
        "PaddleOCRVisionModel YoutuVLForConditionalGeneration Phi4ForCausalLMV "
        "MiniCPMV4_6ForConditionalGeneration"
    ),
    "step3_vl": "StepVLForConditionalGeneration Step3p7ForConditionalGeneration",
    "whisper": (
        "VoxtralForConditionalGeneration AudioFlamingo3ForConditionalGeneration "
        "Qwen2AudioForConditionalGeneration UltravoxModel MERaLiON2ForConditionalGeneration "
        "GlmasrModel"
    ),
}

_SPEAKS = "its file is what speaks after the text, which is not converted either"
# those that llama.cpp's converter knows and quantkit does not take, and why
LEFT_OUT = {"Qwen3TTSForConditionalGeneration": _SPEAKS, "PocketTTSModel": _SPEAKS}
_FILE_OF = {name: file for file, names in FAMILIES.items() for name in names.split()}


@cache
def family(file: str) -> tuple[Encoder, ...]:
    """The rows of a family, by its file's name."""
    rows: tuple[Encoder, ...] = import_module(f"{__name__}.{file}").FAMILY
    return rows


def supported_encoders() -> list[str]:
    """The `architectures` of config.json whose encoders can be converted, sorted."""
    return sorted(_FILE_OF)


def find_encoder(name: str) -> Encoder:
    """The encoder for a name from config.json. Raises UnsupportedArchitecture."""
    if name in _FILE_OF:
        return next(row for row in family(_FILE_OF[name]) if name in row.hf_names)
    if name in LEFT_OUT:
        raise UnsupportedArchitecture(f"the encoder of {name!r} is not converted: {LEFT_OUT[name]}")
    raise UnsupportedArchitecture(
        f"the encoder of {name!r} is not supported; those of {', '.join(supported_encoders())} are"
    )
