"""Youtu-LLM and the text part of Youtu-VL: DeepSeek's latent attention without experts. llama.cpp:
`conversion/deepseek.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import EMBEDDINGS, NORMS, gated_mlp
from quantkit.architectures.deepseek import DEEPSEEK_V2, LATENT
from quantkit.architectures.rules import Expect, Key, tied_head_dropped

_EXPERT_DIMS = ("experts", "used", "expert_ffn", "2expert_ffn", "shared_ffn")
# what the graph of DeepSeek asks of experts, where there are none
_DENSE = {
    "leading_dense_block_count": Key("{arch}.leading_dense_block_count", lambda c: c.layers),
    "expert_feed_forward_length": Key("{arch}.expert_feed_forward_length", "intermediate_size"),
    "expert_shared_count": Key("{arch}.expert_shared_count", lambda c: 0),
}

YOUTU = tied_head_dropped(replace(
    DEEPSEEK_V2,
    hf_names=("YoutuForCausalLM", "YoutuVLForConditionalGeneration"),
    late_keys=tuple(_DENSE.get(k.name.rpartition(".")[2], k) for k in DEEPSEEK_V2.late_keys),
    expects=(*DEEPSEEK_V2.expects, Expect("n_routed_experts", (None,))),
    dims={k: v for k, v in DEEPSEEK_V2.dims.items() if k not in _EXPERT_DIMS},
    maps=(*EMBEDDINGS, *NORMS, *LATENT, *gated_mlp()),
    layers={k: v for k, v in DEEPSEEK_V2.layers.items() if "quer" in k or k == "two"},
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True},
    mtp=lambda config: 0,
    expert_order=(),
))  # fmt: skip

FAMILY = (YOUTU,)
