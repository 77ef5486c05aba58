"""AWQ: `[in, out / 8]` codes of 4 bits in an order of its own, `[in / group, out / 8]` zeros,
`[in / group, out]` scales, as AutoAWQ's GEMM kernel has them. llama.cpp does not read it."""

from __future__ import annotations

import numpy as np

from quantkit.errors import ConfigError
from quantkit.source.codings.parts import FLOATS, WORDS, Found, Rows, cut, joined, part
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the weights of eight columns are


def join(found: Found, name: str, settings: Settings) -> SourceTensor:
    """The parts of `name`. Raises ConfigError, TensorMissing, TensorShape."""
    values = settings.values
    group = values.get("group_size")
    version = values.get("version") or values.get("checkpoint_format") or "gemm"
    four = values.get("bits", values.get("w_bit")) == 4
    if values.get("backend") == "llm-awq":  # matrices `[out, in / 8]`, of the same shapes if square
        version = "gemv"
    if not four or not isinstance(group, int) or str(version).lower() != "gemm":
        raise ConfigError(
            f"{settings.where}: AWQ weights of 4 bits in groups, in the layout 'gemm', are read, "
            "and no others. Convert the 16-bit release instead"
        )
    codes = part(found, f"{name}.qweight", WORDS)
    n_in, n_out = codes.shape[0], codes.shape[1] * 8
    group = group if group > 0 else n_in
    scales = part(found, f"{name}.scales", FLOATS, n_in // group, n_out)
    zeros = part(found, f"{name}.qzeros", WORDS, n_in // group, n_out // 8)
    return joined(
        f"{name}.weight", "F32", (n_out, n_in), "awq", codes, zeros, scales, settings=(group,)
    )


def read(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """A rectangle of the weights in float32. Columns of the packed matrix are rows of the
    weight."""
    codes, zeros, scales = t.parts
    (group,) = t.settings
    left, right = first // 8, -(-(first + count) // 8)
    low, high = column // group, -(-(column + width) // group)
    shifts = 4 * np.array(_PLACES, np.int32)

    def unpacked(part: SourceTensor, top: int, n: int) -> Rows:
        words = cut(files, part, top, n, left, right - left)
        nibbles = (words[:, :, None] >> shifts & 15).reshape(n, -1)
        return nibbles[:, first - left * 8 :][:, :count]

    g = np.arange(column, column + width) // group - low
    q, z = unpacked(codes, column, width), unpacked(zeros, low, high - low)
    s = cut(files, scales, low, high - low, first, count).astype(np.float32)
    return np.ascontiguousarray((s[g] * (q - z[g]).astype(np.float32)).T)
