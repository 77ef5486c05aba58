"""Models that decide: of a question with options llama.cpp reads how likely the label of each is.
They are models of other families, with a prompt of their own. llama.cpp: `conversion/qwen.py`
(OpenJevModel), `conversion/lfm2.py` (D1Model), `conversion/pplx_decider.py`.

The prompts that they are trained with are in `systemone/`, as llama.cpp's converter writes them
(MIT): its server fills them in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from quantkit.architectures.lfm2 import LFM2
from quantkit.architectures.qwen_next import QWEN35
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    linear,
    piece,
    whole,
)
from quantkit.errors import ConfigError


def asks_of(name: str) -> str:
    """The prompt of a kind of decision. Jinja."""
    place = files("quantkit.architectures") / "systemone" / f"{name}.jinja"
    return place.read_text(encoding="utf-8")


def decides(kind: str) -> tuple[Key, ...]:
    """What kind of decision it is."""
    return (Key("{arch}.decision.type", lambda c: kind, "STRING"),)


def asks(kind: str) -> tuple[Key, ...]:
    """The prompt, after the vocabulary."""
    return (
        Key("tokenizer.chat_template.systemone", lambda c: asks_of(kind), "STRING"),
        Key("tokenizer.chat_templates", lambda c: ["systemone"], "STRINGS"),
    )


def _cooled(name: str, value: float) -> Key:
    """What logits are divided by, for a kind of question."""

    def read(config: Config) -> float:
        return value

    return Key(f"{{arch}}.decision.temperature.{name}", read, "FLOAT32")


KINDS = 3  # of questions: choice, score, noul
SCORER = (
    Map("type_emb.weight", ("kinds", "hidden"), whole("token_types.weight")),
    *linear("scorer.0", ("hidden",), "cls.norm", bias=True),
    *linear("scorer.1", ("hidden", "hidden"), "cls", bias=True),
    *linear("scorer.3", ("one", "hidden"), "cls.output", bias=True),
)


def layer_of_head(at: int, bid: int) -> tuple[Map, ...]:
    """A layer of a head that decides, and the block that it becomes."""
    source, block = f"head.layers.{at}", f"blk.{bid}"
    shapes = {
        "norm1": (("hidden",), "attn_norm"), "norm2": (("hidden",), "ffn_norm"),
        "self_attn.in_proj": (("3hidden", "hidden"), "attn_qkv"),
        "self_attn.out_proj": (("hidden", "hidden"), "attn_output"),
        "linear1": (("4hidden", "hidden"), "ffn_up"),
        "linear2": (("hidden", "4hidden"), "ffn_down"),
    }  # fmt: skip
    return tuple(
        m for name, (shape, role) in shapes.items()
        for m in linear(f"{source}.{name}", shape, f"{block}.{role}", bias=True)
    )  # fmt: skip


def temperatures(config: Config, table: str) -> tuple[Key, ...]:
    """What logits are divided by, by the kind of question and how many options it has, as `table`
    of the config says. Raises ConfigError."""
    found = config.find(table)
    if not isinstance(found, dict) or not all(re.fullmatch(r"[\w:+-]+", name) for name in found):
        raise ConfigError(f"{config.where}: '{table}' is no table of kinds of questions")

    def value(name: str) -> Callable[[Config], Any]:
        return lambda c: c.find(table)[name]

    return tuple(
        Key(f"{{arch}}.decision.temperature.{name.replace(':', '.').replace('-', '_').rstrip('+')}",
            value(name), "FLOAT32")
        for name in found
    )  # fmt: skip


OPENJEV = replace(
    QWEN35,
    hf_names=("OpenJevModel",),
    late_keys=(
        *QWEN35.late_keys, *decides("openjev"),
        _cooled("choice", 0.85), _cooled("score", 0.85), _cooled("noul", 0.85 * 1.829074),
    ),
    last_keys=asks("openjev"),
    mtp=lambda config: 0,
    keeps_mtp=False,
)  # fmt: skip

D1 = replace(
    LFM2,
    hf_names=("D1Model",),
    late_keys=(*LFM2.late_keys, *decides("lfm2-d1")),
    last_keys=asks("lfm2-d1"),
)

READOUT, ZEROS = "weight", "~zeros"  # as the readout is called in its file


def _labels(config: Config) -> list[int]:
    """The token of each row of the readout. Raises ConfigError."""
    found, n = config.find("decision.token_ids"), config.one("vocab_size")
    known = isinstance(found, list) and all(type(i) is int and 0 <= i < n for i in found)
    if not found or not known or len({*found}) != len(found):
        raise ConfigError(
            f"{config.where}: 'token_ids' of decision_config.json must be different ones of {n} "
            "tokens"
        )
    return list(found)


def _rows_at(ids: Sequence[int]) -> RowMap:
    """Rows that become those of such tokens."""
    runs = [n for n, i in enumerate(ids) if not n or i != ids[n - 1] + 1]

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        shape = (dims["vocab"], dims["hidden"])
        return [
            piece("output.weight", shape, end - at, ids[at], at)
            for at, end in zip(runs, [*runs[1:], len(ids)], strict=True)
        ]

    return pieces


def _zeros(rows: int, width: int) -> Any:
    """float32 `[rows, width]` that takes no memory."""
    import numpy as np

    return np.broadcast_to(np.float32(0), (rows, width))


def _with_labels(config: Config) -> Architecture:
    """A head of zeros, but for the rows of the labels."""
    labels, n = _labels(config), config.one("vocab_size")
    others = [i for i in range(n) if i not in {*labels}]
    rows = [Map(READOUT, ("labels", "hidden"), _rows_at(labels), early=True)]
    if others:
        rows.append(Map(ZEROS, ("others", "hidden"), _rows_at(others), early=True))
    return replace(
        PPLX_DECIDER,
        dims={
            **PPLX_DECIDER.dims, "labels": lambda c: len(labels), "others": lambda c: len(others),
        },
        maps=(*PPLX_DECIDER.maps, *rows),
        added=lambda c: {ZEROS: _zeros(len(others), c.one("hidden_size"))} if others else {},
    )  # fmt: skip


PPLX_DECIDER = replace(
    QWEN35,
    hf_names=("PplxDeciderModel",),
    late_keys=(
        *QWEN35.late_keys, *decides("pplx-decider"),
        *(Key(f"{{arch}}.decision.temperature.{kind}", "decision.temperature", "FLOAT32")
          for kind in ("choice", "score", "noul")),
    ),
    last_keys=asks("pplx-decider"),
    maps=tuple(m for m in QWEN35.maps if m.source != "lm_head.weight"),
    renames=(*QWEN35.renames, (r"^(?=(layers|embed_tokens|norm)\.)", "model.")),
    files={"decision": "decision_config.json"},
    weights=("readout.safetensors",),
    variant=_with_labels,
    mtp=lambda config: 0,
    keeps_mtp=False,
)  # fmt: skip

FAMILY = (OPENJEV, D1, PPLX_DECIDER)
