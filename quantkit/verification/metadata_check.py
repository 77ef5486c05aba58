"""The metadata of a file against what its source gives: the model's numbers and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from quantkit.gguf.container import KeyValue

_VOCABULARY = "tokenizer.ggml."


def differences(file: Iterable[KeyValue], source: Iterable[KeyValue], arch: str) -> list[str]:
    """Lines on keys of the architecture and of the vocabulary that the file lacks or has with other
    values than the source gives. No other key changes what the model computes."""
    held = {item.key: item for item in file}
    lines = []
    for item in source:
        if not item.key.startswith((f"{arch}.", _VOCABULARY)):
            continue
        in_file = held.get(item.key)
        if in_file is None:
            lines.append(f"{item.key} is not in the file; the source gives {_brief(item.value)}")
        elif in_file.raw != item.raw and in_file.value != item.value:
            lines.extend(_difference(item.key, in_file.value, item.value))
    return lines


def _difference(key: str, held: Any, given: Any) -> Iterator[str]:
    if not isinstance(held, list) or not isinstance(given, list):
        yield f"{key} is {_brief(held)} in the file, the source gives {_brief(given)}"
    elif len(held) != len(given):
        yield f"{key} has {len(held)} entries in the file, the source gives {len(given)}"
    else:
        at = [i for i, (a, b) in enumerate(zip(held, given, strict=True)) if a != b]
        more = f" ({len(at)} of {len(given)} differ)" if len(at) > 1 else ""
        first, wanted = _brief(held[at[0]]), _brief(given[at[0]])
        yield f"{key}[{at[0]}] is {first}, the source gives {wanted}{more}"


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) < 60 else f"{text[:56]}..."
