"""DSpark's draft for DeepSeek-V4: DFlash's with layers of that model, whose attention sees a window
and nothing compressed. llama.cpp: `conversion/deepseek.py` (DeepseekV4DSparkModel).

In a release it is the part `mtp.` of the model's own checkpoint, taken alone with `--dspark`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.deepseek_v4 import DEEPSEEK_V4, SCORED
from quantkit.architectures.drafts import mask_token
from quantkit.architectures.rules import Config, Key, Map, Values, vector, whole
from quantkit.errors import ConfigError
from quantkit.source.tensors import SourceTensor

S = "draft"
HEAD = f"{S}.markov_head"


def _learned(sources: Mapping[str, SourceTensor], values: Values) -> dict[str, Any]:
    """As many layers as there are, of which none compresses and none has a table of tokens, and
    the width of the chain of guesses."""
    numbers = [int(m[1]) for name in sources if (m := re.match(r"mtp\.(\d+)\.attn", name))]
    chain = next((t for name, t in sources.items() if name.endswith("markov_w1.weight")), None)
    n = 1 + max(numbers, default=-1)
    return {
        "num_hidden_layers": n, "compress_ratios": [0] * n, "num_hash_layers": 0,
        "markov_rank": 0 if chain is None else chain.shape[-1],
    }  # fmt: skip


def _layer_ids(config: Config) -> list[int]:
    """Layers of the model whose outputs are read. Raises ConfigError."""
    found = config.get("dspark_target_layer_ids")
    if not isinstance(found, list) or not found or any(type(n) is not int for n in found):
        raise ConfigError(f"{config.where}: 'dspark_target_layer_ids' must list layers")
    return found


def _stage(m: Map) -> Map:
    """The row under the name that it has in this part."""
    return replace(m, source=f"{S}.{m.source}", layers="" if m.layers == SCORED else m.layers)


_OTHER = ("embed.weight", "head.weight")  # the model's own
DEEPSEEK_V4_DSPARK = replace(
    DEEPSEEK_V4,
    hf_names=("DeepseekV4DSparkModel",),
    gguf_arch="dflash",
    late_keys=(
        *(key for key in DEEPSEEK_V4.late_keys if not key.name.endswith("embedding_length_out")),
        Key("{arch}.block_size", "dspark_block_size"),
        Key("{arch}.target_layers", lambda c: [n + 1 for n in _layer_ids(c)], "INT32"),
    ),
    last_keys=(mask_token(lambda c: c.one("dspark_noise_token_id")),),
    dims={
        **DEEPSEEK_V4.dims,
        "seen": lambda c: len(_layer_ids(c)) * c.one("hidden_size"),
        "markov": lambda c: c.get("markov_rank"),
        "after": lambda c: c.one("hidden_size") + c.get("markov_rank"),
    },
    maps=(
        *(_stage(m) for m in DEEPSEEK_V4.maps
          if m.layers in ("", SCORED) and m.source not in _OTHER
          and not m.source.endswith("bias_vl")),
        Map(f"{S}.main_proj.weight", ("hidden", "seen"), whole("fc.weight")),
        vector(f"{S}.main_norm", "enc.output_norm"),
        Map(f"{HEAD}.markov_w1.weight", ("vocab", "markov"), whole("markov_w1.weight")),
        Map(f"{HEAD}.markov_w2.weight", ("vocab", "markov"), whole("markov_w2.weight")),
        Map(f"{S}.confidence_head.proj.weight", ("one", "after"), whole("conf_proj.weight"),
            optional=True),
    ),
    layers={},
    renames=(
        (r"^mtp\.\d+\.((main|hc_head)_\w+|norm|markov_head|confidence_head)\b", rf"{S}.\1"),
        (r"^mtp\.", f"{S}.layers."),
    ),
    drops=(rf"(?!{S}\.).*", rf"{S}\.layers\.\d+\.ffn\.gate\.(bias_vl|tid2eid)"),
    mtp=lambda config: 0,
    respelled=lambda config, shapes: None,
    learned=_learned,
    drafts=True,
)  # fmt: skip

FAMILY = (DEEPSEEK_V4_DSPARK,)
