"""A Hugging Face checkpoint as a model, through the rows of its architecture. Only headers are read
here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.architectures import find
from quantkit.architectures.rules import DEFAULTS, Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError, SourceNotFound
from quantkit.gguf import tensor_names
from quantkit.gguf.types import type_by_name
from quantkit.model.model import Model, ModelTensor
from quantkit.model.nvfp4 import precision_keys, with_scales
from quantkit.model.placement import Placed, place, predicting_layers
from quantkit.source.checkpoint import safetensors_of
from quantkit.source.codings import Settings, decoded, read_settings, settings_note
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage.inputs import File
from quantkit.storage.json_files import read_json

# --outtype -> (general.file_type, the format of the weights): llama.h `llama_ftype`
OUTTYPES = {"f32": (0, "F32"), "f16": (1, "F16"), "bf16": (32, "BF16"), "q8_0": (7, "Q8_0")}


# general.file_type where weights are kept in the blocks that they are released in
MXFP4_FILE, NVFP4_FILE = 38, 39
KEPT = {MXFP4_FILE: "MXFP4", NVFP4_FILE: "NVFP4"}
KEPT_FIRST = ("nvfp4", "scales")  # codings of what the converter writes before all else

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

    arch, config = _read_config(directory)
    stored = safetensors_of(directory, files)
    settings = _settings(directory, config)
    found = {t.name: t for t in decoded(stored, settings)}
    outtype = _chosen(outtype, stored, found.values())
    if arch.learned is not None:
        values = {**config.values, **arch.learned(found, _integers)}
        config = replace(config, values={**values, "only_mtp": options.mtp == "only"})
    config = replace(config, mtp=predicting_layers(arch, config, found, options))
    placed, sources = place(arch, config, found, options)
    precision = precision_keys(placed, sources, settings)
    placed = with_scales(placed, sources)
    placed = _with_computed(placed, sources, arch, config, directory)
    tensors = tuple(
        ModelTensor(
            name,
            shape,
            _stored(name, shape, outtype, arch, config, options, sources[segments[0].source]),
            segments,
        )
        for name, (shape, segments) in placed.items()
    )
    file_type = _file_type(outtype, tensors, sources)
    kv, notes = checkpoint_metadata(directory, arch, config, tensors, file_type, pre)
    if precision:
        after = [item.key for item in kv].index("general.quantization_version") + 1
        kv = (*kv[:after], *precision, *kv[after:])
    said = (
        settings_note(stored, settings),
        _dequantized_note(arch, outtype, sources),
        *(e.differs(config) for e in arch.assumes),
    )
    notes = (*filter(None, said), *notes)
    name = directory.resolve().name
    return Model(name, arch.gguf_arch, tensors, sources, kv, notes=notes)


def _read_config(directory: Path) -> tuple[Architecture, Config]:
    """The architecture of a checkpoint and its config, checked against what that expects."""
    if not directory.is_dir():
        raise SourceNotFound(f"{directory}: no such directory")
    path = directory / "config.json"
    if not path.is_file():
        raise SourceNotFound(f"{directory}: no config.json in it; not a checkpoint directory")
    raw = Config(read_json(path), str(path))
    text = [part for part in map(raw.find, TEXT_CONFIGS) if isinstance(part, dict)][-1:]
    whole, *inner = (_architecture(values) for values in (raw.values, *text))
    name = whole if whole in OWN_NAMES or not any(inner) else inner[0]
    if not name:
        raise ConfigError(f"{path}: 'architectures' does not name the model")
    arch = find(name)
    values = {**arch.defaults, **raw.values, **dict(*text), "architectures": [name]}
    if (generation := directory / "generation_config.json").is_file():
        values["generation_config"] = read_json(generation)
    for ours, theirs in arch.aliases.items():
        known = Config(values, str(path))
        if (value := theirs(known) if callable(theirs) else known.find(theirs)) is not None:
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


def _integers(t: SourceTensor) -> list[int]:
    """The values of a small tensor of integers."""
    with Files((t.path,)) as files:
        return [int(n) for n in files.read_rows(t, 0, t.n_rows).ravel()]


def _settings(directory: Path, config: Config) -> Settings | None:
    """How the weights are kept, as the config says or ModelOpt's file. Raises ConfigError,
    CorruptFile."""
    path = directory / "hf_quant_config.json"
    modelopt = read_json(path) if path.is_file() else None
    return read_settings(config.values, modelopt, config.where)


def _with_computed(
    placed: Placed, sources: dict[str, SourceTensor], arch: Architecture, config: Config,
    directory: Path,
) -> Placed:  # fmt: skip
    """The tensors with those that are computed from the config, which stand after what is kept in
    NVFP4 and before all else. Adds them to `sources`."""
    computed: Placed = {}
    for name, compute in arch.computed.items():
        if (data := compute(config)) is not None:
            source = SourceTensor(name, type_by_name("F32"), data.shape, directory, 0, data)
            sources[name] = source
            computed[name] = data.shape, (Segment(name, 0, 0, source.n_rows),)
    kept = {n: t for n, t in placed.items() if sources[t[1][0].source].coding in KEPT_FIRST}
    return {**kept, **computed, **placed}


def _file_type(
    outtype: str, tensors: Iterable[ModelTensor], sources: Mapping[str, SourceTensor]
) -> int:
    """`general.file_type`, as llama.cpp's converter labels files with weights in blocks."""
    stored = {t.stored for t in tensors}
    if any(t.coding == "mxfp4_pairs" for t in sources.values()):
        return MXFP4_FILE
    if outtype != "q8_0" and stored & {"NVFP4", "MXFP4"}:
        return NVFP4_FILE if "NVFP4" in stored else MXFP4_FILE
    return OUTTYPES[outtype][0]


