"""A Hugging Face checkpoint as a model, through the rows of its architecture. Of its weights, only
the headers are read here, and the few that become keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from quantkit.architectures.common import OTHER_MODES
from quantkit.architectures.drafts import misfit
from quantkit.architectures.rope import yarn_note
from quantkit.architectures.rules import DEFAULTS, Architecture, Config, ConversionOptions
from quantkit.errors import ConfigError, UsageError, malformed
from quantkit.gguf import tensor_names
from quantkit.gguf.types import type_by_name
from quantkit.loading.asked import does_without_head
from quantkit.model.checkpoint_config import config_file, read_config, with_target
from quantkit.model.model import Model, ModelTensor
from quantkit.model.nvfp4 import precision_keys, with_scales
from quantkit.model.placement import Placed, place
from quantkit.model.pooling import dense_modules, dense_values, is_reranker, with_head
from quantkit.model.predicting import predicting_layers, predicting_note, with_shared
from quantkit.model.prepared import (
    added,
    computed,
    copies,
    further,
    leave_out_twin,
    values_of,
    with_scalars,
)
from quantkit.model.windows import window_note
from quantkit.model.zero_rows import with_zero_rows
from quantkit.source.checkpoint import has_weights, read_tensors
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.codings import Settings, decoded, read, read_settings, settings_note
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor
from quantkit.tokenizer.mistral import FORMAT

# --outtype -> (general.file_type, the format of the weights): llama.h `llama_ftype`
OUTTYPES = {"f32": (0, "F32"), "f16": (1, "F16"), "bf16": (32, "BF16"), "q8_0": (7, "Q8_0"),
            "tq1_0": (36, "TQ1_0"), "tq2_0": (37, "TQ2_0")}  # fmt: skip
TERNARY = ("tq1_0", "tq2_0")  # of three values a weight, which these roles are not rounded to:
UNTERNARY = (
    "token_embd", "per_layer_token_embd", "output", "altup_router", "laurel_l", "laurel_r",
)  # fmt: skip

# general.file_type where weights are kept in the blocks that they are released in
MXFP4_FILE, NVFP4_FILE = 38, 39
KEPT = {MXFP4_FILE: "MXFP4", NVFP4_FILE: "NVFP4"}
_LAYER = re.compile(r"\blayers\.(\d+)\.")
KEPT_FIRST = ("nvfp4", "scales")  # codings of what the converter writes before all else


def from_checkpoint(
    files: CheckpointFiles,
    outtype: str | None = "auto",
    pre: str | None = None,
    options: ConversionOptions = DEFAULTS,
) -> Model:
    """A Hugging Face checkpoint as a model.

    `outtype` is one of OUTTYPES, or "auto" (bf16 stays, everything else becomes f16, as llama.cpp's
    converter chooses), or None for the widest type of the source, so that nothing is rounded
    before a quantizer reads it. `pre` names the pre-tokenizer, which is recognised otherwise.
    Raises SourceError, ModelError.
    """
    name = config_file(files, options)
    label = files.label(name)
    with malformed(ConfigError, f"{label}: its values are not of the kinds that they should be"):
        arch, config = read_config(files, name, options.dspark)
        odd = _odd_lists(config)
        if arch.drafts:
            config = with_target(config, files, options)
    if options.target and not arch.drafts:
        raise UsageError(
            f"{label}: --target-model-dir is for a draft, and {arch.gguf_arch} is none that takes "
            "the vocabulary of another model; leave it out"
        )
    with malformed(ConfigError, f"{label} contradicts itself{odd}"):
        return _converted(files, name, arch, config, outtype, pre, options)


def _odd_lists(config: Config) -> str:
    """Lists that should have a value for each layer and do not, as part of a message."""
    odd = (
        f"'{name}' is {len(value)} values"
        for name, value in config.values.items()
        if "layer" in name and isinstance(value, list) and len(value) != config.layers
        if value or name == "layer_types"  # empty, others say that there are none
        if "only_layers" not in name  # those are lists of some layers
    )
    told = ", ".join(odd)
    return f": {told} for {config.layers} layers" if told else ""


def _converted(
    files: CheckpointFiles,
    name: str,
    arch: Architecture,
    config: Config,
    outtype: str | None,
    pre: str | None,
    options: ConversionOptions,
) -> Model:
    from quantkit.model.metadata import checkpoint_metadata

    prefix = "consolidated" if name == FORMAT else "model"
    asked = {"only_mtp": options.mtp == "only", "no_mtp": options.mtp == "without"}
    config = replace(config, values={**config.values, **asked})
    if options.vocab_only and not has_weights(files, prefix):
        mtp = arch.mtp(config) if arch.keeps_mtp and options.mtp != "without" else 0
        learned = arch.learned({}, values_of) if arch.drafts and arch.learned else {}
        config = replace(config, mtp=mtp, values={**config.values, **learned})
        file_type = OUTTYPES[chosen_outtype(outtype, (), ())][0]
        kv, notes = checkpoint_metadata(files, arch, config, (), file_type, pre, options)
        return Model(files.name, arch.gguf_arch, (), {}, kv, notes=notes)
    stored = read_tensors(files, prefix)
    stored = [*stored, *further(files, arch, {t.name for t in stored})]
    settings = coding_settings(files, config)
    if settings.as_it_runs and arch.gguf_arch != "bitnet":  # whose rows round what they read
        raise ConfigError(
            f"{config.where}: quantization_config says that weights are rounded to three values "
            "as the model runs (quantization_mode 'online'), which GGUF has no place for here; "
            "delete it if it is left over"
        )
    config = replace(config, values={**config.values, "quantization_config": settings.values})
    by_name = {t.name: t for t in decoded(stored, settings)}
    _check_layers(config, by_name)
    leave_out_twin(arch, by_name)
    config = with_scalars(arch, config, by_name)
    by_name = with_shared(arch, config, by_name)
    learned = {} if arch.learned is None else arch.learned(by_name, values_of)
    config = replace(config, values={**config.values, **learned})
    by_name = {**copies(arch, by_name), **by_name} | added(arch, config, by_name, files)
    shapes = {arch.plain(name): t.shape for name, t in by_name.items()}
    arch = arch.respelled(config, shapes) or arch
    config = with_zero_rows(files, arch, config, by_name)
    config = replace(config, mtp=predicting_layers(arch, config, by_name, options))
    dense = dense_modules(files, arch) if options.dense_modules else {}
    config = replace(config, values={**config.values, **dense_values(dense)})
    placed, sources = place(arch, config, by_name, options)
    outtype = chosen_outtype(
        outtype, _seen(stored, arch, options, sources, config.layers), by_name.values()
    )
    precision = precision_keys(placed, sources, settings)
    placed = with_scales(placed, sources)
    placed = _with_computed(placed, sources, arch, config, files)
    placed = {n: (t.shape, (Segment(n, 0, 0, t.n_rows),)) for n, t in dense.items()} | placed
    sources |= dense
    if is_reranker(files, arch, config):
        placed = with_head(placed, sources, files, config)
    tensors = tuple(
        ModelTensor(
            name,
            shape,
            _stored(name, shape, outtype, arch, config, options, sources[segments[0].source]),
            segments,
        )
        for name, (shape, segments) in placed.items()
    )
    if options.vocab_only:
        kv, notes = checkpoint_metadata(files, arch, config, (), OUTTYPES[outtype][0], pre, options)
        return Model(files.name, arch.gguf_arch, (), {}, kv, notes=notes)
    file_type = _file_type(outtype, tensors, sources, settings)
    kv, notes = checkpoint_metadata(files, arch, config, tensors, file_type, pre, options)
    if precision:
        after = [item.key for item in kv].index("general.quantization_version") + 1
        kv = (*kv[:after], *precision, *kv[after:])
    said = (
        predicting_note(arch, config, by_name),
        _head_note(arch, config, by_name, sources),
        misfit(arch, config, sources) if arch.drafts else None,
        settings_note(stored, settings),
        _dequantized_note(arch, outtype, sources),
        *(e.differs(config) for e in arch.assumes),
        window_note(arch, config, kv),
        yarn_note(config, arch.gguf_arch, {item.key for item in kv}),
    )
    notes = (*filter(None, said), *notes)
    partial = frozenset(name for name in sources if arch.plain(name) in arch.cuts)
    return Model(files.name, arch.gguf_arch, tensors, sources, kv, partial, notes)


def _check_layers(config: Config, stored: Mapping[str, SourceTensor]) -> None:
    """A layer has a tensor at least. Raises ConfigError."""
    if config.layers > len(stored):
        raise ConfigError(
            f"{config.where}: num_hidden_layers is {config.layers}, and there are {len(stored)} "
            "tensors in all"
        )


def _head_note(
    arch: Architecture,
    config: Config,
    stored: Mapping[str, SourceTensor],
    used: Mapping[str, SourceTensor],
) -> str | None:
    """A line where a model is tied and its head was trained apart: three rows tell; or where a head
    of its own is not there, and the architecture does without. Raises ConfigError where llama.cpp
    would take the embedding for such a head."""
    if arch.drafts:  # what is not there is the other model's
        return None
    tied = config.find("tie_word_embeddings")
    heads = [m.optional for m in arch.maps if m.source == "lm_head.weight"]
    untied = tied is False if any(heads) else not tied and does_without_head(arch.gguf_arch)
    if heads and untied and not any("lm_head" in name for name in stored):
        return (
            "no lm_head.weight is there, though config.json says that the output is not the "
            "embedding: llama.cpp takes the embedding"
        )
    head, table = (
        next((t for name, t in stored.items() if name.endswith(end)), None)
        for end in ("lm_head.weight", "embed_tokens.weight")
    )
    if head is None or table is None or head.shape != table.shape:
        return None
    if tied is not True and head.name in used:
        return None
    with Files(of.path for t in (head, table) for of in t.parts or (t,)) as files:
        rows = (0, head.n_rows // 2, head.n_rows - 1)
        if all(np.array_equal(read(files, head, i, 1), read(files, table, i, 1)) for i in rows):
            return None
    if tied is False:
        raise ConfigError(
            f"{head.name} is not the embedding, and llama.cpp's {arch.gguf_arch} takes the "
            f"embedding for the output (tie_word_embeddings of {config.where} is false)"
        )
    kept = "it is kept" if head.name in used else "it is left out"
    return (
        f"{head.name} is not the embedding, to which config.json ties it (tie_word_embeddings): "
        f"{kept}, and transformers uses the embedding"
    )


def coding_settings(files: CheckpointFiles, config: Config) -> Settings:
    """How the weights are kept, as the config says or ModelOpt's file. Raises ConfigError,
    CorruptFile."""
    return read_settings(config.values, files.optional("hf_quant_config.json"), config.where)


def _with_computed(
    placed: Placed,
    sources: dict[str, SourceTensor],
    arch: Architecture,
    config: Config,
    files: CheckpointFiles,
) -> Placed:
    """The tensors with those that are computed from the config, which stand after what is kept in
    NVFP4 and before all else. Adds them to `sources`. Raises ConfigError."""
    made: Placed = {}
    for name, compute in arch.computed.items():
        if (data := compute(config)) is not None:
            if name.startswith("rope_") and not (np.isfinite(data) & (data > 0)).all():
                raise ConfigError(
                    f"{config.where}: the rotary settings give factors that are not finite, or not "
                    "above zero"
                )
            sources[name] = source = computed(name, data, files)
            made[name] = data.shape, (Segment(name, 0, 0, source.n_rows),)
    kept = {n: t for n, t in placed.items() if sources[t[1][0].source].coding in KEPT_FIRST}
    return {**kept, **made, **placed}


def _file_type(
    outtype: str,
    tensors: Iterable[ModelTensor],
    sources: Mapping[str, SourceTensor],
    settings: Settings,
) -> int:
    """`general.file_type`, as llama.cpp's converter labels files with weights in blocks: those of
    `_blocks` only where they are all that is quantized."""
    stored = {t.stored for t in tensors}
    if settings.method != "mxfp4":
        stored.discard("MXFP4")
    if any(t.coding == "mxfp4_pairs" for t in sources.values()):
        return MXFP4_FILE
    if outtype in ("f32", "f16", "bf16") and stored & {"NVFP4", "MXFP4"}:
        return NVFP4_FILE if "NVFP4" in stored else MXFP4_FILE
    return OUTTYPES[outtype][0]


def _dequantized_note(
    arch: Architecture, outtype: str, sources: Mapping[str, SourceTensor]
) -> str | None:
    """A line for people where NVFP4 is not kept."""
    n = sum(t.coding in ("nvfp4_floats", "nvfp4_columns") for t in sources.values())
    if not n:
        return None
    return (
        f"{n} matrices in NVFP4 are written in {OUTTYPES[outtype][1]}: llama.cpp computes without "
        f"their scales in {arch.gguf_arch}, or cannot hold their rows"
    )


def _seen(
    stored: Iterable[SourceTensor],
    arch: Architecture,
    options: ConversionOptions,
    used: Mapping[str, SourceTensor],
    layers: int,
) -> Iterator[SourceTensor]:
    """The tensors among which the converter looks for a type: those that it does not pass over."""
    unread = [re.compile(pattern) for pattern in (*OTHER_MODES, *arch.unread)]
    names = {name for t in used.values() for name in _names(t)}
    for t in stored:
        if options.mtp == "only" and t.name not in names:
            continue
        if options.mtp == "without" and _is_ahead(t.name, layers):
            continue
        if not any(pattern.fullmatch(t.name) for pattern in unread):
            yield t


def _is_ahead(name: str, layers: int) -> bool:
    """Whether a tensor is of the layers that predict further tokens, by its name alone."""
    found = _LAYER.search(name)
    return "mtp." in name or (found is not None and int(found[1]) >= layers)


def _names(t: SourceTensor) -> Iterator[str]:
    """A tensor's name, and those of what it is made of."""
    yield t.name
    for part in t.parts:
        yield from _names(part)


