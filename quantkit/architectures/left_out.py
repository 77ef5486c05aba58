"""Models that llama.cpp's converter knows and quantkit does not take, and why."""

from __future__ import annotations

_FOLDED = (
    "it makes sound, and llama.cpp's converter multiplies matrices into its embedding, with sums "
    "in an order of torch's"
)
_ADDS = "it is an adapter, whose products with its base llama.cpp's converter adds: merge it first"
_HEAD = "it decides by a head of its own, which is not converted"

REASONS: dict[str, str] = {
    "PLMForCausalLM": "llama.cpp b11549 ends where it keeps its values (in two axes, not three)",
    **dict.fromkeys(("PocketTTSModel", "Qwen3TTSForConditionalGeneration"), _FOLDED),
    "WavTokenizerDec": "it makes sound of codes, and has neither a text nor a vocabulary",
    **dict.fromkeys(("KevModel", "LevModel", "NimbleModel"), _ADDS),
    "ClefModel": _HEAD,
}  # fmt: skip
