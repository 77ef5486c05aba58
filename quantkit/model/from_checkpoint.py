"""A Hugging Face checkpoint as a model, through the rows of its architecture. Of its weights, only
the headers are read here, and the few that become keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures import find
from quantkit.architectures.rules import DEFAULTS, Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError, SourceNotFound, TensorMissing, TensorShape
from quantkit.gguf import tensor_names
from quantkit.gguf.types import type_by_name
from quantkit.model.model import Model, ModelTensor
from quantkit.model.placement import place, predicting_layers
from quantkit.source.checkpoint import read_tensors
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.packed import decoded, read
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor
from quantkit.tokenizer.mistral import FORMAT

# --outtype -> (general.file_type, the format of the weights): llama.h `llama_ftype`
OUTTYPES = {"f32": (0, "F32"), "f16": (1, "F16"), "bf16": (32, "BF16"), "q8_0": (7, "Q8_0")}
MXFP4_FILE = 38  # general.file_type where experts are kept in MXFP4

# where a model of several modes keeps the config of its text part; the last that is there counts
# (llama.cpp `load_hparams`)
TEXT_CONFIGS = (
    "text_config", "llm_config", "lm_config", "thinker_config.text_config", "language_config",
    "lfm",
)  # fmt: skip
# models that are converted by their own name, whatever their text part calls itself
# (llama.cpp `get_model_architecture`)
OWN_NAMES = (
    "StepVLForConditionalGeneration", "Sarashina2VisionForCausalLM",
    "Exaone4_5_ForConditionalGeneration", "Step3p7ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
)  # fmt: skip


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

    name = _config_file(files, options)
    arch, config = _read_config(files, name)
    prefix = "model" if name == "config.json" else "consolidated"
    stored = {t.name: t for t in decoded(tuple(read_tensors(files, prefix)), config.values)}
    config = _with_scalars(arch, config, stored)
    stored |= {n: _computed(n, values, files) for n, values in arch.added(config).items()}
    shapes = {arch.plain(name): t.shape for name, t in stored.items()}
    arch = arch.respelled(config, shapes) or arch
    outtype = _chosen(outtype, stored.values())
    config = replace(config, mtp=predicting_layers(arch, config, stored, options))
    placed, sources = place(arch, config, stored, options)
    for name, compute in reversed(list(arch.computed.items())):
        if (data := compute(config)) is not None:
            sources[name] = source = _computed(name, data, files)
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


def _computed(name: str, data: Any, files: CheckpointFiles) -> SourceTensor:
    return SourceTensor(name, type_by_name("F32"), data.shape, files.directory, 0, data)


def _config_file(files: CheckpointFiles, options: ConversionOptions) -> str:
    """config.json, or params.json where that is asked for or alone."""
    own = options.mistral_format or (files.has(FORMAT) and not files.has("config.json"))
    name = FORMAT if own else "config.json"
    if not files.has(name):
        raise SourceNotFound(f"{files.where}: no {name} in it; not a checkpoint directory")
    return name


def _read_config(files: CheckpointFiles, name: str) -> tuple[Architecture, Config]:
    """The architecture of a checkpoint and its config, checked against what that expects."""
    label = files.label(name)
    raw = Config(files.json(name), label)
    text = [part for part in map(raw.find, TEXT_CONFIGS) if isinstance(part, dict)][-1:]
    whole, *inner = (_architecture(values) for values in (raw.values, *text))
    used = whole if whole in OWN_NAMES or not any(inner) else inner[0]
    if name == FORMAT:
        whole = used = FORMAT
    if not used:
        raise ConfigError(f"{label}: 'architectures' does not name the model")
    arch = find(used)
    values = {**arch.defaults, **raw.values, **dict(*text), "architectures": [used]}
    for ours, theirs in arch.aliases.items():
        if (value := Config(values).find(theirs)) is not None:
            values[ours] = value
    config = Config(values, label, wrapper="" if whole == used else whole)
    arch = arch.variant(config) or arch
    for expect in arch.expects:
        expect.check(config)
    return arch, config


def _architecture(values: Mapping[str, Any]) -> str:
    """The name that a config gives its model, or none."""
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _with_scalars(
    arch: Architecture, config: Config, sources: dict[str, SourceTensor]
) -> Config:  # fmt: skip
    """The config with the values that the checkpoint keeps as tensors of one element, one a layer.
    They are taken out of `sources`. Raises TensorMissing, TensorShape."""
    if not arch.scalars:
        return config
    by_name = {arch.plain(name): name for name in sources}
    values = dict(config.values)
    wanted = {
        key: [template.format(bid=bid) for bid in range(config.layers)]
        for key, template in arch.scalars.items()
    }
    if lost := [name for names in wanted.values() for name in names if name not in by_name]:
        raise TensorMissing(
            f"tensor {lost[0]} is not in the checkpoint ({len(lost)} such are missing)"
        )
    tensors = {name: sources.pop(by_name[name]) for names in wanted.values() for name in names}
    for name, t in tensors.items():
        if t.n_rows != 1:
            raise TensorShape(f"tensor {name}: shape {list(t.shape)} found, one value expected")
    with Files(t.path for t in tensors.values()) as opened:
        for key, names in wanted.items():
            values[key] = [float(read(opened, tensors[name], 0, 1)[0, 0]) for name in names]
    return replace(config, values=values)


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
