"""The metadata of a file against what its source gives: the model's numbers and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from quantkit.gguf.container import KeyValue

_VOCABULARY = "tokenizer.ggml."


def differences(file: Iterable[KeyValue], source: Iterable[KeyValue], arch: str) -> list[str]:
    """Lines on keys that the source gives, of the architecture and of the vocabulary, and the file
    lacks or has otherwise. What else stands in a file changes nothing that it computes."""
    held = {item.key: item for item in file}
    out = []
    for item in source:
        if not item.key.startswith((f"{arch}.", _VOCABULARY)):
            continue
        found = held.get(item.key)
        if found is None:
            out.append(f"{item.key} is not in the file; the source gives {_brief(item.value)}")
        elif found.raw != item.raw and found.value != item.value:
            out.extend(_told(item.key, found.value, item.value))
    return out


def _told(key: str, found: Any, given: Any) -> Iterator[str]:
    if not isinstance(found, list) or not isinstance(given, list):
        yield f"{key} is {_brief(found)} in the file, the source gives {_brief(given)}"
    elif len(found) != len(given):
        yield f"{key} has {len(found)} entries in the file, the source gives {len(given)}"
    else:
        at = [i for i, (a, b) in enumerate(zip(found, given, strict=True)) if a != b]
        more = f" ({len(at)} of {len(given)} differ)" if len(at) > 1 else ""
        first, wanted = _brief(found[at[0]]), _brief(given[at[0]])
        yield f"{key}[{at[0]}] is {first}, the source gives {wanted}{more}"


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) < 60 else f"{text[:56]}..."
