"""Models that llama.cpp's converter knows and quantkit does not take, and why."""

from __future__ import annotations

_DRAFTS = "a draft that llama.cpp runs beside another model: convert that one"
_SOUND = "it makes sound, no text"
_CODE = "its tokenizer is code of its own, which is never run"
_RECURRENT = "RWKV's tensors are put together from several, which is not done"
_DECIDES = "it decides between answers, and writes no text"

REASONS: dict[str, str] = {
    "PLMForCausalLM": "llama.cpp b11549 ends where it keeps its values (in two axes, not three)",
    **dict.fromkeys(
        ("DFlashDraftModel", "DFlash2DraftModel", "DSparkDraftModel", "DSparkSpeculator",
         "DeepseekV4DSparkModel", "Eagle3DraftModel", "Eagle3LlamaForCausalLM", "Eagle3Speculator",
         "Gemma4AssistantForCausalLM", "Gemma4DSparkModel", "Gemma4UnifiedAssistantForCausalLM",
         "Lfm2DSparkDraftModel", "LingDSparkModel", "LlamaForCausalLMEagle3",
         "MuseGlimmerAssistantModel", "Qwen3DSparkModel"),
        _DRAFTS,
    ),
    **dict.fromkeys(
        ("Lfm25AudioTokenizer", "PocketTTSModel", "Qwen3TTSForConditionalGeneration",
         "WavTokenizerDec"),
        _SOUND,
    ),
    **dict.fromkeys(
        ("ChatGLMModel", "ChatGLMForConditionalGeneration"),
        f"{_CODE} (GLM-4-9b is there as glm-4-9b-chat-hf, too)",
    ),
    **dict.fromkeys(
        ("QWenLMHeadModel", "PlamoForCausalLM", "Plamo2ForCausalLM", "PLaMo2ForCausalLM",
         "Plamo3ForCausalLM", "PLaMo3ForCausalLM"),
        _CODE,
    ),
    **dict.fromkeys(
        ("Rwkv6ForCausalLM", "RWKV6Qwen2ForCausalLM", "Rwkv7ForCausalLM", "RWKV7ForCausalLM",
         "RwkvHybridForCausalLM"),
        _RECURRENT,
    ),
    **dict.fromkeys(
        ("ClefModel", "D1Model", "D1OmniModel", "KevModel", "LevModel", "ModernBertDecisionModel",
         "NimbleModel", "OpenJevModel", "PplxDeciderModel"),
        _DECIDES,
    ),
    "BitNetForCausalLM": "llama.cpp runs it with SiLU, and it was trained with squared ReLU",
    "BitnetForCausalLM": "its matrices are rounded to three values first, which is not done",
    "GraniteSwitchForCausalLM": "its adapters are tensors of their own, which is not done",
    "XverseForCausalLM": "llama.cpp has its pieces without scores, and splits texts otherwise",
}  # fmt: skip
