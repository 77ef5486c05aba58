"""Names and sizes of ggml's tensor types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


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


# ggml.h, ggml.c `type_traits`. Our own table: the gguf package's lacks types and has a size wrong.
TYPES: tuple[GGMLType, ...] = (
    GGMLType("F32", 0, 1, 4), GGMLType("F16", 1, 1, 2), GGMLType("Q4_0", 2, 32, 18),
    GGMLType("Q4_1", 3, 32, 20), GGMLType("Q5_0", 6, 32, 22), GGMLType("Q5_1", 7, 32, 24),
    GGMLType("Q8_0", 8, 32, 34), GGMLType("Q8_1", 9, 32, 36), GGMLType("Q2_K", 10, 256, 84),
    GGMLType("Q3_K", 11, 256, 110), GGMLType("Q4_K", 12, 256, 144), GGMLType("Q5_K", 13, 256, 176),
    GGMLType("Q6_K", 14, 256, 210), GGMLType("Q8_K", 15, 256, 292),
    GGMLType("IQ2_XXS", 16, 256, 66), GGMLType("IQ2_XS", 17, 256, 74),
    GGMLType("IQ3_XXS", 18, 256, 98), GGMLType("IQ1_S", 19, 256, 50),
    GGMLType("IQ4_NL", 20, 32, 18), GGMLType("IQ3_S", 21, 256, 110),
    GGMLType("IQ2_S", 22, 256, 82), GGMLType("IQ4_XS", 23, 256, 136), GGMLType("I8", 24, 1, 1),
    GGMLType("I16", 25, 1, 2), GGMLType("I32", 26, 1, 4), GGMLType("I64", 27, 1, 8),
    GGMLType("F64", 28, 1, 8), GGMLType("IQ1_M", 29, 256, 56), GGMLType("BF16", 30, 1, 2),
    GGMLType("TQ1_0", 34, 256, 54), GGMLType("TQ2_0", 35, 256, 66), GGMLType("MXFP4", 39, 32, 17),
    GGMLType("NVFP4", 40, 64, 36), GGMLType("Q1_0", 41, 128, 18), GGMLType("Q2_0", 42, 64, 18),
)  # fmt: skip
_BY_ID = {t.id: t for t in TYPES}
_BY_NAME = {t.name: t for t in TYPES}


def type_by_id(ggml_type: int) -> GGMLType | None:
    """The type with ggml's number, or None."""
    return _BY_ID.get(ggml_type)


def type_by_name(name: str) -> GGMLType:
    """The type with ggml's name (KeyError otherwise)."""
    return _BY_NAME[name]


def tensor_bytes(shape: Sequence[int], name: str) -> int:
    """Bytes of a tensor of `shape` in the type of that name."""
    return type_by_name(name).row_bytes(prod(shape))