def chosen_outtype(
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
    name: str,
    shape: tuple[int, ...],
    outtype: str,
    arch: Architecture,
    config: Config,
    options: ConversionOptions,
    source: SourceTensor,
) -> str:
    wanted, role = type_by_name(OUTTYPES[outtype][1]), tensor_names.parse(name)
    if not source.ggml.is_float:
        return source.ggml.name
    if outtype in TERNARY and role.role in UNTERNARY and role.role not in arch.rounds:
        wanted = type_by_name("F16")
    paired = source.coding == "beside"
    fp8 = source.coding == "scaled" and source.parts[0].raw != "I8"
    as_q8 = options.fp8_as_q8 and arch.takes_fp8_as_q8
    if (fp8 and (as_q8 or arch.keeps_types)) or (paired and arch.keeps_types):
        wanted = type_by_name("Q8_0")
    elif arch.keeps_types and source.ggml.name in ("F32", "BF16") and not source.coding:
        wanted = source.ggml
    ahead = role.bid is not None and role.bid >= config.layers
    rounds = arch.rounds_ahead if ahead else arch.rounds
    exact = role.role in arch.exact or tensor_names.stays_f32(role, len(shape))
    kept = source.ggml.name != "F16" and source.coding != "float64"
    if arch.keeps_types and len(shape) > 1 and kept:
        exact = False
    if exact and role.role not in rounds:
        return "F32"
    return wanted.name if shape[-1] % wanted.block_size == 0 else "F16"
