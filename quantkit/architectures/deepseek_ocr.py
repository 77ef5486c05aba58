"""The text parts of DeepSeek-OCR, its second and Unlimited-OCR, which call themselves DeepSeek-V2.

llama.cpp: `conversion/deepseek.py`, DeepseekOCRModel.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import (
    EMBEDDINGS,
    LEADING_DENSE,
    NORMS,
    VOCAB_SIZE,
    attention,
    optional_key,
)
from quantkit.architectures.deepseek import DEEPSEEK, SHARES, SPARSE, log_multiplier
from quantkit.architectures.rules import Config, Key, tied_head_dropped

_OCR = ("DeepseekOCRForCausalLM", "UnlimitedOCRForCausalLM", "DeepseekOCR2ForCausalLM")


def _window(config: Config) -> int | None:
    for name in ("sliding_window_size", "sliding_window"):
        if found := config.get(name, default=0):
            n: int = found
            return n
    return None


DEEPSEEK_OCR = tied_head_dropped(replace(
    DEEPSEEK,
    hf_names=_OCR,
    gguf_arch="deepseek2-ocr",
    first_keys=(Key("tokenizer.chat_template",
                    lambda c: "{% for m in messages %}{{m['content']}}{% endfor %}", "STRING"),),
    late_keys=(
        LEADING_DENSE,
        VOCAB_SIZE,
        optional_key("attention.q_lora_rank", "q_lora_rank"),
        *SHARES,
        Key("{arch}.attention.sliding_window", _window),
        Key("{arch}.rope.scaling.yarn_log_multiplier", log_multiplier, "FLOAT32"),
    ),
    assumes=(),
    fuses=("qkv", "gate_up_exps"),
    maps=(*EMBEDDINGS, *NORMS, *attention(), *SPARSE),
    drops=(r".*(sam_model|qwen2_model).*",),
    defaults={"rms_norm_eps": 1e-6, "first_k_dense_replace": 0},
))  # fmt: skip

FAMILY = (DEEPSEEK_OCR,)
