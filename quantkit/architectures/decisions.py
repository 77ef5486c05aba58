"""Models that decide: of a question with options llama.cpp reads how likely the label of each is.
They are models of other families, with a prompt of their own. llama.cpp: `conversion/qwen.py`
(OpenJevModel), `conversion/lfm2.py` (D1Model).

The prompts that they are trained with are in `systemone/`, as llama.cpp's converter writes them
(MIT): its server fills them in.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

from quantkit.architectures.lfm2 import LFM2
from quantkit.architectures.qwen_next import QWEN35
from quantkit.architectures.rules import Config, Key


def _prompt(name: str) -> str:
    """The prompt of a kind of decision. Jinja."""
    place = files("quantkit.architectures") / "systemone" / f"{name}.jinja"
    return place.read_text(encoding="utf-8")


def decides(kind: str) -> tuple[Key, ...]:
    """What kind of decision it is."""
    return (Key("{arch}.decision.type", lambda c: kind, "STRING"),)


def asks(kind: str) -> tuple[Key, ...]:
    """The prompt, after the vocabulary."""
    return (
        Key("tokenizer.chat_template.systemone", lambda c: _prompt(kind), "STRING"),
        Key("tokenizer.chat_templates", lambda c: ["systemone"], "STRINGS"),
    )


def _cooled(name: str, value: float) -> Key:
    """What logits are divided by, for a kind of question."""

    def read(config: Config) -> float:
        return value

    return Key(f"{{arch}}.decision.temperature.{name}", read, "FLOAT32")


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

FAMILY = (OPENJEV, D1)
