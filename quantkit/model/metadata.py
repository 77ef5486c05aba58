"""The key-values of a converted checkpoint, in llama.cpp's order, written by the gguf package."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.architectures.rules import Architecture, Config, Key
from quantkit.errors import CorruptFile, TokenizerError
from quantkit.gguf.container import KeyValue, array, parse_key_values
from quantkit.storage.json_files import read_json
from quantkit.tokenizer.families import rules_for
from quantkit.tokenizer.vocabulary import malformed, read_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter, Metadata

    from quantkit.model.model import ModelTensor


def checkpoint_metadata(
    directory: Path, arch: Architecture, config: Config, tensors: Sequence[ModelTensor],
    file_type: int, pre: str | None,
) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:  # fmt: skip
    """All key-values of the file, and notes for people on what was chosen.

    `file_type` is llama.cpp's number for the label of the file.
    Raises ConfigError, CorruptFile, TokenizerError.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(None, arch.gguf_arch)
    _add_keys(writer, _read_keys(arch.first_keys, arch, config))
    add_general(writer, directory, tensors)
    early, late = (_read_keys(keys, arch, config) for keys in (arch.keys, arch.late_keys))
    for name in early.keys() & late.keys():  # written twice: the first place, the last value
        early[name] = late.pop(name)
    _add_keys(writer, early)
    writer.add_file_type(file_type)
    _add_keys(writer, late)
    writer.add_quantization_version(2)  # GGML_QUANT_VERSION
    (name,) = config.values["architectures"]
    return with_vocabulary(writer, directory, name, config.get("vocab_size"), pre)


def with_vocabulary(
    writer: GGUFWriter, directory: Path, architecture: str, size: int, pre: str | None
) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:
    """All key-values of `writer`, then `tokenizer.*`, `size` tokens of the vocabulary; and notes on
    what was chosen.

    Raises CorruptFile, TokenizerError.
    """
    vocab = read_vocabulary(directory, size, pre, rules_for(architecture, size), architecture)
    with malformed(TokenizerError, f"{directory}: malformed tokenizer files"):
        vocab.write(writer)
        kv = encode(writer)  # values are looked at only as they are packed
    return kv, tuple(vocab.notes)


def encode(writer: GGUFWriter) -> tuple[KeyValue, ...]:
    """The key-values that were added to `writer` so far, as bytes.

    Arrays are packed here: the writer would take the tokens of a vocabulary one by one.
    """
    from gguf import GGUFValueType
    from gguf.gguf_writer import WriterState

    (added,) = writer.kv_data
    packed = {
        key: array(key, v.value, 0 if isinstance(v.value, bytes) else v.sub_type)
        for key, v in added.items()
        if v.type is GGUFValueType.ARRAY
    }
    buffer = io.BytesIO()
    writer.tensors = [{}]  # only the key-values: offsets are the planner's
    writer.fout, writer.state = [buffer], WriterState.EMPTY  # type: ignore[list-item]
    writer.kv_data = [{key: v for key, v in added.items() if key not in packed}]
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
    finally:
        writer.kv_data = [added]
    packed |= {item.key: item for item in parse_key_values(buffer.getvalue())}
    return tuple(packed[key] for key in added)


def count_and_label(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, str]:
    """The weights of tensors, given as (name, shape), and the label of a model of that size
    (`4x7B`), as gguf-py counts them."""
    import numpy as np
    from gguf import GGUFWriter, size_label

    counter = GGUFWriter(None, "")
    for name, shape in tensors:
        counter.add_tensor_info(name, shape, np.dtype(np.float32), 0)
    counts = counter.get_total_parameter_count()
    return counts[0], size_label(*counts)


def add_general(writer: GGUFWriter, directory: Path, tensors: Sequence[ModelTensor]) -> None:
    """`general.*`: names, sizes and licence, from the directory's name and its model card.

    Raises CorruptFile.
    """
    from gguf import Metadata

    total, label = count_and_label((t.name, t.shape) for t in tensors)
    with malformed(CorruptFile, f"{directory}: malformed README.md or generation_config.json"):
        found = Metadata.load(None, directory.resolve(), None, total)
        generation = directory / "generation_config.json"
        if generation.is_file() and found.sampling_penalty_repeat is None:
            found.sampling_penalty_repeat = read_json(generation).get("repetition_penalty")
        _check(found, directory)
        if found.size_label is None and total > 0:
            found.size_label = label
        writer.add_type("model")
        found.set_gguf_meta_model(writer)
        encode(writer)  # values are packed only as they are written


_KINDS: dict[str, tuple[type, ...]] = {
    "Optional[str]": (str,), "Optional[int]": (int,), "Optional[float]": (int, float),
}  # fmt: skip


def _check(found: Metadata, directory: Path) -> None:
    """Every value is of its key's kind; YAML's numbers and dates become text where text belongs."""
    for field in fields(found):
        value, allowed = getattr(found, field.name), _KINDS.get(str(field.type), (list,))
        if value is None or (field.name == "license" and isinstance(value, list)):
            continue
        if allowed == (str,) and isinstance(value, int | float | date):
            setattr(found, field.name, str(value))
        elif not isinstance(value, allowed) or isinstance(value, bool):
            sampling = field.name.startswith("sampling_")
            where = directory / ("generation_config.json" if sampling else "README.md")
            kind = "text" if str in allowed else "a list" if list in allowed else "a number"
            raise CorruptFile(f"{where}: {field.name} is {value!r}, not {kind}")
    for name in ("tags", "languages"):
        if (values := getattr(found, name)) is not None:
            setattr(found, name, [str(v) for v in values])


def _read_keys(
    keys: Sequence[Key], arch: Architecture, config: Config
) -> dict[str, tuple[str, Any]]:
    """Name -> (GGUF type, value) of the keys that are there."""
    found = ((key.name.format(arch=arch.gguf_arch), key.kind, key.read(config)) for key in keys)
    return {name: (kind, value) for name, kind, value in found if value is not None}


def _add_keys(writer: GGUFWriter, values: Mapping[str, tuple[str, Any]]) -> None:
    from gguf import GGUFValueType

    for name, (kind, value) in values.items():
        if isinstance(value, list):
            if kind == "UINT64":
                writer.add_key_value(name, value, GGUFValueType.ARRAY, GGUFValueType.UINT64)
                continue
            writer.add_array(name, value)  # integers as INT32, as llama.cpp's converter has them
        else:
            writer.add_key_value(name, value, GGUFValueType[kind])
