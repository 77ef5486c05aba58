"""A Hugging Face checkpoint as a model, through the rows of its architecture. Of its weights, only
the headers are read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from quantkit.architectures import find
from quantkit.architectures.rules import DEFAULTS, Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError, SourceNotFound
from quantkit.gguf import tensor_names
from quantkit.gguf.types import type_by_name
from quantkit.model.model import Model, ModelTensor
from quantkit.model.placement import place, predicting_layers
from quantkit.source.checkpoint import read_tensors
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.packed import decoded
from quantkit.source.segments import Segment
from quantkit.source.tensors import SourceTensor

# --outtype -> (general.file_type, the format of the weights): llama.h `llama_ftype`
OUTTYPES = {"f32": (0, "F32"), "f16": (1, "F16"), "bf16": (32, "BF16"), "q8_0": (7, "Q8_0")}
MAX_LAYERS = 100_000
MXFP4_FILE = 38  # general.file_type where experts are kept in MXFP4


def from_checkpoint(
    files: CheckpointFiles, outtype: str | None = "auto", pre: str | None = None,
    options: ConversionOptions = DEFAULTS,
) -> Model:  # fmt: skip
    """A Hugging Face checkpoint as a model.

    `outtype` is one of OUTTYPES, or "auto" (bf16 stays, everything else becomes f16, as llama.cpp's
    converter chooses), or None for the widest type of the source, so that nothing is rounded
    before a quantizer reads it. `pre` names the pre-tokenizer, which is recognised otherwise.
    Raises SourceError, ModelError.
    """
    from quantkit.model.metadata import checkpoint_metadata

    arch, config = _read_config(files)
    stored = {t.name: t for t in decoded(tuple(read_tensors(files)), config.values)}
    _check_layers(config, stored)
    outtype = _chosen(outtype, stored.values())
    config = replace(config, mtp=predicting_layers(arch, config, stored, options))
    placed, sources = place(arch, config, stored, options)
    for name, compute in reversed(list(arch.computed.items())):
        if (data := compute(config)) is not None:
            source = SourceTensor(name, type_by_name("F32"), data.shape, files.directory, 0, data)
            sources[name] = source
            placed = {name: (data.shape, (Segment(name, 0, 0, source.n_rows),)), **placed}
    tensors = tuple(
        ModelTensor(
            name,
            shape,
            _stored(name, shape, outtype, arch, options, sources[segments[0].source]),
            segments,
        )
        for name, (shape, segments) in placed.items()
    )
    file_type = OUTTYPES[outtype][0]
    if outtype != "q8_0" and any(t.stored == "MXFP4" for t in tensors):
        file_type = MXFP4_FILE
    kv, notes = checkpoint_metadata(files, arch, config, tensors, file_type, pre)
    notes = (*filter(None, (e.differs(config) for e in arch.assumes)), *notes)
    return Model(files.name, arch.gguf_arch, tensors, sources, kv, notes=notes)


def _read_config(files: CheckpointFiles) -> tuple[Architecture, Config]:
    """The architecture of a checkpoint and its config, checked against what that expects."""
    if not files.has("config.json"):
        raise SourceNotFound(f"{files.where}: no config.json in it; not a checkpoint directory")
    raw, label = files.json("config.json"), files.label("config.json")
    arch = find(_architecture_name(raw, label))
    text = raw.get("text_config")  # the text part of a model of several modes
    values = {**arch.defaults, **raw, **(text if isinstance(text, dict) else {})}
    for ours, theirs in arch.aliases.items():
        if (value := Config(values).find(theirs)) is not None:
            values[ours] = value
    config = Config(values, label)
    if config.layers > MAX_LAYERS:  # before anything is asked of each
        raise ConfigError(f"{label}: {config.layers} layers; {MAX_LAYERS} are read")
    arch = arch.variant(config) or arch
    for expect in arch.expects:
        expect.check(config)
    return arch, config


def _check_layers(config: Config, stored: Mapping[str, SourceTensor]) -> None:
    """A layer has a tensor at least. Raises ConfigError."""
    if config.layers > len(stored):
        raise ConfigError(
            f"{config.where}: num_hidden_layers is {config.layers}, and there are {len(stored)} "
            "tensors in all"
        )


def _architecture_name(raw: Mapping[str, object], label: str) -> str:
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError(f"{label}: 'architectures' does not name the model")
    return names[0]


def _chosen(outtype: str | None, sources: Iterable[SourceTensor]) -> str:
    dtypes = [t.ggml.name for t in sources if len(t.shape) >= 2]
    if outtype is None:
        return next((d.lower() for d in ("F32", "BF16", "F16") if d in dtypes), "f16")
    if outtype == "auto":
        return next((d.lower() for d in dtypes if d in ("BF16", "F16")), "f16")
    return outtype


def _stored(
    name: str, shape: tuple[int, ...], outtype: str, arch: Architecture, options: ConversionOptions,
    source: SourceTensor,
) -> str:  # fmt: skip
    wanted, role = type_by_name(OUTTYPES[outtype][1]), tensor_names.parse(name)
    if not source.ggml.is_float:
        return source.ggml.name
    if options.fp8_as_q8 and source.coding == "fp8":
        wanted = type_by_name("Q8_0")
    if role.role not in arch.rounds and tensor_names.stays_f32(role, len(shape)):
        return "F32"
    return wanted.name if shape[-1] % wanted.block_size == 0 else "F16"
