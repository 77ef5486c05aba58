"""Cases of which llama.cpp's converter makes another file than ours, each for a reason that
docs/add_an_architecture.md gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.checkpoints import architectures

# llama.cpp's converter stops here, or does what its runtime then refuses: no golden to agree with
WITHOUT = {case for case, data in architectures().items() if not data["golden"]["outtypes"]}
# fused by transformers 5 from a config that uses 8 experts of 4, which llama.cpp asserts against
EIGHT_OF_FOUR = {"glm4moe-tf5fused", "olmoe-tf5fused"}
# config.json does not say how experts are scored: llama.cpp's own file gives other logits than the
# model, or makes llama.cpp abort
SILENT = {"deepseek-v3-tf5fused", "dots1-tf5fused", "glm4moelite"}
# llama.cpp's converter writes it under another name, where its loader misses it, or forgets it
MISSED: dict[str, tuple[str, Any]] = {
    "afmoe-silent": (".expert_weights_norm", True),
    "exaone35": (".attention.layer_norm_rms_epsilon", np.float32(1e-5)),
    "falcon-11b": (".rope.freq_base", 500042.0),
    "gpt-neox-seq": (".rope.freq_base", 20000.0),
    "granite-swa-theta": (".attention.rope_pattern", [False, True, True, True]),
    "qwen1": (".attention.layer_norm_rms_epsilon", np.float32(1e-6)),
    "mpt-learned": (".attention.head_count_kv", 1),
}
# its converter drops what stands before the last matrix of the classifier, or leaves rows in an
# order that its runtime takes for another: tensors of ours that are not so, or not there at all
_CLS = frozenset({"cls.weight", "cls.bias"})
_QKV = frozenset({"blk.0.attn_qkv.weight", "blk.1.attn_qkv.weight"})
_IMAGES = frozenset(
    f"blk.{bid}.vis_{role}.weight"
    for bid in (0, 1)
    for role in ("attn_qkv", "attn_output", "gate", "up", "down")
)
OWN = {
    "bert-labels": _CLS,
    "bert-reranker": _CLS,
    "neobert": _QKV,
    "neobert-classifier": _QKV,
    "cogvlm-kv": _IMAGES,
}
# values that are another
VALUES: dict[str, dict[str, Any]] = {
    "bert-labels": {"general.size_label": "1.4M"},  # with those counted
    "bert-reranker": {"general.size_label": "1.4M"},
    "cogvlm-kv": {"general.size_label": "2.9M"},
    # where the first layer has no heads, llama.cpp's rotation has no end
    "plamo2": {"plamo2.attention.head_count": [4, 4, 4, 4]},
    "plamo2-few": {"plamo2.attention.head_count": [4, 4]},
    "plamo2-silent": {"plamo2.attention.head_count": [4, 4]},
    "glm-hf": {
        "chatglm.context_length": 1024,
        "chatglm.attention.layer_norm_rms_epsilon": float(np.float32(1.5625e-07)),
    },
}
VALUES["glm-hf-stranger"] = VALUES["glm-hf"]
