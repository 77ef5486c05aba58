"""The encoders of images and sound of a checkpoint as a model of its own: the file that llama.cpp
takes as `--mmproj` beside the text's. Of the weights, only the headers are read here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.class_defaults import class_defaults, class_of
from quantkit.architectures.config import MOST_LAYERS
from quantkit.architectures.rules import DEFAULTS, Config, ConversionOptions
from quantkit.encoders import find_encoder, supported_encoders
from quantkit.encoders.common import AUDIO, VISION, count
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError, TensorMissing, malformed
from quantkit.gguf.container import KeyValue
from quantkit.gguf.types import type_by_name
from quantkit.loading.kinds import PREFIX
from quantkit.model.checkpoint_config import TEXT_CONFIGS, architecture_of, config_file
from quantkit.model.decisions import OWN_ENCODERS, decision_model
from quantkit.model.from_checkpoint import OUTTYPES, chosen_outtype, coding_settings
from quantkit.model.metadata import add_general, add_keys
from quantkit.model.model import Model, ModelTensor
from quantkit.model.names import known_names
from quantkit.model.placement import place
from quantkit.model.prepared import beside, computed, further
from quantkit.source.checkpoint import read_tensors
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.codings import decoded
from quantkit.source.codings.codebooks import codebooks
from quantkit.source.tensors import SourceTensor
from quantkit.tokenizer.mistral import FORMAT

# tables of positions, which the converter never rounds (`conversion/base.py`, prepare_tensors)
_POSITIONS = ("v.position_embd.weight", "a.position_embd.weight")


def names_encoder(files: CheckpointFiles) -> bool:
    """Whether the config of a checkpoint has the table of an encoder: by the name that most give
    it, or by that of its family."""
    name = "config.json" if files.has("config.json") else FORMAT
    raw = files.optional(name) or {}
    thinker = raw.get("thinker_config")
    tables = [raw, *([thinker] if isinstance(thinker, dict) else [])]
    if raw.get("vision_n_layers") or any(
        isinstance(table.get(part), dict) for table in tables for part in (VISION, AUDIO)
    ):
        return True
    known = FORMAT if name == FORMAT else _name(raw)
    if known not in supported_encoders():
        return False
    arch = find_encoder(known)
    return any(_table(arch, part, raw, name) is not None for part in (VISION, AUDIO))


def _table(arch: Encoder, part: str, raw: Mapping[str, Any], label: str) -> dict[str, Any] | None:
    """What a config says of an encoder, under the name that its family gives it."""
    place = arch.tables.get(part, part)
    found = place(Config(raw, label)) if callable(place) else Config(raw).find(place)
    return found if isinstance(found, dict) else None


def encoder_from_checkpoint(
    files: CheckpointFiles,
    outtype: str | None = "auto",
    options: ConversionOptions = DEFAULTS,
) -> Model:
    """The encoders of a Hugging Face checkpoint as a model; `outtype` as for `from_checkpoint`.
    Raises SourceError, ModelError."""
    name = config_file(files, options)
    label = files.label(name)
    with malformed(ConfigError, f"{label}: its values are not of the kinds that they should be"):
        arch, config = _read_config(files, name)
    with malformed(ConfigError, f"{label} contradicts itself"):
        return _converted(files, arch, config, outtype, options)


def _name(config: Mapping[str, Any]) -> str:
    """The architecture that an encoder is known by: its own, where its table names one."""
    table = config.get(VISION)
    own = architecture_of(table) if isinstance(table, dict) else ""
    return own or architecture_of(config)


def _read_config(files: CheckpointFiles, name: str) -> tuple[Encoder, Config]:
    label, raw = files.label(name), files.json(name)
    if not (known := FORMAT if name == FORMAT else _name(raw)):
        raise ConfigError(f"{label}: 'architectures' does not name the model")
    if (decides := decision_model(files, Config(raw, label))) in OWN_ENCODERS:
        known = decides
    arch = find_encoder(known)
    values = raw = {**raw, **{name: beside(files, file) for name, file in arch.files.items()}}
    for part in (VISION, AUDIO):
        table = _table(arch, part, raw, label)
        values[part] = None if table is None else {**arch.defaults.get(part, {}), **table}
    if values[VISION] is None and values[AUDIO] is None:
        raise ConfigError(
            f"{label}: neither a vision_config nor an audio_config is in it: the model has no "
            "encoder; leave out --mmproj"
        )
    texts = [part for part in map(Config(raw).find, TEXT_CONFIGS) if isinstance(part, dict)][-1:]
    assumed = class_defaults(class_of(raw, *texts))
    values["text_config"] = {
        **arch.defaults.get("text_config", {}), **assumed, **raw, **dict(*texts)
    }  # fmt: skip
    values = {**{k: v for k, v in arch.defaults.items() if not isinstance(v, dict)}, **values}
    values["preprocessor"] = _preprocessor(files)
    values["architectures"] = [known]
    config = Config(values, label)
    for key, token in arch.tokens(config).items():
        values[key] = _token(files, token)
    for ours, theirs in arch.aliases.items():
        part, _, key = ours.rpartition(".")
        value = theirs(config) if callable(theirs) else config.find(theirs)
        if isinstance(config.find(part), dict) and value is not None:
            values[part] = {**values[part], key: value}
    layers = max(count(config, VISION), count(config, AUDIO))
    if layers > MOST_LAYERS:
        raise ConfigError(f"{label}: an encoder of {layers} layers; {MOST_LAYERS} are read")
    values["num_hidden_layers"] = max(layers, 1)
    chosen = arch.variant(config)
    arch = chosen if isinstance(chosen, Encoder) else arch
    for expect in arch.expects:
        expect.check(config)
    return arch, config


def _preprocessor(files: CheckpointFiles) -> dict[str, Any]:
    """What is done to pixels and waves before the encoder: of processor_config.json, or else of
    preprocessor_config.json."""
    out: dict[str, Any] = {}
    for name, inner in (
        ("preprocessor_config.json", "media_proc_cfg"),
        ("processor_config.json", "image_processor"),
    ):
        found = files.optional(name) or {}
        table = found.get(inner)
        out |= found | (table if isinstance(table, dict) else {})
    return out


def _token(files: CheckpointFiles, token: str) -> int:
    """The id of an added token. Raises ConfigError, CorruptFile."""
    decoder = (files.optional("tokenizer_config.json") or {}).get("added_tokens_decoder")
    for i, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if isinstance(entry, dict) and entry.get("content") == token and i.isdecimal():
            return int(i)
    added = (files.optional("tokenizer.json") or {}).get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        found = entry.get("id") if isinstance(entry, dict) and entry.get("content") == token else 0
        if isinstance(found, int) and found:
            return found
    special = (files.optional("tekken.json") or {}).get("special_tokens")
    for entry in special if isinstance(special, list) else []:
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if isinstance(rank, int) and entry.get("token_str") == token:
            return rank
    raise ConfigError(
        f"{files.where}: no token {token} in tokenizer_config.json or tokenizer.json, whose "
        "embedding the encoder takes"
    )


def _converted(
    files: CheckpointFiles,
    arch: Encoder,
    config: Config,
    outtype: str | None,
    options: ConversionOptions,
) -> Model:
    own_format = config.find("architectures") == [FORMAT]
    stored = read_tensors(files, "consolidated" if own_format else "model")
    stored += further(files, arch, {t.name for t in stored})
    own, lent = _mine(arch, stored)
    arch = replace(arch, drops=(*arch.drops, *arch.unseen))
    settings = coding_settings(files, config)
    by_name = {t.name: _one(t) for t in decoded([*own, *lent], settings)}
    names = known_names(by_name, arch.maps, arch.plain)
    shapes = {names[name]: list(t.shape) for name, t in by_name.items()}
    by_name = _gathered(arch, by_name)
    config = replace(config, values={**config.values, "shapes": shapes})
    seen = arch.respelled(config, {name: tuple(shape) for name, shape in shapes.items()})
    arch = seen if isinstance(seen, Encoder) else arch
    by_name |= {n: computed(n, values, files) for n, values in arch.added(config).items()}
    outtype = chosen_outtype(outtype, own, by_name.values())
    placed, sources = place(arch, config, by_name, options)
    tensors = tuple(
        ModelTensor(name, shape, _stored(arch, name, shape, outtype), segments)
        for name, (shape, segments) in placed.items()
    )
    kv = _metadata(files, arch, config, tensors, OUTTYPES[outtype][0], options)
    notes = (arch.note,) if arch.note else ()
    partial = {t.name for t in lent} | {n for n in sources if arch.plain(n) in arch.cuts}
    name = f"{PREFIX}{files.name}"
    return Model(
        name, arch.gguf_arch, tensors, sources, kv, frozenset(partial & sources.keys()), notes
    )


def _mine(
    arch: Encoder, stored: Sequence[SourceTensor]
) -> tuple[list[SourceTensor], list[SourceTensor]]:
    """The tensors of the encoder, and those of the text of which it wants a row."""
    dropped = [re.compile(pattern) for pattern in arch.drops]
    names = known_names((t.name for t in stored), arch.maps, arch.plain)
    known = {m.source for m in arch.maps}
    own, lent = [], []
    for t in stored:
        if "language_model." not in t.name and not any(d.fullmatch(t.name) for d in dropped):
            own.append(t)
        elif names[t.name] in known:
            lent.append(t)
    return own, lent


def _gathered(arch: Encoder, by_name: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors with the codebooks among them as one. Raises TensorMissing, TensorShape."""
    if not arch.codebooks:
        return by_name
    pattern, name = arch.codebooks
    numbered = {
        int(re.findall(r"\d+", t.name)[0]): t
        for t in by_name.values() if re.fullmatch(pattern, t.name)
    }  # fmt: skip
    books = [numbered.get(i) for i in range(len(numbered))]
    if not books or None in books:
        raise TensorMissing(f"the codebooks {pattern} are not all in the checkpoint")
    rest = {n: t for n, t in by_name.items() if t not in books}
    return {**rest, name: codebooks(name, [t for t in books if t is not None])}


