"""The words in which an architecture is written.

- `Key`: a value of config.json becomes a GGUF key.
- `Expect`: what the config has to say for the architecture to be the one we know.
- `Map`: a source tensor becomes rows of one or more GGUF tensors.
- `whole`, `stack`, `halves`, `rotary` ...: how its rows land there. Quantization is independent per
  row, so all of these are row maps; none touches a weight, and only `edited` changes one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.architectures.config import REQUIRED, Config
from quantkit.architectures.row_maps import (
    Dims,
    Piece,
    RowMap,
    Shape,
    edited,
    grouped,
    halved,
    halves,
    interleaved,
    interleaved_stack,
    padded,
    parts,
    piece,
    rotary,
    rotary_order,
    stack,
    transposed,
    whole,
)
from quantkit.errors import ConfigError
from quantkit.source.codings.resized import resized
from quantkit.source.codings.slabs import slabs
from quantkit.source.tensors import SourceTensor

# the row maps are words, too: a family imports all of them from here
__all__ = [
    "DEFAULTS", "Architecture", "Config", "ConversionOptions", "Dim", "Dims", "Expect", "Key",
    "Map", "Piece", "RowMap", "Shape", "edited", "grouped", "halved", "halves", "interleaved",
    "interleaved_stack", "linear", "padded", "parts", "piece", "rotary", "rotary_order", "stack",
    "tied_head_dropped", "transposed", "vector", "whole",
]  # fmt: skip

# what torch.compile, DataParallel, FSDP and checkpointed activations put into names
_WRAPPERS = re.compile(
    r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_forward_module\."
    r"|(?:^|(?<=\.))module\."
)
_NUMBER = re.compile(r"\{\w+\}|(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class ConversionOptions:
    """What a person asks of a conversion; llama.cpp's converter options of the same names.

    `mtp`: "with" the layers that predict further tokens, "without" them, or "only" them.
    """

    mtp: str = "with"
    fuse_qkv: bool = False
    fuse_gate_up_exps: bool = False
    fp8_as_q8: bool = False
    mistral_format: bool = False  # params.json counts, also where there is a config.json
    dense_modules: bool = False  # what sentence-transformers puts after the pooled output, too
    mmproj: bool = False  # the encoders of images and sound, not the text
    target: Path | None = None  # of a draft: the checkpoint of the model that it drafts for
    model_name: str | None = None  # general.name
    vocab_only: bool = False  # the keys alone, and no tensor
    dspark: bool = False  # of DeepSeek-V4: its draft alone, for which `target` is
    metadata: Path | None = None  # JSON, whose keys of general.* count before the checkpoint's own


DEFAULTS = ConversionOptions()


@dataclass(frozen=True)
class Key:
    """One GGUF key. `{arch}` in its name is the GGUF architecture.

    `config` names the config keys it is read from, the first that is there; or computes the value
    (None leaves the key out). Without a `default`, a missing config key is an error; a default of
    None leaves the GGUF key out. A list becomes an array.
    """

    name: str
    config: str | tuple[str, ...] | Callable[[Config], Any]
    kind: str = "UINT32"
    default: Any = REQUIRED

    def read(self, config: Config) -> Any:
        """The value, or None for a key that is left out."""
        if callable(self.config):
            value = self.config(config)
            return (
                None
                if value is None
                else config.typed(self.name.removeprefix("{arch}."), value, self.kind)
            )
        names = (self.config,) if isinstance(self.config, str) else self.config
        return config.get(*names, kind=self.kind, default=self.default, lists=True)


def reading(keys: tuple[Key, ...], *names: str, **how: Any) -> tuple[Key, ...]:
    """`keys`, of which those whose name ends in one of `names` are read as `how` says (fields of
    Key)."""
    return tuple(replace(key, **how) if key.name.endswith(names) else key for key in keys)


@dataclass(frozen=True)
class Expect:
    """What the config has to say: one of `values` where the key is present (any value if none are
    listed), and the key itself where it is `required`. `values` may follow from the config."""

    config: str
    values: tuple[Any, ...] | Callable[[Config], tuple[Any, ...]] = ()
    required: bool = False

    def allowed(self, config: Config) -> tuple[Any, ...]:
        """The values that it may have."""
        return self.values(config) if callable(self.values) else self.values

    def check(self, config: Config) -> None:
        """Raises ConfigError."""
        value = config.find(self.config)
        if value is None and self.required:
            raise ConfigError(f"{config.where}: '{self.config}' is missing")
        values = self.allowed(config)
        if value is not None and values and value not in values:
            allowed = " or ".join(repr(v) for v in values)
            raise ConfigError(
                f"{config.where}: '{self.config}' is {value!r}; this architecture needs {allowed}"
            )

    def differs(self, config: Config) -> str | None:
        """A line for people where the config says something else than is computed with."""
        value, values = config.find(self.config), self.allowed(config)
        if value is None or not values or value in values:
            return None
        return (
            f"'{self.config}' is {value!r}, and llama.cpp computes as if it were "
            f"{values[0]!r}: the GGUF file will answer differently from the checkpoint"
        )


AGAIN = " as "  # in the name of a tensor that is read once more: it stands where that one does
Values = Callable[[SourceTensor], "list[Any]"]  # the values of a small tensor


@dataclass(frozen=True)
class Map:
    """A source tensor, by name, and what becomes of it.

    `source` may hold `{bid}` (the block), `{mid}` (a block that predicts further tokens, counted
    from 0) and `{xid}` (the expert, of as many as `experts` says); `{any}` is a number without a
    meaning for the file. `shape` names the dimensions it must have. `layers` names the kind of
    layers that have it (`Architecture.layers`), all of them if empty. `like` is the older spelling
    of the same tensor: llama.cpp orders tensors by name, so a respelled checkpoint keeps the order
    of the spelling that its converter knows. `flat`: its weights count as rows of one. `indices`:
    a table of places in this dimension, kept as int32. `by_rank`: the dimensions of the matrices
    of which each tensor-parallel rank has its rows, one rank after another, where the weights are
    FP8 in blocks.
    `seen`: the dimensions by which its weights are counted, the last of them a row, where they are
    not those of `shape`. `times`: another tensor of as many weights, whose product with this one is
    wanted. `beside`: another matrix, whose columns follow those of this. `batch_norm`: the norm
    whose weight or bias it is, and whose statistics it is folded with. `summed`: the dimension that
    says of how many parts each row is the sum; its weights count as rows of one. `resized`: the
    dimension that says for how many places a side a table of positions is scaled. `early`: of
    another file, whose tensors llama.cpp's converter takes before all else.
    """

    source: str
    shape: tuple[str, ...]
    rows: RowMap
    layers: str = ""
    optional: bool = False
    like: str = ""
    flat: bool = False
    experts: str = "experts"
    indices: str = ""
    by_rank: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    times: str = ""
    beside: str = ""
    batch_norm: str = ""
    summed: str = ""
    resized: str = ""
    early: bool = False

    @cached_property
    def template(self) -> str:
        """The name with every number replaced by a star."""
        return re.sub(_NUMBER, "*", self.source)

    @cached_property
    def templates(self) -> set[str]:
        """The names of all tensors that it is made of, like `template`."""
        names = {self.source, self.times, self.beside} - {""}
        if self.batch_norm:
            ends = ("weight", "bias", "running_mean", "running_var")
            names |= {f"{self.batch_norm}.{end}" for end in ends}
        return {re.sub(_NUMBER, "*", name) for name in names}

    @cached_property
    def fields(self) -> list[str]:
        """What the stars stand for, in order: a number that is written out stands for itself."""
        return [field.strip("{}") for field in re.findall(_NUMBER, self.source)]

    def fits(self, found: Shape, expected: Shape) -> bool:
        """Whether a tensor has the shape that it must have; axes of one before the last may be left
        out."""
        short = (n for n, dim in zip(expected, self.shape, strict=True) if dim != "one")
        return found == expected or (self.shape[-1:] != ("one",) and found == tuple(short))

    def counted(self, t: SourceTensor, dims: Dims) -> SourceTensor:
        """The tensor with its weights in such rows as `rows` wants."""
        if self.summed:
            return slabs(t, dims[self.summed])
        if self.resized:
            return resized(t, dims[self.resized])
        if self.seen:
            return replace(t, shape=tuple(dims[name] for name in self.seen))
        return replace(t, flat=True) if self.flat else t


def linear(
    source: str,
    shape: tuple[str, ...],
    role: str,
    rows: Callable[..., RowMap] = whole,
    *args: str,
    layers: str = "",
    bias: bool | None = None,
) -> tuple[Map, ...]:
    """A weight and the bias beside it: `bias` says whether there is one, None that some
    checkpoints have it."""
    weight = Map(f"{source}.weight", shape, rows(f"{role}.weight", *args), layers)
    if bias is False:
        return (weight,)
    optional = bias is None
    return (
        weight,
        Map(f"{source}.bias", shape[:1], rows(f"{role}.bias", *args), layers, optional),
    )


def vector(source: str, role: str, dim: str = "hidden", layers: str = "", **more: Any) -> Map:
    """The weight of a norm: one axis, taken as it is."""
    return Map(f"{source}.weight", (dim,), whole(f"{role}.weight"), layers, **more)


Dim = Callable[[Config], "int | Sequence[int]"]


@dataclass(frozen=True)
class Architecture:
    """One or more `architectures` of config.json that convert alike. A variant is
    `dataclasses.replace(family, ...)`."""

    hf_names: tuple[str, ...]
    gguf_arch: str
    keys: tuple[Key, ...]  # after general.* and before general.file_type in the file
    late_keys: tuple[Key, ...]  # after it; a key of both keeps its place and takes this value
    expects: tuple[Expect, ...]
    dims: Mapping[str, Dim]  # a list holds one value a layer
    maps: tuple[Map, ...]
    # kinds of layers: name -> whether layer `bid` is one
    layers: Mapping[str, Callable[[Config, int], bool]] = field(default_factory=dict)
    # keys that come before general.*
    first_keys: tuple[Key, ...] = ()
    # another architecture of the same name in config.json, where the config asks for it
    variant: Callable[[Config], Architecture | None] = lambda config: None
    # roles in the order in which llama.cpp emits the stacked experts of a block
    expert_order: tuple[str, ...] = ()
    # names of source tensors that are dropped, as regular expressions, beside those that all
    # families drop (`common.DROPS`, `common.OTHER_MODES`)
    drops: tuple[str, ...] = ()
    # those of them that the converter passes over before it looks for the type of the weights
    unread: tuple[str, ...] = ()
    # our name of a config key -> the family's own (`a.b` is key b of table a), or what it follows
    # from (None: it is as it stands)
    aliases: Mapping[str, str | Callable[[Config], Any]] = field(default_factory=dict)
    # parts of the names of source tensors that are read as others: (pattern, replacement)
    renames: tuple[tuple[str, str], ...] = ()
    # values of a layer or the model that the checkpoint keeps as tensors of one element and a GGUF
    # file as keys: our name of a config key -> the tensor's, with {bid} or without
    scalars: Mapping[str, str] = field(default_factory=dict)
    # another architecture of the same name, where the shapes of the tensors ask for it
    respelled: Callable[[Config, Mapping[str, Shape]], Architecture | None] = lambda c, shapes: None
    # what llama.cpp computes with, whatever config.json says: another value is told, not refused
    assumes: tuple[Expect, ...] = ()
    # what transformers assumes where config.json is silent
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # config values that are seen from the tensors
    learned: Callable[[Mapping[str, SourceTensor], Values], Mapping[str, Any]] | None = None
    # names of source tensors of which not all rows are wanted
    cuts: frozenset[str] = frozenset()
    # source tensors, as a regular expression, that are read once more under a name with this end,
    # which begins with AGAIN
    copies: tuple[str, str] | tuple[()] = ()
    # a source tensor that is left out where it is the same as another
    twins: tuple[str, str] | tuple[()] = ()
    # tensors computed from the config: name -> float32 values, or None where there is none
    computed: Mapping[str, Callable[[Config], Any]] = field(default_factory=dict)
    # source tensors that are in no checkpoint: name -> float32 values
    added: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    # whether tokens are never to be written that were added and whose embedding is zero
    suppresses_zeros: bool = False
    # how many layers after the last predict further tokens, and whether they are converted
    mtp: Callable[[Config], int] = lambda config: 0
    keeps_mtp: bool = False
    # the key of config.json that says so, where `mtp` assumes some without it
    says_mtp: str | None = None
    # tensors that may be joined: of "qkv", "gate_up_exps"
    fuses: tuple[str, ...] = ()
    # whether "qkv" may be in layers that predict further tokens, too
    fuses_ahead: bool = True
    # roles that llama.cpp's converter leaves in float32 (of three values a weight, in float16)
    # elsewhere, and not here
    rounds: frozenset[str] = frozenset()
    # the same, in the layers that predict further tokens
    rounds_ahead: frozenset[str] = frozenset()
    # roles that it leaves in float32 here, and not elsewhere
    exact: frozenset[str] = frozenset()
    # the class of the draft that a checkpoint of it may hold beside it
    draft: str = ""
    # whether it drafts for another model, whose vocabulary and sizes it takes
    drafts: bool = False
    # keys after the vocabulary, and which of them stand there though the vocabulary has them
    last_keys: tuple[Key, ...] = ()
    moved: tuple[str, ...] = ()
    # tables of other files, under the names that they have here: {"sound": "sound/config.json"}; of
    # several files the first that is there
    files: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    # the directory in which the vocabulary lies, where that is not the checkpoint's own
    vocabulary: str = ""
    # weights in other files, which llama.cpp's converter takes before all else; not all checkpoints
    # have those that end in ?
    weights: tuple[str, ...] = ()
    # whether the chat template stands before all other keys but the architecture's
    template_first: bool = False
    # whether vectors go in, and there are no tokens
    no_vocabulary: bool = False
    # whether general.file_type is written; llama.cpp's converter forgets it in a few
    says_file_type: bool = True
    # whether every tensor stays in the type that it is kept in (FP8 becomes Q8_0)
    keeps_types: bool = False
    # whether `--fp8-as-q8` does anything in llama.cpp's converter
    takes_fp8_as_q8: bool = True

    def plain(self, name: str) -> str:
        """The name of a source tensor as the maps spell it."""
        name = _WRAPPERS.sub("", name).replace("language_model.", "")
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def __post_init__(self) -> None:
        if unknown := {m.layers for m in self.maps} - {"", *self.layers}:
            raise ValueError(f"{self.hf_names[0]}: unknown kind of layers {unknown}")


def tied_head_dropped(arch: Architecture) -> Architecture:
    """`arch` without the output matrix where config.json says that the embeddings serve as one;
    what is in the checkpoint all the same is left out."""
    return replace(
        arch,
        maps=tuple(
            replace(m, layers="own head") if m.source == "lm_head.weight" else m for m in arch.maps
        ),
        layers={
            **arch.layers,
            "own head": lambda c, bid: not c.get("tie_word_embeddings", kind="BOOL", default=False),
        },
        drops=(*arch.drops, r"lm_head\.weight"),
    )
