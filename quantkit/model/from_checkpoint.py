"""A Hugging Face checkpoint as a model, through the rows of its architecture. Only headers are read
here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.architectures import find
from quantkit.architectures.rules import DEFAULTS, Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError, SourceNotFound, TensorMissing, TensorShape
from quantkit.gguf import tensor_names
from quantkit.gguf.types import type_by_name
from quantkit.model.model import Model, ModelTensor
from quantkit.model.placement import place, predicting_layers
from quantkit.source.checkpoint import safetensors_of
from quantkit.source.packed import decoded, read
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage.inputs import File
from quantkit.storage.json_files import read_json
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
    directory: Path, outtype: str | None = "auto", pre: str | None = None,
    options: ConversionOptions = DEFAULTS, files: Mapping[str, File] | None = None,
) -> Model:  # fmt: skip
    """A Hugging Face checkpoint directory. `files`: where its weights are, by name, if not in it.

    `outtype` is one of OUTTYPES, or "auto" (bf16 stays, everything else becomes f16, as llama.cpp's
    converter chooses), or None for the widest type of the source: nothing is rounded that a
    quantizer will read. `pre` names the pre-tokenizer where the structure does not tell.
    Raises SourceError, ModelError.
    """
    from quantkit.model.metadata import checkpoint_metadata

    path = _config_file(directory, options)
    arch, config = _read_config(path)
    prefix = "model" if path.name == "config.json" else "consolidated"
    found = {t.name: t for t in safetensors_of(directory, files, prefix)}
    found = {t.name: t for t in decoded(tuple(found.values()), config.values)}
    config = _with_scalars(arch, config, found)
    found |= {n: _computed(n, values, directory) for n, values in arch.added(config).items()}
    shapes = {arch.plain(name): t.shape for name, t in found.items()}
    arch = arch.respelled(config, shapes) or arch
    outtype = _chosen(outtype, found.values())
    config = replace(config, mtp=predicting_layers(arch, config, found, options))
    placed, sources = place(arch, config, found, options)
    for name, compute in reversed(list(arch.computed.items())):
        if (data := compute(config)) is not None:
            sources[name] = source = _computed(name, data, directory)
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
    kv, notes = checkpoint_metadata(directory, arch, config, tensors, file_type, pre)
    notes = (*filter(None, (e.differs(config) for e in arch.assumes)), *notes)
    name = directory.resolve().name
    return Model(name, arch.gguf_arch, tensors, sources, kv, notes=notes)


def _computed(name: str, data: Any, directory: Path) -> SourceTensor:
    return SourceTensor(name, type_by_name("F32"), data.shape, directory, 0, data)


def _config_file(directory: Path, options: ConversionOptions) -> Path:
    """config.json, or params.json where that is asked for or alone."""
    if not directory.is_dir():
        raise SourceNotFound(f"{directory}: no such directory")
    path, own = directory / "config.json", directory / FORMAT
    if options.mistral_format or (own.is_file() and not path.is_file()):
        path = own
    if not path.is_file():
        raise SourceNotFound(f"{directory}: no {path.name} in it; not a checkpoint directory")
    return path


def _read_config(path: Path) -> tuple[Architecture, Config]:
    """The architecture of a checkpoint and its config, checked against what that expects."""
    raw = Config(read_json(path), str(path))
    text = [part for part in map(raw.find, TEXT_CONFIGS) if isinstance(part, dict)][-1:]
    whole, *inner = (_architecture(values) for values in (raw.values, *text))
    name = whole if whole in OWN_NAMES or not any(inner) else inner[0]
    if path.name == FORMAT:
        whole = name = FORMAT
    if not name:
        raise ConfigError(f"{path}: 'architectures' does not name the model")
    arch = find(name)
    values = {**arch.defaults, **raw.values, **dict(*text), "architectures": [name]}
    for ours, theirs in arch.aliases.items():
        if (value := Config(values).find(theirs)) is not None:
            values[ours] = value
    config = Config(values, str(path), wrapper="" if whole == name else whole)
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
    with Files(t.path for t in tensors.values()) as files:
        for key, names in wanted.items():
            values[key] = [float(read(files, tensors[name], 0, 1)[0, 0]) for name in names]
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
