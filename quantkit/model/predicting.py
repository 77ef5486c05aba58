"""Layers after the last that predict further tokens: how many a checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantkit.architectures.mtp_head import MTP_LAYER, in_each_head
from quantkit.architectures.rules import Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError
from quantkit.loading.ahead import ALONE
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
    it promises more. Where all are left out, those that it promises count as in llama.cpp's
    converter if llama.cpp does without their tensors, and none do otherwise. Raises ConfigError if
    only they are wanted and there are none.
    """
    declared = 0
    found: set[int] = set()
    if arch.keeps_mtp and options.mtp != "without":
        declared = arch.mtp(config)
        found = _found(Layout(arch, replace(config, mtp=max(declared, 1)), options, sources))
        ahead = found == set(range(config.layers, config.layers + len(found)))
        if not found:
            declared = _promised(arch, config)
        elif ahead and len(found) > declared:
            declared = len(found)
    if options.mtp == "only" and not found:
        if arch.mtp(config) and not arch.keeps_mtp:
            raise ConfigError(
                f"{config.where}: the layers of {arch.gguf_arch} that predict further tokens are "
                "not converted"
            )
        raise ConfigError(f"{config.where}: the model has no layers that predict further tokens")
    return declared


def _found(layout: Layout) -> set[int]:
    """The layers that a checkpoint has, of those after the last."""
    return {bid for t in layout.sources.values() if (bid := layout.predicted(t)) is not None}


def _promised(arch: Architecture, config: Config) -> int:
    """How many layers count of which there is no tensor."""
    says = arch.says_mtp is None or config.find(arch.says_mtp) is not None
    return arch.mtp(config) if says and arch.gguf_arch in ALONE else 0


def predicting_note(
    arch: Architecture, config: Config, sources: Mapping[str, SourceTensor]
) -> str | None:
    """A line where the weights have more layers that predict further tokens than is said, or none
    of them."""
    if config.mtp > (declared := arch.mtp(config)):
        return (
            f"{config.where} says {declared} layers that predict further tokens, and the weights "
            f"have {config.mtp}: they are kept (--no-mtp leaves them out)"
        )
    if config.mtp and not _found(Layout(arch, config, ConversionOptions(), sources)):
        return (
            f"{config.where} says {declared} layers that predict further tokens, and the weights "
            "have none: llama.cpp runs the model without them (--no-mtp leaves them out of the "
            "metadata as well)"
        )
    return None


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
