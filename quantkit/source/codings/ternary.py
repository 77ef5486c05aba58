"""BitNet: weights of -1, 0 and 1 in two bits, four quarters of a matrix's rows in the bits of one
byte, and one scale for all. Whether that is multiplied or divided by depends on the class of the
layers (transformers' `integrations/bitnet.py`); llama.cpp's converter always divides.
"""

from __future__ import annotations

import numpy as np

from quantkit.errors import TensorShape
from quantkit.source.codings.parts import BYTES, FLOATS, Found, Rows, cut, joined, part
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor


def join(found: Found, name: str, settings: Settings) -> SourceTensor:
    """U8 `[rows / 4, columns]` and one scale. Raises TensorMissing, TensorShape."""
    weight = part(found, name, BYTES)
    if len(weight.shape) != 2:
        raise TensorShape(
            f"{weight.path}: tensor {weight.name}: {list(weight.shape)} found, a matrix expected"
        )
    scale = part(found, f"{name}_scale", FLOATS, *((1,) if found[f"{name}_scale"].shape else ()))
    times = settings.values.get("linear_class") == "autobitlinear"
    shape = (4 * weight.shape[0], weight.shape[1])
    return joined(name, "F32", shape, "ternary", weight, scale, settings=(int(times),))


def read(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """A rectangle of the weights in float32."""
    codes, scale = t.parts
    quarter, out = codes.n_rows, np.empty((count, width), np.float32)
    factor = files.read_rows(scale, 0, 1).astype(np.float32).ravel()[0]
    done = 0
    while done < count:
        shift, row = divmod(first + done, quarter)
        n = min(quarter - row, count - done)
        held = cut(files, codes, row, n, column, width).view(np.uint8)
        values = (held >> np.uint8(2 * shift) & 3).astype(np.float32) - 1
        out[done : done + n] = values * factor if t.settings[0] else values / factor
        done += n
    return out
