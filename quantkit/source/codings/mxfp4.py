"""MXFP4: E2M1 weights, and one scale of a power of two (E8M0) for each 32 of a row.

ggml has the same numbers in an order of its own, so only bits move: gpt-oss's `_blocks` and
`_scales`, compressed-tensors' `_packed`, and bytes beside `_scale` or `.scale` (MiMo, DeepSeek V4).
llama.cpp: `conversion/gpt_oss.py`, and `conversion/base.py`, `repack_mxfp4_blocks`.
"""

from __future__ import annotations

import numpy as np

from quantkit.errors import TensorShape
from quantkit.source.codings.parts import (
    BYTES,
    Found,
    Rows,
    check_scales,
    cut,
    flat,
    float4,
    float8,
    joined,
    nibbles,
    part,
)
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor

_POWERS = ("U8", "F8_E8M0")


def join_blocks(found: Found, name: str, settings: Settings) -> SourceTensor:
    """U8 `[..., rows, blocks, 16]`, two weights a byte, and U8 `[..., rows, blocks]`."""
    blocks = part(found, f"{name}_blocks", BYTES)
    *lead, n, size = blocks.shape
    scales = part(found, f"{name}_scales", _POWERS, *lead, n)
    if size != 16:
        raise TensorShape(
            f"{blocks.path}: tensor {blocks.name}: blocks of {size} bytes found, 16 expected"
        )
    parts = flat(blocks, 16 * n), flat(scales, n)
    return joined(f"{name}.mxfp4", "MXFP4", (*lead, 32 * n), "mxfp4", *parts)


def join_pairs(found: Found, name: str, codes_name: str, scale_name: str) -> SourceTensor:
    """Bytes `[..., columns / 2]`, the first weight in the low half, and bytes
    `[..., columns / 32]`."""
    codes = part(found, codes_name, BYTES)
    *lead, half = codes.shape
    if half % 16:
        raise TensorShape(
            f"{codes.path}: tensor {codes.name}: rows of {2 * half} weights found, of MXFP4 are "
            "only whole blocks of 32 read"
        )
    scales = part(found, scale_name, _POWERS, *lead, half // 16)
    parts = flat(codes, half), flat(scales, half // 16)
    return joined(name, "MXFP4", (*lead, 2 * half), "mxfp4_pairs", *parts)


def read_blocks(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """Bytes `[count, blocks * 17]`: a scale, then weight j in the low and weight j + 16 in the
    high half of byte j (ggml `block_mxfp4`), where the source has weights 2j and 2j + 1."""
    codes, scales = (files.read_rows(part, first, count) for part in t.parts)
    check_scales(t, scales, 0xFF, first)
    codes = nibbles(codes.reshape(count, -1, 16))
    packed = codes[..., :16] | codes[..., 16:] << 4
    return np.concatenate((scales[..., None], packed), -1).reshape(count, -1)


def read_floats(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """A rectangle of the weights in float32."""
    codes, scales = t.parts
    left, right = column // 2, -(-(column + width) // 2)
    values = float4(cut(files, codes, first, count, left, right - left), column, width)
    powers = float8("F8_E8M0")[files.read_rows(scales, first, count)]
    out: Rows = values * powers[:, np.arange(column, column + width) // 32]
    return out
