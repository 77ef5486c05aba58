"""The key-values of a converted checkpoint, in llama.cpp's order, named by the gguf package."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.architectures.rules import DEFAULTS, Architecture, Config, ConversionOptions, Key
from quantkit.errors import ConfigError, CorruptFile, TokenizerError, malformed
from quantkit.gguf.container import KeyValue
from quantkit.hub.repository import CARD
from quantkit.model.authorship import FIELDS, override
from quantkit.model.pooling import add_reranker
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.storage.parse import parse_yaml
from quantkit.tokenizer.chat_template import not_for_llama
from quantkit.tokenizer.families import rules_for
from quantkit.tokenizer.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from gguf import Metadata

    from quantkit.gguf.key_values import KeyValueWriter
    from quantkit.model.model import ModelTensor


_FIRST = ("general.architecture", "tokenizer.chat_template")


def checkpoint_metadata(
    files: CheckpointFiles,
    arch: Architecture,
    config: Config,
    tensors: Sequence[ModelTensor],
    file_type: int,
    pre: str | None,
    options: ConversionOptions = DEFAULTS,
) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:
    """All key-values of the file, and notes for people on what was chosen.

    `file_type` is llama.cpp's number for the label of the file.
    Raises ConfigError, CorruptFile, TokenizerError.
    """
    from quantkit.gguf.key_values import KeyValueWriter

    writer = KeyValueWriter(arch.gguf_arch)
    if options.vocab_only:
        arch = _without_weights(arch, files.where)
    add_keys(writer, arch.first_keys, config)
    add_general(writer, files, tensors, options=options)
    add_keys(writer, arch.keys, config)
    if arch.says_file_type:
        writer.add_file_type(file_type)
    add_keys(writer, arch.late_keys, config)
    reranks = add_reranker(writer, files, arch, config)
    if files.has("generation_config.json") and files.generation() is None:
        reranks = [*reranks, "generation_config.json has no JSON object, and is passed over"]
    writer.add_quantization_version(2)  # GGML_QUANT_VERSION
    if arch.no_vocabulary:
        writer.add_tokenizer_model("none")
        return writer.entries, tuple(reranks)
    (name,) = config.values["architectures"]
    if arch.drafts and options.target:  # with the vocabulary of the model that it drafts for
        files, name = CheckpointFiles.local(options.target), config.find("target.architecture")
    if arch.vocabulary:
        files = files.inside(arch.vocabulary)
    kv, notes = with_vocabulary(writer, files, name, config.get("vocab_size"), pre)
    if arch.last_keys:
        for key in arch.moved:
            writer.remove_key(key)
        add_keys(writer, arch.last_keys, config)
        kv = writer.entries
    if arch.template_first:
        kv = (*sorted(kv, key=lambda item: item.key not in _FIRST),)
    return kv, (*reranks, *notes)


def _without_weights(arch: Architecture, where: str) -> Architecture:
    """The architecture as `--vocab-only` has it: llama.cpp's converter adds some keys as it comes
    upon tensors, and then comes upon none. Raises ConfigError where the rest are wrong then."""
    if arch.drafts:  # its keys are of the model that it drafts for
        return arch
    if arch.learned and not arch.first_keys:
        raise ConfigError(
            f"{where}: keys of {arch.gguf_arch} are read from the weights, and --vocab-only writes "
            "a file without"
        )
    of_weights = arch.scalars or arch.computed or arch.learned
    return replace(arch, first_keys=()) if of_weights else arch


def with_vocabulary(
    writer: KeyValueWriter, files: CheckpointFiles, architecture: str, size: int, pre: str | None
) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:
    """All key-values of `writer`, then `tokenizer.*`, `size` tokens of the vocabulary; and notes on
    what was chosen.

    Raises CorruptFile, TokenizerError.
    """
    vocab = read_vocabulary(files, size, pre, rules_for(architecture, size), architecture)
    with malformed(TokenizerError, f"{files.where}: malformed tokenizer files"):
        vocab.write(writer)
    return writer.entries, (*vocab.notes, *not_for_llama(vocab.special.templates))


def count_and_label(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, str]:
    """The weights of tensors, given as (name, shape), and the label of a model of that size
    (`4x7B`), as gguf-py counts them."""
    import numpy as np
    from gguf import GGUFWriter, size_label

    # it warns of halves of adapters that are among a model's own tensors, and counts none then
    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    counter = GGUFWriter(None, "")
    for name, shape in tensors:
        counter.add_tensor_info(name, shape, np.dtype(np.float32), 0)
    counts = counter.get_total_parameter_count()
    return counts[0], size_label(*counts)


def add_general(
    writer: KeyValueWriter,
    files: CheckpointFiles,
    tensors: Sequence[ModelTensor],
    kind: str = "model",
    options: ConversionOptions = DEFAULTS,
) -> None:
    """`general.*`: the `kind` of file, names, sizes, licence and sampling, from the checkpoint's
    name, its model card and generation_config.json, or as `options` say otherwise.

    Raises CorruptFile, SourceError.
    """
    from gguf import Metadata

    total, label = count_and_label((t.name, t.shape) for t in tensors)
    with (
        malformed(CorruptFile, f"{files.where}: malformed README.md or generation_config.json"),
        _named(files) as directory,
        _quiet("metadata"),
    ):
        _check_card(files)
        _check_names(files.optional("config.json") or {}, files.label("config.json"))
        generation = files.generation() or {}
        metadata = Metadata.load(None, directory, None, total)
        if "penalty_repeat" not in generation:
            metadata.sampling_penalty_repeat = generation.get("repetition_penalty")
        _check(metadata, files)
        override(metadata, options)
        if metadata.name is None:
            metadata.name = directory.name
        if metadata.size_label is None and total > 0:
            metadata.size_label = label
        writer.add_type(kind)
        if kind == "adapter":
            writer.add_string("adapter.type", "lora")
        metadata.set_gguf_meta_model(writer)


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """gguf logs entries of a card that it passes over, without the card's name."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _named(files: CheckpointFiles) -> Iterator[Path]:
    """A directory called as the model is, with the small files that gguf reads: it takes names
    from the directory's, and reads the whole of a card."""
    directory = files.directory.resolve()
    cut = files.has(CARD) and len(files.data(CARD)) < files.path(CARD).stat().st_size
    if directory.name == files.name and not cut:
        yield directory
        return
    with tempfile.TemporaryDirectory() as parent:
        named = Path(parent, files.name)
        named.mkdir()
        for name in (CARD, "config.json", "generation_config.json"):
            if files.has(name):
                (named / name).write_bytes(files.data(name))
        yield named


