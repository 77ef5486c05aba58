"""Directories and tensors that are mistaken for a model: what they are, and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection

from quantkit.source.checkpoint_files import CheckpointFiles


def no_model(files: CheckpointFiles) -> str | None:
    """What a directory without config.json is."""
    if files.has("adapter_config.json"):
        return (
            "an adapter (LoRA), not a model; merge it into its base first "
            "(merge_and_unload of peft) and save that"
        )
    if ggufs := sorted(name for name in files.weights if name.lower().endswith(".gguf")):
        return f"a directory of GGUF files; name one of them, for instance {ggufs[0]}"
    return None


# parts of names -> whose tensors they are, and what to do
_STRANGERS = (
    (r"\.lora_(A|B|embedding)|\.base_layer\.|^base_model\.",
     "it is of an adapter (LoRA) that is not merged; merge it (merge_and_unload of peft) and save "
     "the model"),
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|quant_state\.bits",
     "it is what bitsandbytes keeps beside 4- and 8-bit weights; convert the 16-bit release, or "
     "dequantize the model and save it"),
    (r"\.switch_mlp\.",
     "it is named as mlx names experts; convert the checkpoint that was given to mlx"),
    (r"\.(scales|biases)$",
     "it is of weights that mlx quantized; convert the 16-bit release"),
    (r"^v_head\.|^value_head\.|\.v_head\.",
     "it is the value head of a training run; remove it from the checkpoint"),
)  # fmt: skip


def stranger(name: str, others: Collection[str] = ()) -> str:
    """Why a tensor that no row places is there; one of `others` may tell it for all."""
    for pattern, why in _STRANGERS:
        if re.search(pattern, name) or any(re.search(pattern, other) for other in others):
            return why
    return "is the checkpoint of another architecture?"