def _dequantized_note(
    arch: Architecture, outtype: str, sources: Mapping[str, SourceTensor]
) -> str | None:
    """A line for people where NVFP4 is not kept."""
    n = sum(t.coding == "nvfp4_floats" for t in sources.values())
    if not n:
        return None
    return (
        f"{n} matrices in NVFP4 are written in {OUTTYPES[outtype][1]}: llama.cpp computes without "
        f"their scales in {arch.gguf_arch}, or cannot hold their rows"
    )


def _chosen(
    outtype: str | None, stored: Iterable[SourceTensor], sources: Iterable[SourceTensor]
) -> str:
    """The outtype. "auto" looks at the tensors as they are stored, scales and all."""
    if outtype is None:
        dtypes = {t.ggml.name for t in sources if len(t.shape) >= 2}
        return next((d.lower() for d in ("F32", "BF16", "F16") if d in dtypes), "f16")
    if outtype == "auto":
        found = (t.ggml.name for t in stored if len(t.shape) >= 2)
        return next((d.lower() for d in found if d in ("BF16", "F16")), "f16")
    return outtype


def _stored(
    name: str, shape: tuple[int, ...], outtype: str, arch: Architecture, config: Config,
    options: ConversionOptions, source: SourceTensor,
) -> str:  # fmt: skip
    wanted, role = type_by_name(OUTTYPES[outtype][1]), tensor_names.parse(name)
    if not source.ggml.is_float:
        return source.ggml.name
    fp8 = source.coding == "scaled" and source.parts[0].raw != "I8"
    if fp8 and (options.fp8_as_q8 or arch.keeps_types):
        wanted = type_by_name("Q8_0")
    elif arch.keeps_types and source.ggml.name in ("F32", "BF16") and not source.coding:
        wanted = source.ggml
    ahead = role.bid is not None and role.bid >= config.layers
    rounds = arch.rounds_ahead if ahead else arch.rounds
    exact = role.role in arch.exact or tensor_names.stays_f32(role, len(shape))
    if arch.keeps_types and len(shape) > 1:
        exact = False
    if exact and role.role not in rounds:
        return "F32"
    return wanted.name if shape[-1] % wanted.block_size == 0 else "F16"
