"""A Hugging Face checkpoint as a model, through the rows of its architecture. Of its weights, only
the headers are read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.architectures import find
from quantkit.architectures.rules import DEFAULTS, Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError, SourceNotFound
from quantkit.gguf import tensor_names
from quantkit.gguf.types import type_by_name
from quantkit.model.model import Model, ModelTensor
from quantkit.model.placement import place, predicting_layers
from quantkit.model.pooling import is_reranker, with_head
from quantkit.source.checkpoint import read_tensors
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.mistaken import no_model
from quantkit.source.packed import decoded
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor
from quantkit.tokenizer.vocabulary import malformed

# --outtype -> (general.file_type, the format of the weights): llama.h `llama_ftype`
OUTTYPES = {"f32": (0, "F32"), "f16": (1, "F16"), "bf16": (32, "BF16"), "q8_0": (7, "Q8_0")}
MXFP4_FILE = 38  # general.file_type where experts are kept in MXFP4

# where a model of several modes keeps the config of its text part; the last that is there counts
# (llama.cpp `load_hparams`)
TEXT_CONFIGS = (
    "text_config", "llm_config", "lm_config", "thinker_config.text_config", "language_config",
    "lfm",
)  # fmt: skip
HEADLESS = ("LlamaModel", "Qwen2Model", "Qwen3Model")  # saved without a head
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
    label = files.label("config.json")
    with malformed(ConfigError, f"{label}: its values are not of the kinds that they should be"):
        arch, config = _read_config(files)
    with malformed(ConfigError, f"{label} contradicts itself{_odd_lists(config)}"):
        return _converted(files, arch, config, outtype, pre, options)


def _odd_lists(config: Config) -> str:
    """Lists that should have a value for each layer and do not, as part of a message."""
    odd = (
        f"'{name}' is {len(value)} values"
        for name, value in config.values.items()
        if "layer" in name and isinstance(value, list) and len(value) != config.layers
    )
    told = ", ".join(odd)
    return f": {told} for {config.layers} layers" if told else ""


def _converted(
    files: CheckpointFiles, arch: Architecture, config: Config, outtype: str | None,
    pre: str | None, options: ConversionOptions,
) -> Model:  # fmt: skip
    from quantkit.model.metadata import checkpoint_metadata

    stored = {t.name: t for t in decoded(tuple(read_tensors(files)), config.values)}
    outtype = _chosen(outtype, stored.values())
    config = replace(config, mtp=predicting_layers(arch, config, stored, options))
    placed, sources = place(arch, config, stored, options)
    for name, compute in reversed(list(arch.computed.items())):
        if (data := compute(config)) is not None:
            source = SourceTensor(name, type_by_name("F32"), data.shape, files.directory, 0, data)
            sources[name] = source
            placed = {name: (data.shape, (Segment(name, 0, 0, source.n_rows),)), **placed}
    if is_reranker(files, arch, config):
        placed = with_head(placed, sources, files, config)
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
    said = (
        _predicting_note(arch, config),
        _head_note(config, stored, sources),
        *(e.differs(config) for e in arch.assumes),
    )
    notes = (*filter(None, said), *notes)
    return Model(files.name, arch.gguf_arch, tensors, sources, kv, notes=notes)


def _read_config(files: CheckpointFiles) -> tuple[Architecture, Config]:
    """The architecture of a checkpoint and its config, checked against what that expects."""
    if not files.has("config.json"):
        what = no_model(files)
        why = f"it is {what}" if what else "not a checkpoint directory"
        raise SourceNotFound(f"{files.where}: no config.json in it; {why}")
    label = files.label("config.json")
    raw = Config(files.json("config.json"), label)
    text = [part for part in map(raw.find, TEXT_CONFIGS) if isinstance(part, dict)][-1:]
    whole, *inner = (_architecture(values) for values in (raw.values, *text))
    name = whole if whole in OWN_NAMES or not any(inner) else inner[0]
    if not name:
        raise ConfigError(f"{label}: 'architectures' does not name the model")
    arch = find(name)
    values = {**arch.defaults, **raw.values, **dict(*text), "architectures": [name]}
    for ours, theirs in arch.aliases.items():
        if (value := Config(values).find(theirs)) is not None:
            values[ours] = value
    if name in HEADLESS or files.has("modules.json"):
        values["tie_word_embeddings"] = True
    config = Config(values, label, wrapper="" if whole == name else whole)
    arch = arch.variant(config) or arch
    for expect in arch.expects:
        expect.check(config)
    return arch, config


def _architecture(values: Mapping[str, Any]) -> str:
    """The name that a config gives its model, or none."""
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _predicting_note(arch: Architecture, config: Config) -> str | None:
    """A line where the weights have more layers that predict further tokens than is said."""
    if config.mtp <= (declared := arch.mtp(config)):
        return None
    return (
        f"{config.where} says {declared} layers that predict further tokens, and the weights have "
        f"{config.mtp}: they are kept (--no-mtp leaves them out)"
    )


def _head_note(
    config: Config, stored: Mapping[str, SourceTensor], used: Mapping[str, SourceTensor]
) -> str | None:
    """A line where a model is tied and its head was trained apart: three rows tell."""
    if config.find("tie_word_embeddings") is not True:
        return None
    head, table = (
        next((t for name, t in stored.items() if name.endswith(end)), None)
        for end in ("lm_head.weight", "embed_tokens.weight")
    )
    if head is None or table is None or head.shape != table.shape or head.parts or table.parts:
        return None
    with Files([head.path, table.path]) as files:
        rows = (0, head.n_rows // 2, head.n_rows - 1)
        if all(
            np.array_equal(files.read_rows(head, i, 1), files.read_rows(table, i, 1)) for i in rows
        ):
            return None
    kept = "it is kept" if head.name in used else "it is left out"
    return (
        f"{head.name} is not the embedding, to which config.json ties it (tie_word_embeddings): "
        f"{kept}, and transformers uses the embedding"
    )


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
