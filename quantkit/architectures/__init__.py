"""The architectures that quantkit converts: one family a file, listed here with the names that
config.json gives them. A family's file is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module

from quantkit.architectures.left_out import REASONS
from quantkit.architectures.rules import Architecture
from quantkit.errors import UnsupportedArchitecture

# the file of a family -> the names of all its rows (`hf_names`)
FAMILIES: Mapping[str, str] = {
    "afmoe": "AfmoeForCausalLM",
    "arctic": "ArcticForCausalLM",
    "baichuan": "BaichuanForCausalLM BaiChuanForCausalLM",
    "bailing": (
        "BailingMoeForCausalLM BailingMoeV2ForCausalLM SarvamMoEForCausalLM "
        "modeling_sarvam_moe.SarvamMoEForCausalLM"
    ),
    "bailing_hybrid": (
        "BailingMoeV3ForCausalLM BailingHybridForCausalLM BailingMoeV3VLForConditionalGeneration"
    ),
    "bert": (
        "BertModel BertForMaskedLM BertForSequenceClassification DistilBertModel "
        "DistilBertForMaskedLM DistilBertForSequenceClassification RobertaModel "
        "RobertaForSequenceClassification XLMRobertaModel XLMRobertaForSequenceClassification "
        "CamembertModel"
    ),
    "bitnet": "BitnetForCausalLM BitNetForCausalLM",
    "bloom": "BloomForCausalLM BloomModel",
    "chameleon": "ChameleonForConditionalGeneration ChameleonForCausalLM",
    "codeshell": "CodeShellForCausalLM",
    "cogvlm": "CogVLMForCausalLM",
    "cohere": "CohereForCausalLM Cohere2ForCausalLM Cohere2MoeForCausalLM",
    "d1_omni": "D1OmniModel",
    "dbrx": "DbrxForCausalLM",
    "deci": "DeciLMForCausalLM",
    "decisions": "OpenJevModel D1Model PplxDeciderModel",
    "deepseek": (
        "DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM "
        "KimiVLForConditionalGeneration KimiK25ForConditionalGeneration Glm4MoeLiteForCausalLM"
    ),
    "deepseek_ocr": "DeepseekOCRForCausalLM UnlimitedOCRForCausalLM DeepseekOCR2ForCausalLM",
    "deepseek_sparse": "DeepseekV32ForCausalLM GlmMoeDsaForCausalLM",
    "deepseek_v4": "DeepseekV4ForCausalLM",
    "deepseek_v4_dspark": "DeepseekV4DSparkModel",
    "dflash": "DFlashDraftModel DFlash2DraftModel",
    "diffusion": "DreamModel LLaDAModelLM",
    "dots1": "Dots1ForCausalLM",
    "dots3": "Dots3NoteForCausalLM Dots3NoteForConditionalGeneration Dots3NoteTextForCausalLM",
    "dspark": (
        "Qwen3DSparkModel DSparkDraftModel DSparkSpeculator Lfm2DSparkDraftModel LingDSparkModel"
    ),
    "eagle3": "LlamaForCausalLMEagle3 Eagle3LlamaForCausalLM Eagle3Speculator Eagle3DraftModel",
    "embedding_gemma2": "EmbeddingGemma2Model",
    "ernie": (
        "Ernie4_5_ForCausalLM Ernie4_5ForCausalLM PaddleOCRVLForConditionalGeneration "
        "Ernie4_5_MoeForCausalLM"
    ),
    "eurobert": "EuroBertModel JinaEmbeddingsV5Model",
    "exaone": (
        "ExaoneForCausalLM Exaone4ForCausalLM Exaone4_5_ForConditionalGeneration "
        "ExaoneMoEForCausalLM ExaoneMoeForCausalLM"
    ),
    "falcon": "FalconForCausalLM RWForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "gemma": (
        "GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration "
        "Gemma3TextModel"
    ),
    "gemma3n": "Gemma3nForCausalLM Gemma3nForConditionalGeneration",
    "gemma4": (
        "Gemma4ForCausalLM Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration"
    ),
    "gemma4_assistant": "Gemma4AssistantForCausalLM Gemma4UnifiedAssistantForCausalLM",
    "gemma4_dspark": "Gemma4DSparkModel",
    "glm": (
        "ChatGLMModel ChatGLMForConditionalGeneration GlmForCausalLM Glm4ForCausalLM "
        "Glm4vForConditionalGeneration GlmOcrForConditionalGeneration Glm4MoeForCausalLM "
        "Glm4vMoeForConditionalGeneration SolarOpenForCausalLM"
    ),
    "glm5_next": "Glm5NextForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel RuGPT3XLForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": (
        "GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeSharedForCausalLM "
        "GraniteMoeHybridForCausalLM BambaForCausalLM"
    ),
    "granite_swa": "GraniteSWAForCausalLM GraniteMoeSWAForCausalLM",
    "granite_switch": "GraniteSwitchForCausalLM",
    "grok": "Grok1ForCausalLM GrokForCausalLM",
    "hrm_text": "HrmTextForCausalLM",
    "hunyuan": (
        "HunYuanDenseV1ForCausalLM HunYuanVLForConditionalGeneration HunYuanMoEV1ForCausalLM"
    ),
    "hunyuan_next": "HYV3ForCausalLM HYV4ForCausalLM",
    "internlm": "InternLM2ForCausalLM InternLM3ForCausalLM",
    "jais": "JAISLMHeadModel Jais2ForCausalLM",
    "jamba": "JambaForCausalLM",
    "jina_bert": "JinaBertModel JinaBertForMaskedLM",
    "k2_horizon": "K2HorizonForCausalLM",
    "kimi_k3": "KimiK3ForConditionalGeneration",
    "kimi_linear": "KimiLinearForCausalLM KimiLinearModel",
    "laguna": "LagunaForCausalLM",
    "laya": "ModernBertDecisionModel",
    "lfm2": (
        "Lfm2ForCausalLM LFM2ForCausalLM Lfm2VlForConditionalGeneration Lfm2Model "
        "Lfm2BidirectionalModel Lfm2BidirectionalForMaskedLM Lfm25AudioTokenizer "
        "Lfm2MoeForCausalLM"
    ),
    "llama": (
        "LlamaForCausalLM LLaMAForCausalLM MistralForCausalLM IQuestCoderForCausalLM "
        "VLlama3ForCausalLM SmolVLMForConditionalGeneration Idefics3ForConditionalGeneration "
        "LlavaForConditionalGeneration VoxtralForConditionalGeneration LlamaModel "
        "Sarashina2VisionForCausalLM JanusForConditionalGeneration LlamaBidirectionalModel "
        "MixtralForCausalLM ArceeForCausalLM SmolLM3ForCausalLM NanbeigeForCausalLM "
        "ApertusForCausalLM"
    ),
    "llama4": "Llama4ForConditionalGeneration Llama4ForCausalLM",
    "mamba": "MambaForCausalLM MambaLMHeadModel FalconMambaForCausalLM Mamba2ForCausalLM",
    "mellum": "MellumForCausalLM MapleForCausalLM",
    "mimo": "MiMoV2FlashForCausalLM MiMoV2ForCausalLM",
    "minicpm": "MiniCPMForCausalLM MiniCPM3ForCausalLM",
    "minimax": "MiniMaxM2ForCausalLM MiniMaxText01ForCausalLM MiniMaxM1ForCausalLM",
    "minimax_m3": "MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration",
    "mistral": "Mistral3ForConditionalGeneration Ministral3ForCausalLM params.json",
    "mistral4": "Mistral4ForCausalLM",
    "modern_bert": "ModernBertModel ModernBertForMaskedLM ModernBertForSequenceClassification",
    "mpt": "MPTForCausalLM",
    "muse_glimmer": "MuseGlimmerForConditionalGeneration MuseGlimmerAssistantModel",
    "nemotron": "NemotronForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "nemotron_h_puzzle": "NemotronHPuzzleForCausalLM",
    "neo_bert": "NeoBERT NeoBERTLMHead NeoBERTForSequenceClassification",
    "nomic_bert": "NomicBertModel",
    "olmo": "OlmoForCausalLM OLMoForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM SeedOssForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "openelm": "OpenELMForCausalLM",
    "orion": "OrionForCausalLM",
    "pangu": "PanguEmbeddedForCausalLM",
    "phi": "PhiForCausalLM Phi3ForCausalLM Phi4ForCausalLMV PhiMoEForCausalLM PhimoeForCausalLM",
    "plamo": (
        "PlamoForCausalLM Plamo2ForCausalLM PLaMo2ForCausalLM Plamo3ForCausalLM PLaMo3ForCausalLM"
    ),
    "qwen": (
        "Qwen2ForCausalLM Qwen2Model DotsOCRForCausalLM AudioFlamingo3ForConditionalGeneration "
        "Qwen2AudioForConditionalGeneration KORMoForCausalLM Qwen2VLForConditionalGeneration "
        "Qwen2VLModel Qwen2_5_VLForConditionalGeneration Qwen2_5OmniModel "
        "Qwen2_5OmniForConditionalGeneration Qwen3ForCausalLM Qwen3Model "
        "StepVLForConditionalGeneration MaincoderForCausalLM Qwen2MoeForCausalLM "
        "Qwen3MoeForCausalLM RND1 LLaDAMoEModelLM LLaDAMoEModel GroveMoeForCausalLM "
        "modeling_grove_moe.GroveMoeForCausalLM"
    ),
    "qwen1": "QWenLMHeadModel",
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration "
        "Qwen3ASRForConditionalGeneration Qwen3OmniMoeForConditionalGeneration"
    ),
    "qwen4_exp": "Qwen4ExpForConditionalGeneration Qwen4ExpForCausalLM",
    "qwen_next": (
        "Qwen3NextForCausalLM Qwen3_5MoeForConditionalGeneration Qwen3_5MoeForCausalLM "
        "Qwen3_5ForConditionalGeneration Qwen3_5ForCausalLM Qwen3_5TextModel "
        "MiniCPMV4_6ForConditionalGeneration"
    ),
    "refact": "GPTRefactForCausalLM",
    "rwkv": "Rwkv6ForCausalLM RWKV6Qwen2ForCausalLM",
    "rwkv7": "Rwkv7ForCausalLM RWKV7ForCausalLM RwkvHybridForCausalLM",
    "smallthinker": "SmallThinkerForCausalLM",
    "spark": "Spark2_5ForCausalLM",
    "stablelm": "StableLmForCausalLM StableLMEpochForCausalLM LlavaStableLMEpochForCausalLM",
    "starcoder": "GPTBigCodeForCausalLM Starcoder2ForCausalLM",
    "step": "Step3p5ForCausalLM Step3p7ForConditionalGeneration",
    "t5": (
        "T5ForConditionalGeneration T5WithLMHeadModel MT5ForConditionalGeneration "
        "UMT5ForConditionalGeneration UMT5Model T5EncoderModel"
    ),
    "talkie": "TalkieForCausalLM",
    "xverse": "XverseForCausalLM",
    "youtu": "YoutuForCausalLM YoutuVLForConditionalGeneration",
}

_FILE_OF = {name: file for file, names in FAMILIES.items() for name in names.split()}


@cache
def family(file: str) -> tuple[Architecture, ...]:
    """The rows of a family, by its file's name."""
    rows: tuple[Architecture, ...] = import_module(f"{__name__}.{file}").FAMILY
    return rows


def supported() -> list[str]:
    """The `architectures` of config.json that can be converted, sorted."""
    return sorted(_FILE_OF)


def find(name: str) -> Architecture:
    """The architecture for a name from config.json. Raises UnsupportedArchitecture."""
    if name in _FILE_OF:
        return next(row for row in family(_FILE_OF[name]) if name in row.hf_names)
    if name in REASONS:
        raise UnsupportedArchitecture(f"architecture {name!r} is not supported: {REASONS[name]}")
    stems = {known.partition("For")[0]: known for known in _FILE_OF}
    near = [stems[s] for s in get_close_matches(name.partition("For")[0], stems, n=2)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    raise UnsupportedArchitecture(
        f"architecture {name!r} is not supported{hint}; `quantkit inspect --architectures` lists "
        "those that are"
    )
