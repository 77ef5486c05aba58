"""Layers after the last that predict further tokens: how many a checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantkit.architectures.mtp_head import MTP_LAYER, in_each_head
from quantkit.architectures.rules import Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError
from quantkit.model.placement import Layout
from quantkit.source.tensors import SourceTensor


def predicting_layers(
    arch: Architecture,
    config: Config,
    sources: Mapping[str, SourceTensor],
    options: ConversionOptions,
) -> int:
    """How many layers that predict further tokens will be converted.

    Fine-tunes leave them out, or leave them out of config.json: as many as there are count, unless
    it promises more. Raises ConfigError if only they are wanted and there are none.
    """
    declared = 0
    if arch.keeps_mtp and options.mtp != "without":
        declared = arch.mtp(config)
        layout = Layout(arch, replace(config, mtp=max(declared, 1)), options, sources)
        found = {bid for t in sources.values() if (bid := layout.predicted(t)) is not None}
        ahead = found == set(range(config.layers, config.layers + len(found)))
        if not found or (ahead and len(found) > declared):
            declared = len(found)
    if options.mtp == "only" and not declared:
        if arch.mtp(config) and not arch.keeps_mtp:
            raise ConfigError(
                f"{config.where}: the layers of {arch.gguf_arch} that predict further tokens are "
                "not converted"
            )
        raise ConfigError(f"{config.where}: the model has no layers that predict further tokens")
    return declared


def with_shared(
    arch: Architecture, config: Config, sources: Mapping[str, SourceTensor]
) -> dict[str, SourceTensor]:
    """The sources, with those once for each head that several heads share: what stands around
    them, and their layer too where `mtp_share_layers` says so."""
    one_layer = bool(config.find("mtp_share_layers"))
    heads, rows = arch.mtp(config), {m.source for m in arch.maps}
    out: dict[str, SourceTensor] = {}
    for name, t in sources.items():
        plain = arch.plain(name)
        each = in_each_head(plain)
        inside = plain.startswith(MTP_LAYER) and not one_layer
        if heads < 2 or each not in rows or inside:
            out[name] = t
            continue
        copies = (replace(t, name=each.format(mid=mid)) for mid in range(heads))
        out.update((copy.name, copy) for copy in copies)
    return out
