"""A source as quantkit sees it: the tensors of a GGUF model and the rows that make each of them.

`from_checkpoint` reads a Hugging Face directory through the rows of its architecture;
`from_gguf` takes a GGUF file as it is. Only headers are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantkit.gguf.container import KeyValue
from quantkit.loading.values import Info
from quantkit.source.segments import Segment
from quantkit.source.tensors import SourceTensor


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the GGUF model before a format is chosen.

    `shape` in NumPy order; `stored` is the type it has in a file that is converted, not quantized.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Model:
    """A model that can be written. `tensors` stand in the order of a conversion."""

    name: str
    arch: str
    tensors: tuple[ModelTensor, ...]
    sources: Mapping[str, SourceTensor]
    kv: tuple[KeyValue, ...]
    partial: frozenset[str] = frozenset()  # sources of which not all rows are wanted
    notes: tuple[str, ...] = field(default=(), compare=False)  # for people: choices that were made

    @property
    def infos(self) -> list[Info]:
        """What is known of each tensor as it is converted."""
        return [Info(t.name, t.shape, t.stored) for t in self.tensors]
