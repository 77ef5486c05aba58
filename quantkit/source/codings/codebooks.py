"""Codebooks of a quantizer as one tensor: those with fewer rows than the longest end in zeros.

llama.cpp: `conversion/mimo.py`, generate_extra_tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.errors import TensorShape
from quantkit.source.codings.parts import Decoder, Rows, joined
from quantkit.source.tensors import Files, SourceTensor


def codebooks(name: str, books: Sequence[SourceTensor]) -> SourceTensor:
    """Matrices of as many columns, in their order, as `[books, rows of the longest, columns]`.
    Raises TensorShape: they do not fit."""
    first = books[0]
    for t in books:
        if t.raw or len(t.shape) != 2 or (t.ggml, t.shape[1]) != (first.ggml, first.shape[-1]):
            raise TensorShape(
                f"{t.path}: tensor {t.name}: {t.raw or t.ggml.name} {list(t.shape)} found; it is "
                f"a codebook beside {first.name}, {first.ggml.name} {list(first.shape)}"
            )
    longest = max(t.shape[0] for t in books)
    shape = (len(books), longest, first.shape[1])
    return joined(name, first.ggml.name, shape, "codebooks", *books)


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int, of: Decoder
) -> Rows:
    """A rectangle of the codebooks, one below another, in the dtype that `of` reads them in."""
    _, longest, columns = t.shape
    out = []
    while count:
        book, row = divmod(first, longest)
        part = t.parts[book]
        here = min(count, longest - row)
        there = min(here, max(part.shape[0] - row, 0))
        rows = (row, there) if there else (0, 1)
        found = of(files, part, *rows, 0, columns)[:there]
        zeros = np.zeros((here - there, columns), found.dtype)
        out.append(np.concatenate((found, zeros))[:, column : column + width])
        first, count = first + here, count - here
    return np.concatenate(out)
