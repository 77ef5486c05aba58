"""Opening a source: a checkpoint or a GGUF file, here or on the Hub, read as a person asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.architectures.rules import DEFAULTS, ConversionOptions
from quantkit.errors import RecipeError, UnsupportedSource, UsageError
from quantkit.gguf.splits import is_gguf
from quantkit.hub.repository import snapshot
from quantkit.model import edits
from quantkit.model.adapter import adapter_from_files
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.from_gguf import from_gguf
from quantkit.model.model import Model
from quantkit.model.peft import is_adapter
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.gguf_set import models_here
from quantkit.source.location import Source, SourceLike
from quantkit.source.mistaken import no_gguf

# fields of ConversionOptions as options of the command line
_OPTIONS = {
    "mtp": "--mtp or --no-mtp", "fuse_qkv": "--fuse-qkv", "fuse_gate_up_exps":
    "--fuse-gate-up-exps", "fp8_as_q8": "--fp8-as-q8", "mistral_format": "--mistral-format",
    "dense_modules": "--sentence-transformers-dense-modules", "mmproj": "--mmproj",
    "target": "--target-model-dir", "dspark": "--dspark",
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How a source is read. `pre` and `options` are for checkpoints; `keep_experts` and
    `experts_used` make a smaller mixture of what is there. `base` is the model of an adapter, where
    it is not the one that the adapter names."""

    pre: str | None = None
    options: ConversionOptions = DEFAULTS
    keep_experts: tuple[int, ...] = ()
    experts_used: int | None = None
    base: SourceLike | None = None

    @property
    def of_checkpoints(self) -> list[str]:
        """The options that are given and go with a checkpoint alone, as a person gives them."""
        given = {"--pre": self.pre is not None, "--base": self.base is not None}
        for field, words in _OPTIONS.items():
            given[words] = getattr(self.options, field) != getattr(DEFAULTS, field)
        return [words for words, is_given in given.items() if is_given]

    def changed(self, model: Model) -> Model:
        """The model with the experts that are asked for. Raises RecipeError."""
        if self.experts_used is not None:
            model = edits.use_experts(model, self.experts_used)
        if self.keep_experts:
            model = edits.keep_experts(model, self.keep_experts)
        return model


AS_IT_IS = Reading()


def open_source(source: SourceLike, reading: Reading = AS_IT_IS) -> Model:
    """A checkpoint (nothing rounded) or a GGUF file, read and changed as `reading` says. Raises
    SourceError, ModelError, RecipeError."""
    return reading.changed(open_whole(source, reading))


def open_whole(source: SourceLike, reading: Reading = AS_IT_IS) -> Model:
    """The same with all its experts."""
    source = Source.parse(source)
    if source.is_checkpoint:
        return read_checkpoint(source, None, reading)
    if given := reading.of_checkpoints:
        raise UsageError(
            f"{source}: the tensors and the vocabulary of a GGUF file are as they are; "
            f"{', '.join(given)} goes with a checkpoint"
        )
    return open_gguf(source)


def open_checkpoint(source: SourceLike, outtype: str | None, reading: Reading = AS_IT_IS) -> Model:
    """A checkpoint, read and changed as `reading` says; `outtype` as for `from_checkpoint`. Raises
    SourceError, ModelError, RecipeError."""
    return reading.changed(read_checkpoint(Source.parse(source), outtype, reading))


def read_checkpoint(source: Source, outtype: str | None, reading: Reading) -> Model:
    """A checkpoint with all its experts."""
    if source.address is None:
        path = source.local()
        if not source.is_checkpoint:
            what = no_gguf(path) or "a file; a checkpoint directory is expected"
            gguf = "a GGUF file, which quantize takes; a checkpoint directory is converted"
            raise UnsupportedSource(f"{path} is {gguf if is_gguf(path) else what}")
        files = CheckpointFiles.local(path)
        return _converted(files, outtype, reading)
    if source.address.file:
        raise UnsupportedSource(f"{source} is one file; name the model that is to be converted")
    with snapshot(source.address) as there:
        files = CheckpointFiles(there.directory, there.where, there.files)
        return _converted(files, outtype, reading)


def read_encoders(source: Source, outtypes: Sequence[str], reading: Reading) -> list[Model]:
    """The encoders of a checkpoint, once for each outtype; none if its config names no encoder.
    Raises SourceError, ModelError."""
    from quantkit.model.encoder import encoder_from_checkpoint, names_encoder

    def read(files: CheckpointFiles) -> list[Model]:
        if not names_encoder(files):
            return []
        return [encoder_from_checkpoint(files, kind, reading.options) for kind in outtypes]

    if source.address is None:
        return read(CheckpointFiles.local(source.local()))
    with snapshot(source.address) as there:
        return read(CheckpointFiles(there.directory, there.where, there.files))


def _converted(files: CheckpointFiles, outtype: str | None, reading: Reading) -> Model:
    if outtype is not None and is_adapter(files):  # nothing but a conversion is made of it
        if reading != Reading(base=reading.base):
            raise UsageError(f"{files.where} is an adapter (LoRA); of those options --base is its")
        return adapter_from_files(files, reading.base, outtype)
    if reading.base is not None:
        raise UsageError(f"--base is for an adapter (LoRA), and {files.where} is none")
    if reading.options.mmproj:
        if reading.options.vocab_only:
            raise UsageError("--mmproj and --vocab-only exclude each other")
        from quantkit.model.encoder import encoder_from_checkpoint

        return encoder_from_checkpoint(files, outtype, reading.options)
    return from_checkpoint(files, outtype, reading.pre, reading.options)


def formats_of(recipe: str | None) -> dict[str, str]:
    """The formats of a GGUF file's tensors by their names, if a `--recipe` is one (here or
    `hf://...`). Raises SourceError, RecipeError."""
    if recipe is None or not recipe.lower().endswith(".gguf"):
        return {}
    formats = {t.name: t.stored for t in open_gguf(recipe).tensors}
    if not formats:
        raise RecipeError(f"{recipe} has no tensors, whose formats could be taken")
    return formats


def open_gguf(source: SourceLike) -> Model:
    """A GGUF file, as it is. Raises SourceError."""
    source = Source.parse(source)
    if source.address is None:
        if not source.is_checkpoint:
            return from_gguf(source.local())
        models = models_here(source.local())
        hint = f", for instance {models[0]}" if models else ""
        raise UnsupportedSource(f"{source} is a directory; a GGUF file is expected{hint}")
    with snapshot(source.address) as there:
        if there.file is None:
            raise UnsupportedSource(f"{source}: a GGUF file is expected: {source}/FILE.gguf")
        return from_gguf(there.file, there.files)
