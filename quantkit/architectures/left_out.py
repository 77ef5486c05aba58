"""Models that llama.cpp's converter knows and quantkit does not take, and why."""

from __future__ import annotations

_SOUND = "it makes sound, no text"
_ADDS = "it is an adapter, whose products with its base llama.cpp's converter adds: merge it first"
_HEAD = "it decides by a head of its own, which is not converted"

REASONS: dict[str, str] = {
    "PLMForCausalLM": "llama.cpp b11549 ends where it keeps its values (in two axes, not three)",
    **dict.fromkeys(
        ("PocketTTSModel", "Qwen3TTSForConditionalGeneration",
         "WavTokenizerDec"),
        _SOUND,
    ),
    **dict.fromkeys(("KevModel", "LevModel", "NimbleModel"), _ADDS),
    **dict.fromkeys(("ClefModel", "ModernBertDecisionModel"), _HEAD),
}  # fmt: skip