def _check_card(files: CheckpointFiles) -> None:
    """The front matter of the model card, which gguf reads without limits. Raises CorruptFile."""
    if not files.has(CARD):
        return
    first, *lines = files.text(CARD).splitlines() or [""]
    if first != "---":
        return
    end = lines.index("---") if "---" in lines else len(lines)
    label = files.label(CARD)
    front = parse_yaml("\n".join(lines[:end]).replace("\t", "  ") + "\n", label)
    if isinstance(front, dict):
        for name, value in front.items():
            if name in _OF_CARDS:
                _check_plain(f"{label}: {name}", value, 3)


# the entries of a model card that gguf reads, besides its own names for them
_OF_CARDS = frozenset({
    *FIELDS, *(f"model_{name}" for name in FIELDS), "url", "doi", "uuid", "repo_url",
    "model_creator", "model_type", "base_model", "base_model_sources", "dataset", "dataset_sources",
    "pipeline_tag", "language",
})  # fmt: skip


def _check_plain(label: str, value: Any, deep: int) -> None:
    """A value of a card is text or number, or lists and tables of such, so many in one another.
    Raises CorruptFile."""
    if isinstance(value, list | dict):
        if deep == 1:
            raise CorruptFile(f"{label} is a list in lists")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_plain(label, inner, deep - 1)


def _check_names(config: Mapping[str, Any], label: str) -> None:
    """What gguf takes a model's name from. Raises CorruptFile."""
    name = config.get("_name_or_path")
    if not isinstance(name, str | None) or len(name or "") > 4096:
        raise CorruptFile(f"{label}: _name_or_path is no name")


def _check(metadata: Metadata, files: CheckpointFiles) -> None:
    """Every field holds what it may; YAML's numbers and dates become text where text belongs, and
    what it takes for false among languages is Norwegian (`no`). True and false are the numbers 1
    and 0, as to llama.cpp's converter.

    Raises CorruptFile.
    """
    for name, kind in FIELDS.items():
        value = getattr(metadata, name)
        if value is None or (str in kind.types and not value):
            continue  # gguf leaves out a text that is empty, 0, false or []
        if str in kind.types and isinstance(value, int | float | date):
            setattr(metadata, name, str(value))
        elif not isinstance(value, kind.types):
            sampling = name.startswith("sampling_")
            label = files.label("generation_config.json" if sampling else CARD)
            raise CorruptFile(f"{label}: {name} is {value!r}, not {kind.words}")
    for name in ("tags", "languages"):
        if (values := getattr(metadata, name)) is not None:
            no = "no" if name == "languages" else "False"
            setattr(metadata, name, [no if v is False else str(v) for v in values])


# keys that llama.cpp reads one value a layer of, where it is given a list
_PER_LAYER = (
    "attention.head_count", "attention.head_count_kv",
    "attention.indexer.types", "attention.recurrent_layers", "attention.rope_pattern",
    "attention.sliding_window_pattern",
    "activation_sparsity_scale", "deepstack_mapping",
    "expert_feed_forward_length", "expert_used_count",
    "feed_forward_length", "swiglu_clamp_exp", "swiglu_clamp_shexp", "xielu.alpha_n",
    "xielu.alpha_p", "xielu.beta", "xielu.eps",
)  # fmt: skip
_OTHER_LISTS = (
    "adapters.token_ids_activate", "adapters.token_ids_substitute", "attention.compress_ratios",
    "classifier.output_labels", "rope.dimension_sections", "target_layers",
)  # fmt: skip


def _check_list(name: str, value: list[Any], config: Config) -> None:
    """A list stands where llama.cpp reads one, and is as long as it wants it. Raises
    ConfigError."""
    if name.endswith(_OTHER_LISTS) or ".ple." in name or name.startswith(("tokenizer.", "clip.")):
        return
    if not name.endswith(_PER_LAYER):
        raise ConfigError(f"{config.where}: {name} is one number, not {value!r}")
    if len(value) not in (config.layers, config.blocks):
        raise ConfigError(
            f"{config.where}: {name} is {len(value)} values, one for each of {config.layers} "
            f"layers is expected: {value!r}"
        )


def add_keys(writer: KeyValueWriter, keys: Sequence[Key], config: Config) -> None:
    """Add the keys of an architecture that have a value. Raises ConfigError."""
    from gguf import GGUFValueType

    for key in keys:
        name, value = key.name.format(arch=writer.arch), key.read(config)
        if value is None:
            continue
        with malformed(ConfigError, f"{config.where}: {name} cannot be {value!r}"):
            if key.kind == "UINT64":
                writer.add_key_value(name, value, GGUFValueType.ARRAY, GGUFValueType.UINT64)
            elif isinstance(value, list):  # integers as INT32, as llama.cpp's converter has them
                _check_list(name, value, config)
                writer.add_array(name, value)
            else:
                writer.add_key_value(name, value, GGUFValueType[key.kind])
