"""What stands beside NVFP4 weights in a GGUF file: the scales of tensors, in tensors of their own,
and the names of those that llama.cpp is not to multiply with activations of 4 bits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from quantkit.gguf.container import KeyValue, array
from quantkit.model.placement import Placed
from quantkit.source.codings import Settings
from quantkit.source.codings.nvfp4 import all_ones, scales
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor

_KEYS = _NAMES, _PRECISIONS = "general.tensor_extra.name", "general.tensor_extra.prec_a4"
_EXPERT = re.compile(r"\.experts\.\d+\.")


def with_scales(placed: Placed, sources: dict[str, SourceTensor]) -> Placed:
    """The tensors with `.scale` and `.input_scale` after each of NVFP4: one value, or one an
    expert. Scales that are all 1 are left out, as llama.cpp's converter does; a `.scale` that the
    model has of its own (Gemma 4) is multiplied in.

    Adds the scales to `sources`. Raises SourceError.
    """
    kept = {name: _parts(name, placed, sources) for name in placed}
    if not any(kept.values()):
        return placed
    out: Placed = {}
    own = {n: sources[t[1][0].source] for n, t in placed.items() if n.endswith(".scale")}
    read = [part for parts in kept.values() for t in parts for part in t.parts]
    with Files(t.path for t in (*read, *own.values())) as files:
        for name, found in placed.items():
            if name in out:
                continue
            out[name] = found
            for ending in (".scale", ".input_scale") if kept[name] else ():
                beside = name.removesuffix(".weight") + ending
                times = own.get(beside)
                t = scales(beside, kept[name], ending == ".input_scale", times)
                if times is not None:
                    del sources[times.name]
                if times is not None or not all_ones(files, t):
                    sources[beside] = t
                    out[beside] = (t.shape, (Segment(beside, 0, 0, t.n_rows),))
    return out


def _parts(name: str, placed: Placed, sources: Mapping[str, SourceTensor]) -> list[SourceTensor]:
    """The matrices of NVFP4 that a tensor is made of, in the order of its experts."""
    found = dict.fromkeys(s.source for s in placed[name][1])
    return [sources[s] for s in found if sources[s].coding == "nvfp4"]


def precision_keys(
    placed: Placed, sources: Mapping[str, SourceTensor], settings: Settings
) -> tuple[KeyValue, ...]:
    """ModelOpt's W4A16_NVFP4: activations stay in 16 bits, where llama.cpp would round them to
    four. The keys that say so, or none."""
    names = sorted(
        name
        for name in placed
        if (parts := _parts(name, placed, sources))
        and _algorithm(parts[0].name, settings) == "W4A16_NVFP4"
    )
    if not names:
        return ()
    return array(_NAMES, names), array(_PRECISIONS, [False] * len(names))


def by_new_names(kv: Sequence[KeyValue], old_names: Mapping[str, str]) -> tuple[KeyValue, ...]:
    """The key-values where tensors have other names (`old_names` by the new ones), or are gone."""
    values = {item.key: item.value for item in kv}
    said = dict(zip(values.get(_NAMES, ()), values.get(_PRECISIONS, ()), strict=False))
    left = {new: said[old] for new, old in sorted(old_names.items()) if old in said}
    changed = {}
    if left:
        changed = {
            _NAMES: array(_NAMES, [*left]),
            _PRECISIONS: array(_PRECISIONS, [*left.values()]),
        }
    return tuple(
        changed.get(item.key, item) for item in kv if item.key in changed or item.key not in _KEYS
    )


def _algorithm(name: str, settings: Settings) -> str:
    """What ModelOpt says of the module of a weight, or of the nearest that it is in."""
    layers = {k.replace("language_model.", ""): v for k, v in settings.layers.items()}
    module = _EXPERT.sub(".experts.", name.replace("language_model.", "")).removesuffix(".weight")
    while module:
        if module in layers:
            return layers[module]
        module = module.rpartition(".")[0]
    return settings.algorithm
