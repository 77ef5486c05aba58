"""What transformers' config classes assume where config.json is silent.

`class_defaults.json` has a line for each `model_type`: the numbers, texts and flags of its class's
signature that the tables of families ask for (transformers 4.57.6, which llama.cpp's converter
reads every config through; 5.23 for classes that came later). What a class computes from other
values is not there, nor are the ids of tokens and whether a head is tied. `texts`: the model_type
of the text part of a model of several modes, and whether that is its class whatever it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _tables() -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, bool]]]:
    found = json.loads((Path(__file__).parent / "class_defaults.json").read_text())
    return found["classes"], {name: (kind, own) for name, (kind, own) in found["texts"].items()}


def class_of(whole: Mapping[str, Any], text: Mapping[str, Any] | None = None) -> str | None:
    """The `model_type` of the class that reads a config; `text` is its text part, if it has one.
    None for that of a stranger, which is read as it stands."""
    _, texts = _tables()
    name, named = whole.get("model_type"), (text or {}).get("model_type")
    kind, fixed = texts.get(name, (None, False)) if isinstance(name, str) else (None, False)
    if kind is not None:  # the values of a text part may also stand outside it
        name = kind if fixed or text is None else named or kind
    elif text is not None:
        return None
    return name if isinstance(name, str) else None


def class_defaults(name: str | None) -> dict[str, Any]:
    """The defaults of a class, by its `model_type`; none of one that is not known."""
    classes, _ = _tables()
    return classes.get(name or "", {})
