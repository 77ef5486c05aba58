"""Sources that are multiplied by others, stand beside them, or are folded with them before they
are placed (`Map.times`, `Map.beside`, `Map.batch_norm`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from quantkit.architectures.rules import Map
from quantkit.errors import TensorMissing
from quantkit.model.names import NUMBER
from quantkit.source.codings.batch_norm import factor, summand
from quantkit.source.codings.beside import beside
from quantkit.source.codings.product import product
from quantkit.source.tensors import SourceTensor

Made = Callable[..., SourceTensor]


def multiplied(
    maps: Iterable[Map], sources: Mapping[str, SourceTensor], known: Mapping[str, str]
) -> Mapping[str, SourceTensor]:
    """The sources with those that belong together as one tensor, of the name of that which its row
    takes, where the last of them stands. `known`: their names -> those of the maps.

    Raises TensorMissing: one of them is not there. TensorShape: they do not fit.
    """
    joins = [(made, names) for m in maps for made, names in _joins(m)]
    if not joins:
        return sources
    templates: dict[str, list[tuple[Made, tuple[str, ...]]]] = {}
    for made, names in joins:
        for name in names:
            templates.setdefault(NUMBER.sub("*", _numbered(name, "0")), []).append((made, names))
    short = {known[name]: t for name, t in sources.items()}
    out, places = dict(sources), {name: i for i, name in enumerate(sources)}
    for name in short:
        for made, names in templates.get(NUMBER.sub("*", name), ()):
            bid = next(iter(NUMBER.findall(name)), "")
            full = [_numbered(n, bid) for n in names]
            if lacking := [n for n in full if n not in short]:
                raise TensorMissing(
                    f"tensor {lacking[0]} is not in the checkpoint; {name} needs it"
                )
            one, *others = (short[n] for n in full)
            for other in others:
                if out.get(other.name) is other:
                    del out[other.name]
            out[one.name] = made(one, *others)
            places[one.name] = max(places[t.name] for t in (one, *others))
    return dict(sorted(out.items(), key=lambda item: places[item[0]]))


def _numbered(name: str, number: str) -> str:
    """The name of a row with its only number put in."""
    return name.format(bid=number, mid=number)


def _joins(m: Map) -> Iterable[tuple[Made, tuple[str, ...]]]:
    """What makes the tensor that a row takes, and the names of what it is made of."""
    if m.times:
        yield product, (m.source, m.times)
    if m.beside:
        yield beside, (m.source, m.beside)
    if m.batch_norm:
        base = m.batch_norm
        weight, bias = f"{base}.weight", f"{base}.bias"
        mean, variance = f"{base}.running_mean", f"{base}.running_var"
        if m.source == weight:
            yield factor, (weight, variance)
        else:
            yield summand, (bias, mean, weight, variance)
