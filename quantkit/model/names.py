"""Names of a checkpoint's tensors as its architecture knows them.

Tools wrap a model before they save it, or save a part of it, and every wrapper leaves a prefix.
llama.cpp's converter knows `language_model.`, `model.mtp.` and, for a few classes, names without
`model.`; the others it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

# tensors that only layers have which predict further tokens
_PREDICTING = re.compile(r"mtp\..*|.*\.(eh_proj|enorm|hnorm|shared_head)\..*")


def known_names(
    names: Iterable[str], templates: Iterable[str], plain: Callable[[str], str]
) -> Mapping[str, str]:
    """Name in the checkpoint -> name as one of the `templates` has it (numbers are stars there); a
    name that none has is only `plain`: without its wrappers."""
    known = {*templates}
    return {name: _known(name, known, plain) for name in names}


def _known(name: str, templates: set[str], plain: Callable[[str], str]) -> str:
    bare = plain(name)
    inner = bare.removeprefix("model.")
    for candidate in (bare, f"model.{bare}", inner, f"model.{inner}"):
        spelled = plain(candidate)
        if NUMBER.sub("*", spelled) in templates:
            return spelled
    return inner if inner.startswith("mtp.") else bare


def predicts(name: str) -> bool:
    """Whether a tensor, by its known name, is of a layer that predicts further tokens."""
    return _PREDICTING.fullmatch(name) is not None
