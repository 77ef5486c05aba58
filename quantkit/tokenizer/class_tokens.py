"""Special tokens that transformers' tokenizer classes have where no file names them.

A class adds what its vocabulary lacks of them, behind the last token, as it adds those that the
files name. `null` in tokenizer_config.json is an answer: there is none. Facts of transformers 4.57
(`models/*/tokenization_*_fast.py`, Apache 2.0), which llama.cpp's converter uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_END = "<|endoftext|>"
_GPT2 = {"bos": _END, "eos": _END, "unk": _END}
_LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_T5 = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_BART = {**_LLAMA, "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}

# class, without "Fast" at its end -> kind -> text
TOKENS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("GPT2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer",
                     "WhisperTokenizer"), _GPT2),
    "Qwen2Tokenizer": {"eos": _END, "unk": _END, "pad": _END},
    **dict.fromkeys(("LlamaTokenizer", "CodeLlamaTokenizer"), _LLAMA),
    "BloomTokenizer": {**_LLAMA, "pad": "<pad>"},
    "GemmaTokenizer": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
    "CohereTokenizer": {"bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>", "unk": "<UNK>"},
    **dict.fromkeys(("T5Tokenizer", "MT5Tokenizer"), _T5),
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer",
                     "MobileBertTokenizer", "RoFormerTokenizer"), _BERT),
    "DebertaV2Tokenizer": {"bos": "[CLS]", "eos": "[SEP]", **_BERT},
    **dict.fromkeys(("RobertaTokenizer", "XLMRobertaTokenizer", "BartTokenizer",
                     "CamembertTokenizer", "LongformerTokenizer"), _BART),
    "MPNetTokenizer": {**_BART, "unk": "[UNK]"},
}  # fmt: skip

# model_type -> class, where no file names one
_OF_MODELS = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gptj", "starcoder2", "dbrx", "exaone4", "olmo3",
                     "flex_olmo", "granite", "granitemoe", "granitemoehybrid", "granitemoeshared"),
                    "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mamba", "mamba2", "falcon_mamba", "mpt", "olmo", "olmo2", "olmoe",
                     "rwkv", "stablelm"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen2_audio",
                     "qwen3", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_vl",
                     "qwen3_vl_moe", "internvl"), "Qwen2Tokenizer"),
    **dict.fromkeys(("llama", "llama4", "llava", "mistral", "mistral3", "mixtral", "phi3", "phimoe",
                     "jamba", "janus", "arcee", "chameleon", "deepseek_v2", "deepseek_v3",
                     "ernie4_5", "ernie4_5_moe"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n",
                     "gemma3n_text"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("t5", "umt5"), "T5Tokenizer"), "mt5": "MT5Tokenizer",
    "phi": "CodeGenTokenizer", "bloom": "BloomTokenizer", "roberta": "RobertaTokenizer",
    "bert": "BertTokenizer", "distilbert": "DistilBertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer",
}  # fmt: skip


def class_name(config: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The class, without "Fast" at its end, that tokenizer_config.json names (`config`), or that
    config.json (`model`) names or implies; "" if none."""
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    name = name or _OF_MODELS.get(str(model.get("model_type")), "")
    return str(name).removesuffix("Fast")


def class_tokens(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` ... -> text, of the tokens of that class."""
    tokens = TOKENS.get(class_name(config, model), {})
    return {f"{kind}_token": text for kind, text in tokens.items()}
