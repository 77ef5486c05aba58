"""What is said of an encoder beside the words that every architecture is written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.architectures.rules import Architecture, Config, Key


@dataclass(frozen=True)
class Encoder(Architecture):
    """The encoders of images or sound of one or more `architectures` of config.json.

    Its config has the tables `vision_config`, `audio_config`, `text_config` and `preprocessor`
    (preprocessor_config.json with processor_config.json over it), each with `defaults` of its own,
    and in `shapes` those of the tensors, for what no config says.
    """

    # GGUF names (regular expressions) whose format the converter fixes: one of ggml's, or "kernel"
    # (F16 in a file of F16, else F32); the first that matches counts
    forced: tuple[tuple[str, str], ...] = ()
    # keys before general.file_type, which comes before all others
    early_keys: tuple[Key, ...] = ()
    # codebooks that become one tensor: a regular expression whose only number counts them, its name
    codebooks: tuple[str, str] | tuple[()] = ()
    # where the table of an encoder is kept, where it is not under its own name, or what it is
    tables: Mapping[str, str | Callable[[Config], dict[str, Any] | None]] = field(
        default_factory=dict
    )
    # a line for people on what llama.cpp makes of it
    note: str = ""
    # our name of a config key -> the token whose id it is
    tokens: Callable[[Config], Mapping[str, str]] = lambda config: {}
    # tensors of the encoder itself that are left out, as regular expressions
    unseen: tuple[str, ...] = ()
