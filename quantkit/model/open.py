"""Opening a source: a checkpoint or a GGUF file, here or on the Hub, read as a person asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.architectures.rules import DEFAULTS, ConversionOptions
from quantkit.errors import SourceNotFound, UnsupportedSource
from quantkit.hub import repository
from quantkit.model import edits
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.from_gguf import from_gguf
from quantkit.model.model import Model
from quantkit.source.checkpoint_files import CheckpointFiles


@dataclass(frozen=True)
class Reading:
    """How a source is read. `pre` and `options` are for checkpoints; `keep_experts` and
    `experts_used` make a smaller mixture of what is there."""

    pre: str | None = None
    options: ConversionOptions = DEFAULTS
    keep_experts: tuple[int, ...] = ()
    experts_used: int | None = None

    def changed(self, model: Model) -> Model:
        """The model with the experts that are asked for. Raises RecipeError."""
        if self.experts_used is not None:
            model = edits.use_experts(model, self.experts_used)
        if self.keep_experts:
            model = edits.keep_experts(model, self.keep_experts)
        return model


AS_IT_IS = Reading()


def open_source(source: Path | str, reading: Reading = AS_IT_IS) -> Model:
    """A checkpoint, nothing rounded, or a GGUF file; here or on the Hub (`hf://ORG/MODEL`,
    `hf://ORG/MODEL/FILE.gguf`). `Reading.changed` is the caller's to apply. Raises SourceError,
    ModelError."""
    if repository.is_remote(source):
        is_gguf = repository.names_file(source)
    elif Path(source).exists():
        is_gguf = not Path(source).is_dir()
    else:
        raise SourceNotFound(f"{source}: no such file or directory")
    return open_gguf_model(source) if is_gguf else open_checkpoint(source, None, reading)


def open_checkpoint(source: Path | str, outtype: str | None, reading: Reading = AS_IT_IS) -> Model:
    """A checkpoint directory, or a model on the Hub. Raises SourceError, ModelError."""
    if not repository.is_remote(source):
        files = CheckpointFiles.local(Path(source))
        return from_checkpoint(files, outtype, reading.pre, reading.options)
    if repository.names_file(source):
        raise UnsupportedSource(f"{source} is one file; name the model that is to be converted")
    with repository.snapshot(source) as there:
        files = CheckpointFiles(there.directory, there.where, there.files)
        return from_checkpoint(files, outtype, reading.pre, reading.options)


def open_gguf_model(source: Path | str) -> Model:
    if not repository.is_remote(source):
        return from_gguf(Path(source))
    with repository.snapshot(source) as there:
        if there.file is None:
            raise UnsupportedSource(f"{source}: a GGUF file is expected: {source}/FILE.gguf")
        return from_gguf(there.file, there.files)
