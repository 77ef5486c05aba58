"""Sources that are multiplied by others, or stand beside them, before they are placed (`Map.times`,
`Map.beside`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quantkit.architectures.rules import Map
from quantkit.errors import TensorMissing
from quantkit.model.names import NUMBER
from quantkit.source.codings.beside import beside
from quantkit.source.codings.product import product
from quantkit.source.tensors import SourceTensor


def multiplied(
    maps: Iterable[Map], sources: Mapping[str, SourceTensor]
) -> Mapping[str, SourceTensor]:
    """The sources with each such pair as one tensor, of the name that its row takes.

    Raises TensorMissing: one of a pair is not there. TensorShape: they do not fit.
    """
    pairs = [
        (m, name) for m in maps if m.times or m.beside for name in (m.source, m.times or m.beside)
    ]
    if not pairs:
        return sources
    templates = {NUMBER.sub("*", _numbered(name, "0")): m for m, name in pairs}
    short = {name.replace("language_model.", ""): t for name, t in sources.items()}
    out = dict(sources)
    for name in short:
        if (m := templates.get(NUMBER.sub("*", name))) is None:
            continue
        bid = next(iter(NUMBER.findall(name)), "")
        names = [_numbered(name, bid) for name in (m.source, m.times or m.beside)]
        if lacking := [n for n in names if n not in short]:
            raise TensorMissing(f"tensor {lacking[0]} is not in the checkpoint; {name} needs it")
        one, other = (short[n] for n in names)
        out.pop(other.name, None)
        out[one.name] = (product if m.times else beside)(one, other)
    return out


def _numbered(name: str, number: str) -> str:
    """The name of a row with its only number put in."""
    return name.format(bid=number, mid=number)
