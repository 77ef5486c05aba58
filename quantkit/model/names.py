"""Names of a checkpoint's tensors as its architecture knows them.

Tools wrap a model before they save it, or save a part of it, and every wrapper leaves a prefix.
llama.cpp's converter knows `language_model.`, `model.mtp.` and, for a few classes, names without
`model.`; the others it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from quantkit.architectures.rules import Map

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

# tensors that only layers have which predict further tokens
_PREDICTING = re.compile(r"mtp\..*|.*\.(eh_proj|enorm|hnorm|shared_head)\..*")


# what stands before the names of a text model inside another, of one saved from its inside, and of
# one saved with its outside; each means something in some family, whose own names come first
_ROOTS = ("model.", "llm.", "transformer.", "text_model.", "backbone.")


def known_names(
    names: Iterable[str], maps: Iterable[Map], plain: Callable[[str], str]
) -> Mapping[str, str]:
    """Name in the checkpoint -> name as one of the `maps` has it; a name that none has is only
    `plain`: without its wrappers."""
    known = {template for m in maps for template in m.templates}
    roots = [root for root in _ROOTS if any(name.startswith(root) for name in known)]
    return {name: _known(name, known, roots, plain) for name in names}


def _known(
    name: str, templates: set[str], roots: Sequence[str], plain: Callable[[str], str]
) -> str:
    bare = inner = plain(name)
    while True:
        for candidate in (inner, *(root + inner for root in roots)):
            spelled = plain(candidate)
            if NUMBER.sub("*", spelled) in templates:
                return spelled
        root = next((root for root in _ROOTS if inner.startswith(root)), None)
        if root is None:
            break
        inner = inner.removeprefix(root)
    foreign = [root for root in _ROOTS if root != "model." and root not in roots]
    while root := next((root for root in foreign if bare.startswith(root)), None):
        bare = bare.removeprefix(root)
    return inner if inner.startswith("mtp.") else bare


def predicts(name: str) -> bool:
    """Whether a tensor, by its known name, is of a layer that predicts further tokens."""
    return _PREDICTING.fullmatch(name) is not None
