"""What family a checkpoint is of, and its config as that family reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures import find
from quantkit.architectures.class_defaults import class_defaults, class_of
from quantkit.architectures.config import CLASS
from quantkit.architectures.rope import check_factors, check_said_once
from quantkit.architectures.rules import Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError, SourceNotFound
from quantkit.model.decisions import ENCODER, decision_model, has_head_apart
from quantkit.model.pooling import pooled
from quantkit.model.prepared import beside
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.mistaken import no_model
from quantkit.tokenizer.mistral import FORMAT

# where a model of several modes keeps the config of its text part; the last that is there counts
# (llama.cpp `load_hparams`)
TEXT_CONFIGS = (
    "text_config", "llm_config", "lm_config", "thinker_config.text_config", "language_config",
    "lfm", "transformer_layer_config",
)  # fmt: skip
# the rotary base of llama.cpp's runtime; its converter leaves it out where config.json does, if
# transformers does not know the model
RUNTIME_BASE = 10000.0
HEADLESS = (
    "LlamaModel",
    "LlamaBidirectionalModel",
    "Qwen2Model",
    "Qwen3Model",
    "Qwen3_5TextModel",
)  # saved without a head
# models that are converted by their own name, whatever their text part calls itself
# (llama.cpp `get_model_architecture`)
OWN_NAMES = (
    "StepVLForConditionalGeneration", "Sarashina2VisionForCausalLM",
    "Exaone4_5_ForConditionalGeneration", "Step3p7ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    # to its converter these are of the class that their text part names, and of another kind
    "DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM",
    # drafts, whose layers call themselves otherwise
    "Eagle3Speculator", "Eagle3DraftModel", "DSparkSpeculator", "DSparkDraftModel",
)  # fmt: skip


def config_file(files: CheckpointFiles, options: ConversionOptions) -> str:
    """config.json, or params.json where that is asked for or alone; an encoder's own, where a head
    beside it decides."""
    if has_head_apart(files):
        return ENCODER
    own = options.mistral_format or (files.has(FORMAT) and not files.has("config.json"))
    name = FORMAT if own else "config.json"
    if not files.has(name):
        why = no_model(files) or "not a checkpoint directory"
        raise SourceNotFound(f"{files.where}: no {name} in it; {why}")
    return name


def read_config(
    files: CheckpointFiles, name: str, dspark: bool = False
) -> tuple[Architecture, Config]:
    """The architecture of a checkpoint and its config, checked against what that expects; `dspark`:
    of the draft that it holds beside its model. Raises ConfigError, UnsupportedArchitecture."""
    label = files.label(name)
    raw = Config(files.json(name), label)
    text = _text_part(raw)
    used, whole = _names(raw.values, text)
    if name == FORMAT:
        whole = used = FORMAT
    elif decides := decision_model(files, raw):
        used = decides
    if not used:
        raise ConfigError(f"{label}: 'architectures' does not name the model")
    arch = find(used)
    if dspark and not arch.drafts:
        if not arch.draft:
            raise ConfigError(f"{label}: {used} holds no DSpark draft (--dspark)")
        whole = used = arch.draft
        arch = find(used)
    for table in (raw.values, *text):
        check_said_once(Config(table, label))
    reader = class_of(raw.values, *text)
    of_class = class_defaults(reader)
    assumed = {**arch.defaults, **of_class}
    if not of_class and assumed.get("rope_theta") == RUNTIME_BASE:
        del assumed["rope_theta"]
    tables = {name: beside(files, file) for name, file in arch.files.items()}
    values = {**assumed, **raw.values, **dict(*text), **tables, "architectures": [used]}
    values[CLASS] = reader
    if (generation := files.generation()) is not None:
        values["generation_config"] = generation
    for ours, theirs in arch.aliases.items():
        known = Config(values, label)
        if (value := theirs(known) if callable(theirs) else known.find(theirs)) is not None:
            values[ours] = value
    if used in HEADLESS or files.has("modules.json"):
        values["tie_word_embeddings"] = True
    config = Config(values, label, wrapper="" if whole == used else whole)
    _ = config.layers  # raises before anything is asked of each
    arch = arch.variant(config) or arch
    for expect in arch.expects:
        expect.check(config)
    check_factors(config, arch.gguf_arch, arch.computed, (*arch.keys, *arch.late_keys))
    return arch, pooled(files, arch, config)


def with_target(config: Config, files: CheckpointFiles, options: ConversionOptions) -> Config:
    """A draft's config with what it takes of the model that it drafts for. Raises ConfigError."""
    if options.target is None:
        raise ConfigError(
            f"{config.where}: a draft for another model, whose vocabulary it has: name the "
            "directory of that one (--target-model-dir)"
        )
    if files.weight("mask_embedding.pt") is not None:
        raise ConfigError(f"{files.where}: mask_embedding.pt is not read")
    label, values = str(options.target), CheckpointFiles.local(options.target).json("config.json")
    text = _text_part(Config(values))
    target = Config({**values, **dict(*text)}, label)
    used, _ = _names(values, text)
    sizes = {
        name: target.one(name, default=0)
        for name in ("hidden_size", "num_hidden_layers", "vocab_size")
    }
    more = {"architecture": used, "mrope_section": target.rope.get("mrope_section")}
    return replace(config, values={**config.values, "target": {**sizes, **more}})


def _text_part(config: Config) -> list[dict[str, Any]]:
    """The config of the text part, if a model of several modes has one."""
    return [part for part in map(config.find, TEXT_CONFIGS) if isinstance(part, dict)][-1:]


def _names(values: Mapping[str, Any], text: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The name that says which family it is, and that of the whole; `text`: its text part."""
    whole, *inner = map(architecture_of, (values, *text))
    return whole if whole in OWN_NAMES or not any(inner) else inner[0], whole


def architecture_of(values: Mapping[str, Any]) -> str:
    """The name that a config gives its model, or none."""
    names, layers = values.get("architectures"), values.get("ssm_cfg")
    if not names and isinstance(layers, dict):  # as the authors of Mamba save it
        return f"{layers.get('layer', 'Mamba')}ForCausalLM"
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
