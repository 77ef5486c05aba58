"""A LoRA adapter as a file that llama.cpp takes beside the model: the halves of each pair go
through the row maps of its base's architecture. Of the base, the config alone is needed.

What is done to the rows of a matrix is done to those of `lora_b`, what is done to its columns to
those of `lora_a`. Source, of llama.cpp b11549: `convert_lora_to_gguf.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from quantkit.architectures.rules import Architecture, Config
from quantkit.errors import ConfigError, SourceError, SourceNotFound, UsageError, malformed
from quantkit.gguf.container import KeyValue
from quantkit.gguf.types import type_by_name
from quantkit.hub.repository import read_small
from quantkit.loading.adapted import ignores_adapter
from quantkit.model.checkpoint_config import read_config
from quantkit.model.from_checkpoint import OUTTYPES, TERNARY
from quantkit.model.metadata import add_general
from quantkit.model.model import Model, ModelTensor
from quantkit.model.pairs import placed_pairs
from quantkit.model.peft import CONFIG, invocation_tokens, read_adapter_config, read_pairs
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.location import Source, SourceLike

_TEMPLATE = "tokenizer.chat_template"
_BASE = "config.json"  # all that is wanted of the base


def adapter_from_files(
    files: CheckpointFiles, base: SourceLike | None = None, outtype: str | None = "auto"
) -> Model:
    """A PEFT adapter as a model; `base` is the model that it is for (a directory or `hf://...`),
    by default the one that the adapter names. `outtype` is one of OUTTYPES; "auto" and None keep
    every bit (f32), as llama.cpp does. Raises SourceError, ModelError."""
    peft, label = read_adapter_config(files), files.label(CONFIG)
    pairs = read_pairs(files, peft)
    tokens = invocation_tokens(peft, label)
    with _base_files(files, base) as there:
        theirs = there.label(_BASE)
        wrong = f"{theirs}: its values are not of the kinds that they should be"
        with malformed(ConfigError, wrong):
            arch, config = read_config(there, _BASE)
        with malformed(ConfigError, f"{theirs} contradicts itself"):
            placed, sources, shared, alpha = placed_pairs(arch, config, pairs)
    if outtype in TERNARY:
        raise UsageError(f"{files.where} is an adapter (LoRA), of which no {outtype} is made")
    kind = outtype if outtype in OUTTYPES else "f32"
    tensors = tuple(
        ModelTensor(name, shape, _stored(shape, kind), segments)
        for name, (shape, segments) in placed.items()
    )
    kv = _metadata(files, arch, tensors, alpha, tokens)
    return Model(files.name, arch.gguf_arch, tensors, sources, kv, shared, _notes(arch, tensors))


@contextmanager
def _base_files(files: CheckpointFiles, base: SourceLike | None) -> Iterator[CheckpointFiles]:
    """The directory of the base, or of a base on the Hub one with its config alone. Raises
    SourceError, ConfigError."""
    named = files.json(CONFIG).get("base_model_name_or_path")
    if base is None and (not isinstance(named, str) or not named):
        raise ConfigError(
            f"{files.label(CONFIG)}: 'base_model_name_or_path' is missing; say with --base which "
            "model the adapter is for"
        )
    with TemporaryDirectory(prefix="quantkit-") as parent:
        try:
            found = _read_base(_place(str(named)) if base is None else base, Path(parent))
        except SourceError as e:
            if base is not None:
                raise
            raise type(e)(
                f"{files.where}: its base is {named}, and {e}; say with --base where its {_BASE} is"
            ) from None
        yield found


def _place(named: str) -> str:
    """Where a model is that an adapter names as transformers does: here, or on the Hub."""
    return named if "://" in named or Path(named).is_dir() else f"hf://{named}"


def _read_base(base: SourceLike, parent: Path) -> CheckpointFiles:
    source = Source.parse(base)
    if source.address is None:
        found = CheckpointFiles.local(source.local())
        found.json(_BASE)
        return found
    if (data := read_small(source.address, _BASE)) is None:
        raise SourceNotFound(f"{source}: no {_BASE} in it")
    (parent / _BASE).write_bytes(data)
    return CheckpointFiles(parent, str(source), {})


def _stored(shape: tuple[int, ...], outtype: str) -> str:
    """The type of a half. Rows of `lora_b` are as long as the rank, often too short for blocks."""
    wanted = type_by_name(OUTTYPES[outtype][1])
    return wanted.name if shape[-1] % wanted.block_size == 0 else "F16"


def _metadata(
    files: CheckpointFiles,
    arch: Architecture,
    tensors: Sequence[ModelTensor],
    alpha: float,
    tokens: Sequence[int],
) -> tuple[KeyValue, ...]:
    from gguf import GGUFValueType

    from quantkit.gguf.key_values import KeyValueWriter

    writer = KeyValueWriter(arch.gguf_arch)
    for key in arch.first_keys:  # what its converter writes before it asks what it converts
        if key.name == _TEMPLATE:
            writer.add_string(_TEMPLATE, key.read(Config({})))
    add_general(writer, files, tensors, "adapter")
    writer.add_float32("adapter.lora.alpha", alpha)
    if tokens:
        writer.add_key_value(
            "adapter.alora.invocation_tokens", tokens, GGUFValueType.ARRAY, GGUFValueType.UINT32
        )
    writer.add_quantization_version(2)  # GGML_QUANT_VERSION
    return writer.entries


def _notes(arch: Architecture, tensors: Sequence[ModelTensor]) -> tuple[str, ...]:
    """A line for people on what llama.cpp loads and does not use."""
    names = [t.name.removesuffix(".lora_a") for t in tensors if t.name.endswith(".lora_a")]
    lost = [name for name in names if ignores_adapter(arch.gguf_arch, name)]
    if not lost:
        return ()
    return (
        f"llama.cpp leaves {len(lost)} of the {len(names)} changes out when it runs "
        f"{arch.gguf_arch} ({lost[0]}{' ...' if lost[1:] else ''}): to have all of them, merge the "
        "adapter into its base and convert that",
    )
