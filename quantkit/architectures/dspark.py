"""DSpark's drafts: DFlash's with a chain of guesses. llama.cpp: `conversion/qwen.py`."""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.dflash import DFLASH
from quantkit.architectures.drafts import SMALLER, ids_of_target, learned_of_draft
from quantkit.architectures.rules import (
    Config,
    Expect,
    Key,
    Map,
    linear,
    whole,
)

MARKOV = "model.markov_head"


def _anchor(config: Config) -> bool:
    other = ("transformer_layer_config", "aux_hidden_state_layer_ids")
    default = all(config.find(name) is None for name in other)
    found: bool = config.get("sample_from_anchor", kind="BOOL", default=default)
    return found


# with a chain of guesses, each from the one before
DSPARK = replace(
    DFLASH,
    hf_names=(
        "Qwen3DSparkModel", "DSparkDraftModel", "DSparkSpeculator", "Lfm2DSparkDraftModel",
        "LingDSparkModel",
    ),
    late_keys=(
        *DFLASH.late_keys,
        Key("{arch}.sample_from_anchor", _anchor, "BOOL"),
        Key("{arch}.has_confidence_head", "sure", "BOOL"),
    ),
    expects=(*DFLASH.expects, Expect("markov_head_type", ("vanilla",))),
    dims={
        **DFLASH.dims,
        "markov": lambda c: c.get("markov_rank"),
        "after": lambda c: c.one("hidden_size") + c.get("markov_rank"),
    },
    maps=(
        *(
            replace(m, shape=("draft", "hidden"), optional=False, layers="own head")
            if m.source == "lm_head.weight" else m
            for m in DFLASH.maps
        ),
        SMALLER,
        Map(f"{MARKOV}.markov_w1.weight", ("vocab", "markov"), whole("markov_w1.weight")),
        Map(f"{MARKOV}.markov_w2.weight", ("draft", "markov"), whole("markov_w2.weight")),
        *(replace(m, optional=True)
          for m in linear("model.confidence_head.proj", ("one", "after"), "conf_proj")),
    ),
    drops=(r"(model\.)?(d2t|t2d)", r"lm_head\.weight"),
    learned=learned_of_draft,
    added=ids_of_target,
)  # fmt: skip

FAMILY = (DSPARK,)
