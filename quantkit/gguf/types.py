"""Names and sizes of ggml's tensor types, from the gguf package's table (`GGML_QUANT_SIZES`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class GGMLType:
    """A ggml type: `block_size` counts weights, `type_size` counts bytes."""

    name: str
    id: int
    block_size: int
    type_size: int

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` weights."""
        return n // self.block_size * self.type_size

    @property
    def is_float(self) -> bool:
        """F32, F16 and BF16: the types that are read without dequantizing blocks."""
        return self.name in ("F32", "F16", "BF16")

    @property
    def is_number(self) -> bool:
        """Integers and F64: one value each, which nothing quantizes, and which are only copied."""
        return self.block_size == 1 and not self.is_float


@cache
def _table() -> dict[int, GGMLType]:
    from gguf.constants import GGML_QUANT_SIZES

    return {int(t): GGMLType(t.name, int(t), *sizes) for t, sizes in GGML_QUANT_SIZES.items()}


def type_by_id(ggml_type: int) -> GGMLType | None:
    """The type with ggml's number, or None."""
    return _table().get(ggml_type)


@cache
def type_by_name(name: str) -> GGMLType:
    """The type with ggml's name (KeyError otherwise)."""
    return next(t for t in _table().values() if t.name == name)