def _one(t: SourceTensor) -> SourceTensor:
    """A number without an axis as a vector of one."""
    return t if t.shape else replace(t, shape=(1,))


def _stored(arch: Encoder, name: str, shape: tuple[int, ...], outtype: str) -> str:
    """The type of a tensor, as the converter chooses it."""
    wanted = type_by_name(OUTTYPES[outtype][1])
    if len(shape) <= 1 or name.endswith("_norm.weight"):
        return "F32"
    fixed = next((kind for pattern, kind in arch.forced if re.fullmatch(pattern, name)), "")
    if fixed:
        return fixed if fixed != "kernel" else "F16" if outtype == "f16" else "F32"
    if name in _POSITIONS or not name.endswith(".weight"):
        return "F32"
    return wanted.name if shape[-1] % wanted.block_size == 0 else "F16"


def _metadata(
    files: CheckpointFiles,
    arch: Encoder,
    config: Config,
    tensors: tuple[ModelTensor, ...],
    file_type: int,
    options: ConversionOptions,
) -> tuple[KeyValue, ...]:
    from quantkit.gguf.key_values import KeyValueWriter

    writer = KeyValueWriter(arch.gguf_arch)
    add_general(writer, files, tensors, "mmproj", options)
    add_keys(writer, arch.early_keys, config)
    writer.add_file_type(file_type)
    add_keys(writer, arch.keys, config)
    writer.add_quantization_version(2)  # GGML_QUANT_VERSION
    return writer.entries
