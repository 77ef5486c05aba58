"""GPTQ: `[in / 8, out]` codes, `[in / group, out / 8]` zeros, `[in / group, out]` scales for 4
bits, and the group of each input. llama.cpp: `conversion/base.py`, `dequant_gptq`.

Codes of 3 bits, which llama.cpp's converter does not read, are 32 in three words, one bit after
another, as AutoGPTQ and GPTQModel pack them. Modules may have bits of their own (GPTQModel's
`dynamic`, AutoRound's `extra_config`): how many a module has is seen from its parts.
"""

from __future__ import annotations

import numpy as np

from quantkit.errors import ConfigError, CorruptFile, TensorShape
from quantkit.source.codings.packed import shifts
from quantkit.source.codings.parts import (
    FLOATS,
    INTEGERS,
    WORDS,
    Found,
    Rows,
    cut,
    joined,
    part,
    wrong_shape,
)
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor

# bits of a code -> codes that begin and end with words, and those words
_RUNS = {2: (16, 1), 3: (32, 3), 4: (8, 1), 8: (4, 1)}
# what is taken off the zeros that are kept, by the layout's name
_KEPT_LESS = {"gptq": 1, "gptq_v2": 0}
# keys that name the layout: GPTQModel writes the first and takes either
_LAYOUT = ("checkpoint_format", "format")
# settings that give modules bits of their own
_BY_MODULE = ("dynamic", "extra_config")


def join(found: Found, name: str, settings: Settings) -> SourceTensor:
    """The parts of `name`. Raises ConfigError, TensorMissing, TensorShape."""
    values = settings.values
    said = [values.get(key) for key in _LAYOUT if values.get(key)]
    layout = "marlin" if values.get("is_marlin_format") else said[0] if said else "gptq"
    if len({*map(str, said)}) > 1:
        raise ConfigError(
            f"{settings.where}: GPTQ weights in two layouts at once, {said[0]!r} and {said[1]!r}: "
            f"{' and '.join(_LAYOUT)} of quantization_config contradict each other"
        )
    if layout not in _KEPT_LESS:
        raise ConfigError(
            f"{settings.where}: GPTQ weights in the layout {layout!r}; {', '.join(_KEPT_LESS)} are "
            "read. Convert the 16-bit release instead"
        )
    codes = part(found, f"{name}.qweight", WORDS)
    scales = part(found, f"{name}.scales", FLOATS)
    zeros = part(found, f"{name}.qzeros", WORDS)
    bits = values.get("bits")
    if any(values.get(key) for key in _BY_MODULE):
        bits = zeros.n_per_row * 32 // scales.n_per_row
    if type(bits) is not int or bits not in _RUNS:
        raise ConfigError(
            f"{settings.where}: {name} is in GPTQ of {bits} bits; 2, 3, 4 and 8 are read. Convert "
            "the 16-bit release instead"
        )
    per, words = _RUNS[bits]
    if len(codes.shape) != 2 or codes.shape[0] % words or codes.shape[1] % per:
        raise TensorShape(
            f"{codes.path}: tensor {codes.name}: {list(codes.shape)} found; codes of {bits} bits "
            f"are a matrix of rows in multiples of {words} and columns in multiples of {per}"
        )
    n_in, n_out, n_groups = codes.shape[0] // words * per, codes.shape[1], scales.shape[0]
    for t, wanted in (scales, n_out), (zeros, n_out // per * words):
        if t.shape != (n_groups, wanted):
            raise wrong_shape(t, (n_groups, wanted))
    parts, group = [codes, zeros, scales], 0
    if f"{name}.g_idx" in found or values.get("desc_act"):
        parts.append(part(found, f"{name}.g_idx", INTEGERS, n_in))
    else:  # groups of columns that are side by side
        group = _group(values.get("group_size"), n_in, n_groups)
        if not group:
            raise TensorShape(
                f"{scales.path}: tensor {scales.name}: scales of {n_groups} groups for {n_in} "
                f"columns, which quantization_config of {settings.where} does not explain, and no "
                f"{name}.g_idx beside them"
            )
    return joined(
        f"{name}.weight",
        "F32",
        (n_out, n_in),
        "gptq",
        *parts,
        settings=(bits, _KEPT_LESS[layout], group),
    )


def _group(stated: object, n_in: int, n_groups: int) -> int:
    """Columns of a group: as stated, if that makes `n_groups`, or else an equal share; 0 if it is
    not told."""
    if type(stated) is int and stated > 0 and -(-n_in // stated) == n_groups:
        return stated
    return 0 if n_in % n_groups else n_in // n_groups


def _codes(words: Rows, bits: int) -> Rows:
    """`[words, n]` int32, of whole runs, as `[codes, n]`: the first code in the lowest bits."""
    if bits != 3:
        found: Rows = words[:, None] >> shifts(bits)[:, None] & ((1 << bits) - 1)
        return found.reshape(-1, words.shape[1])
    runs = words.view(np.uint32).reshape(-1, 3, words.shape[1]).astype(np.uint64)
    two = runs | np.roll(runs, -1, axis=1) << np.uint64(32)  # a code may end in the next word
    begin = 3 * np.arange(32, dtype=np.uint64)
    found = two[:, begin // 32] >> (begin % 32)[:, None] & np.uint64(7)
    return found.astype(np.int32).reshape(-1, words.shape[1])


def read(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """A rectangle of the weights in float32. Columns of the packed matrix are rows of the weight.
    Codes are packed along its columns, zeros along its rows."""
    codes, zeros, scales, *groups = t.parts
    bits, plus, group = t.settings
    per, words = _RUNS[bits]
    top, end = column // per, -(-(column + width) // per)
    q = _codes(cut(files, codes, top * words, (end - top) * words, first, count), bits)
    q = q[column - top * per :][:width]
    left, right = first // per, -(-(first + count) // per)
    packed = cut(files, zeros, 0, zeros.n_rows, left * words, (right - left) * words)
    z = _codes(np.ascontiguousarray(packed.T), bits)[first - left * per :][:count].T + plus
    g = np.arange(column, column + width) // group if group else None
    if g is None:
        (stated,) = groups
        g = cut(files, stated, 0, 1, column, width).ravel()
        if g.min() < 0 or g.max() >= scales.n_rows:
            raise CorruptFile(
                f"{stated.path}: tensor {stated.name} names a group that is not there"
            )
    s = cut(files, scales, 0, scales.n_rows, first, count).astype(np.float32)
    return np.ascontiguousarray((s[g] * (q - z[g]).astype(np.float32)).T)
