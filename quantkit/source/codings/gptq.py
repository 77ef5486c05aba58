"""GPTQ: `[in / 8, out]` codes, `[in / group, out / 8]` zeros, `[in / group, out]` scales for 4
bits, and the group of each input. llama.cpp: `conversion/base.py`, `dequant_gptq`."""

from __future__ import annotations

import numpy as np

from quantkit.errors import ConfigError, CorruptFile
from quantkit.source.codings.packed import shifts
from quantkit.source.codings.parts import FLOATS, INTEGERS, WORDS, Found, Rows, cut, joined, part
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor


def join(found: Found, name: str, settings: Settings) -> SourceTensor:
    """The parts of `name`; 3 bits straddle words and are not read. Raises ConfigError,
    TensorMissing, TensorShape."""
    bits = settings.values.get("bits")
    if bits not in (2, 4, 8):
        raise ConfigError(
            f"{settings.where}: GPTQ weights of {bits} bits; 2, 4 and 8 are read. Convert the "
            "16-bit release instead"
        )
    codes = part(found, f"{name}.qweight", WORDS)
    n_in, n_out = codes.shape[0] * 32 // bits, codes.shape[1]
    groups = part(found, f"{name}.g_idx", INTEGERS, n_in)
    scales = part(found, f"{name}.scales", FLOATS)
    zeros = part(found, f"{name}.qzeros", WORDS, scales.shape[0], n_out * bits // 32)
    plus = 0 if settings.values.get("checkpoint_format", "gptq") == "gptq_v2" else 1
    return joined(
        f"{name}.weight",
        "F32",
        (n_out, n_in),
        "gptq",
        codes,
        zeros,
        scales,
        groups,
        settings=(bits, plus),
    )


def read(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """A rectangle of the weights in float32. Columns of the packed matrix are rows of the weight.
    Codes are packed along its columns, zeros along its rows."""
    codes, zeros, scales, groups = t.parts
    bits, plus = t.settings
    per, mask = 32 // bits, (1 << bits) - 1
    top, end = column // per, -(-(column + width) // per)
    packed = cut(files, codes, top, end - top, first, count)
    q = (packed[:, None] >> shifts(bits)[:, None] & mask).reshape(-1, count)
    q = q[column - top * per :][:width]
    left, right = first // per, -(-(first + count) // per)
    packed = cut(files, zeros, 0, zeros.n_rows, left, right - left)
    z = (packed[:, :, None] >> shifts(bits) & mask).reshape(zeros.n_rows, -1)
    z = z[:, first - left * per :][:, :count] + plus
    g = cut(files, groups, 0, 1, column, width).ravel()
    if g.min() < 0 or g.max() >= scales.n_rows:
        raise CorruptFile(f"{groups.path}: tensor {groups.name} names a group that is not there")
    s = cut(files, scales, 0, scales.n_rows, first, count).astype(np.float32)
    return np.ascontiguousarray((s[g] * (q - z[g]).astype(np.float32)).T)
