"""What the files of a release are called after."""

from __future__ import annotations

import re

from quantkit.model.model import Model
from quantkit.recipes.file_types import RECIPES

_SIZE = re.compile(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?", re.IGNORECASE)  # as gguf-py knows them


def stem(model: Model) -> str:
    """The first part of the names of a release's files: the model's name, and its size (`4x7B`)
    unless the name has one."""
    name = re.sub(r"[^\w.+-]+", "-", model.name).strip("-.") or "model"
    first, _, last = name.rpartition("-")
    if first and last.upper() in (r.name for r in RECIPES if r.base):  # of a GGUF file
        name = first
    size = next((i.value for i in model.kv if i.key == "general.size_label"), None)
    if not size or any(map(_SIZE.fullmatch, re.split(r"[-_]", name))):
        return name
    first, _, last = name.rpartition("-")
    in_size = re.fullmatch(r"\d+x", last) and size.startswith(last)  # `merge-4x` of 4x7B
    return f"{first if in_size and first else name}-{size}"
