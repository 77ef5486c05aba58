"""Models that llama.cpp's converter knows and quantkit does not take, and why."""

from __future__ import annotations

_SOUND = "it makes sound, no text"
_DECIDES = "it decides between answers, and writes no text"

REASONS: dict[str, str] = {
    "PLMForCausalLM": "llama.cpp b11549 ends where it keeps its values (in two axes, not three)",
    **dict.fromkeys(
        ("Lfm25AudioTokenizer", "PocketTTSModel", "Qwen3TTSForConditionalGeneration",
         "WavTokenizerDec"),
        _SOUND,
    ),
    **dict.fromkeys(
        ("ClefModel", "D1Model", "D1OmniModel", "KevModel", "LevModel", "ModernBertDecisionModel",
         "NimbleModel", "OpenJevModel", "PplxDeciderModel"),
        _DECIDES,
    ),
}  # fmt: skip
