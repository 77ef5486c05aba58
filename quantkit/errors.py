"""Everything quantkit can refuse, by name. One line each; the CLI prints it and exits with 1,
or with 2 for a wrong argument.

QuantkitError
├── UsageError             an argument that no model could make right; exit code 2
├── SourceError            the input cannot be read
│   ├── SourceNotFound         no such file or directory, or nothing in it that is a model
│   ├── ShardMissing           the index names a file that is not on disk
│   ├── CorruptFile            truncated, overlapping or malformed bytes
│   ├── UnsupportedSource      a spelling, dtype or file type that is not read (yet)
│   ├── SourceForbidden        the Hub wants a login, or terms accepted
│   ├── SourceUnreachable      no answer, or none that can be used, after several tries
│   └── SourceChanged          other bytes on the Hub than when the run began
├── ModelError             the input is readable, and wrong
│   ├── UnsupportedArchitecture
│   ├── ConfigError            a key of config.json is missing or not what the architecture needs
│   ├── TensorMissing
│   ├── TensorUnknown          a tensor that no row of the architecture places
│   ├── TensorShape            a tensor whose shape contradicts the config
│   ├── TokenizerError
│   ├── NotLoadable            what would be written is nothing that llama.cpp loads
│   ├── WeightTooLarge         a weight past what its format holds, with its tensor and row
│   └── NonFiniteWeight        NaN or infinity, with its tensor and row
├── RecipeError            a type that is unknown, or cannot be made from this source
│   └── BudgetError            a size that no choice of formats keeps, or that all of them keep
├── ImatrixError           an importance matrix that is damaged, incomplete, or of another model
├── LlamaError             llama.cpp does not load or run what it is given
│   └── LlamaMissing           it is not installed, or of a version that is not known here
├── PushError              a release cannot be brought to the Hub
│   ├── NotLoggedIn            no token, or one that is refused
│   ├── PushForbidden          a token that may not write there
│   ├── PushRefused            a name, a card or a file that the Hub does not take
│   └── PushInterrupted        cut off on the way; what has arrived stays
└── OutputError            the output cannot be written
    ├── OutputExists
    ├── OutputInUse            another run is writing it
    ├── OtherRelease           the directory holds a release of another model, or made otherwise
    ├── JournalMismatch        what an earlier run left belongs to another job
    ├── DiskFull
    ├── ClusterError           Ray is missing, or its workers keep dying
    └── PlanError              the plan contradicts itself (a bug in quantkit, never the user's)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from quantkit.plain_text import LONGEST, one_line


class QuantkitError(Exception):
    """Root of all errors that quantkit raises on purpose. Names from outside stand in their texts:
    each is one line of bounded length, with nothing in it that a terminal obeys."""

    def __str__(self) -> str:
        return one_line(super().__str__(), LONGEST)


class UsageError(QuantkitError):
    """An argument that is wrong whatever the model: misspelt, malformed, or against another."""


class SourceError(QuantkitError):
    """The input cannot be read."""


class SourceNotFound(SourceError):
    """No such file or directory, or no model in it."""


class ShardMissing(SourceError):
    """A weight file that the checkpoint's index names is not on disk."""


class CorruptFile(SourceError):
    """A file whose bytes do not hold together: truncated, overlapping, malformed."""


class UnsupportedSource(SourceError):
    """A readable input of a kind that quantkit does not take."""


class SourceForbidden(SourceError):
    """A model on the Hub that is gated, or closed to the token at hand."""


class SourceUnreachable(SourceError):
    """A server that gives no answer, or none that can be used, after several tries."""


class SourceChanged(SourceError):
    """A file on the Hub that is not what it was when the run began."""


class ModelError(QuantkitError):
    """The input is readable but does not describe a model that can be converted."""


class UnsupportedArchitecture(ModelError):
    """No row of `quantkit.architectures` covers the checkpoint."""


class ConfigError(ModelError):
    """A key of config.json is missing, of the wrong type, or of an unsupported value."""


class TensorMissing(ModelError):
    """A tensor that the config promises is not in the checkpoint."""


class TensorUnknown(ModelError):
    """A tensor of the checkpoint that the architecture does not place."""


class TensorShape(ModelError):
    """A tensor whose shape contradicts the config."""


class TokenizerError(ModelError):
    """A vocabulary that is missing, malformed or not recognised."""


class NotLoadable(ModelError):
    """Metadata and tensors that llama.cpp's loader refuses, or ends at."""


class WeightTooLarge(ModelError):
    """A weight that becomes infinite in the format that is asked for."""


class NonFiniteWeight(ModelError):
    """NaN or infinity in a weight."""


class RecipeError(QuantkitError):
    """A quantization type that is unknown or cannot be made from this source."""


class BudgetError(RecipeError):
    """A size that no choice of formats keeps, or that leaves nothing to choose."""


class ImatrixError(QuantkitError):
    """An importance matrix that is damaged, lacks data that is needed, or is of another model."""


class LlamaError(QuantkitError):
    """llama.cpp does not load a file, or does not run it as it is asked to."""


class LlamaMissing(LlamaError):
    """The `llama` extra is not installed, or is of a version whose structures are not known."""


class PushError(QuantkitError):
    """A release cannot be brought to the Hub."""


class NotLoggedIn(PushError):
    """There is no token to push with, or the Hub refuses it."""


class PushForbidden(PushError):
    """The token may not write to the repository, or not make one there."""


class PushRefused(PushError):
    """The Hub does not take the name, the card or a file."""


class PushInterrupted(PushError):
    """The push was cut off; what has arrived stays, and the same command goes on."""


class OutputError(QuantkitError):
    """The output cannot be written."""


class OutputExists(OutputError):
    """The output is there already and --force was not given."""


class OutputInUse(OutputError):
    """Another run is writing the output."""


class OtherRelease(OutputError):
    """A directory that holds the release of another model, or of this one made otherwise."""


class JournalMismatch(OutputError):
    """What an earlier run left of the output belongs to another job."""


class ClusterError(OutputError):
    """Ray is not installed, or its workers keep dying."""


class DiskFull(OutputError):
    """The planned files do not fit on the disk."""


class PlanError(OutputError):
    """A plan that does not tile its outputs exactly. Always a bug in quantkit."""


@contextmanager
def malformed(error: type[QuantkitError], what: str) -> Iterator[None]:
    """Whatever is raised inside becomes `error`, which says `what`; errors of quantkit pass, and so
    does a lack of memory, which no file is to blame for.

    For code that only reads and interprets small files, in which anything may stand.
    """
    try:
        yield
    except (QuantkitError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:  # a panic of a library in Rust is no Exception
        reason = " ".join(str(e).split())
        raise error(f"{what} ({type(e).__name__}: {reason})") from e
