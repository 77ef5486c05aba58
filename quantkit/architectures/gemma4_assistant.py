"""What drafts for Gemma 4: it takes the keys and values of that model, and has none. llama.cpp:
`conversion/gemma.py`, Gemma4AssistantModel.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import OPTIONAL_HEAD
from quantkit.architectures.gemma4 import GEMMA4
from quantkit.architectures.rules import Expect, Key, linear

GEMMA4_ASSISTANT = replace(
    GEMMA4,
    hf_names=("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"),
    gguf_arch="gemma4-assistant",
    late_keys=(
        *GEMMA4.late_keys,
        Key("{arch}.embedding_length_out", "backbone_hidden_size"),
        Key("{arch}.nextn_predict_layers", lambda c: c.layers),
    ),
    expects=(*GEMMA4.expects, Expect("enable_moe_block", (False,)),
             Expect("use_double_wide_mlp", (False,)), Expect("hidden_size_per_layer_input", (0,))),
    aliases={**GEMMA4.aliases, "num_kv_shared_layers": lambda c: c.layers},
    dims={**GEMMA4.dims, "target": lambda c: c.get("backbone_hidden_size"),
          "2target": lambda c: 2 * c.get("backbone_hidden_size")},
    maps=(
        *(m for m in GEMMA4.maps if m is not OPTIONAL_HEAD),
        *linear("pre_projection", ("hidden", "2target"), "nextn.pre_projection", bias=False),
        *linear("post_projection", ("target", "hidden"), "nextn.post_projection", bias=False),
    ),
    drops=(r"lm_head\.weight", r".*masked_embedding.*"),
    variant=lambda config: None,
    fuses=(),
)  # fmt: skip

FAMILY = (GEMMA4_ASSISTANT,)
