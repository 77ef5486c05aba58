"""Options for formats that change nothing in any output, and why: a person who gives one expects
that it does. llama-quantize passes over them in silence. Pure, as the rest of the recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from quantkit.gguf.types import type_by_name
from quantkit.plain_text import first_of
from quantkit.recipes.choose import Overrides, unmatched
from quantkit.recipes.facts import category, is_quantized
from quantkit.recipes.file_types import find_recipe

Shapes = Mapping[str, tuple[int, ...]]  # of tensors by name, in NumPy order
# by type, of its tensors by name: the format, and the one that it stands in for
Formats = Mapping[str, Mapping[str, tuple[str, str | None]]]


def unheeded(overrides: Overrides, arch: str, shapes: Shapes, made: Formats) -> list[str]:
    """A line for each option that decided on no tensor of any type; `made` may be a part of it."""
    types = [kind for kind in made if find_recipe(kind).base]
    if not types:
        return [f"{words} has no effect: COPY keeps all formats" for words in _all(overrides)]
    lines = []
    if overrides.leave_output_tensor and "output.weight" not in shapes:
        lines.append(
            "leave output tensor has no effect: the model has no output.weight, the embedding "
            "serves as both"
        )
    kinds = {category(name) for name in shapes}
    if (fmt := overrides.token_embedding_type) and "token_embd" not in kinds:
        lines.append(f"token embedding type {fmt} has no effect: the model has no embedding")
    if spare := unmatched(overrides, list(shapes)):
        words = first_of([f"{pattern}={fmt}" for pattern, fmt in spare])
        lines.append(
            f"{len(spare)} of {len(overrides.listed)} tensor types of the file name no tensor of "
            f"this model: {words}"
        )
    owned: list[list[str]] = [[] for _ in overrides.patterns]
    for name in shapes:
        first = (i for i, (pattern, _) in enumerate(overrides.patterns) if pattern.search(name))
        for i in islice(first, 1):
            owned[i].append(name)
    quantized = {name for name, shape in shapes.items() if is_quantized(name, shape, arch)}
    open_to = [kind for kind in types if not type_by_name(find_recipe(kind).base).is_float]
    for (pattern, fmt), own in zip(overrides.patterns, owned, strict=True):
        left = [name for name in own if name in quantized]
        if not own:
            named = [name for name in shapes if pattern.search(name)]
            if not named:
                continue
            why = f"what it names, an earlier one does: {first_of(named)}"
        elif not left:
            why = f"llama.cpp never quantizes what it names: {first_of(own)}"
        elif not open_to:
            why = f"{', '.join(types)} gives all tensors that format"
        elif not any(fmt in made[kind].get(name, (fmt,)) for kind in open_to for name in left):
            why = f"another option, or the type itself, decides on {first_of(left)}"
        else:
            continue
        lines.append(f"tensor type {pattern.pattern}={fmt} has no effect: {why}")
    return lines


def _all(overrides: Overrides) -> Sequence[str]:
    """Every option that is given, in words."""
    named = [f"tensor type {pattern}={fmt}" for pattern, fmt in overrides.tensor_types]
    for words, fmt in (
        ("output tensor type", overrides.output_tensor_type),
        ("token embedding type", overrides.token_embedding_type),
    ):
        named += [f"{words} {fmt}"] if fmt else []
    return named
