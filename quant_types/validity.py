"""Whether blocks can be worked with: ggml's `ggml_validate_row_data`, for every type of it.

Of a block only its scales are looked at, of floats every value: none may be infinite or NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# type -> the places of its float16 in a block, in bytes
_HALFS: dict[str, tuple[int, ...]] = {
    "F16": (0,), "Q1_0": (0,), "Q2_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,),
    "Q5_1": (0, 2), "Q8_0": (0,), "Q8_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,),
    "IQ3_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
# type -> an integer of its width, and the bits that are all set in NaN and infinity
_FLOATS: dict[str, tuple[type[Any], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
    "Q8_K": (np.uint32, 0x7F800000),  # its scale is a float32, at the start
}
_HALF = 0x7C00
_IQ1_M_SCALES = 48  # bytes before them; a float16 lies in the upper four bits of each of four


def invalid_block(data: Bytes, name: str) -> int:
    """The first block that is infinite or NaN; -1 where none is, and for integers.

    Args:
        data: uint8 `[blocks, bytes of one]`, its last axis contiguous.
        name: ggml's name of the type.
    """
    if name in _HALFS:
        bad = np.zeros(len(data), bool)
        for at in _HALFS[name]:
            bad |= _all_set(data[:, at : at + 2], np.uint16, _HALF)
    elif name in _FLOATS:
        integer, exponent = _FLOATS[name]
        bad = _all_set(data[:, : np.dtype(integer).itemsize], integer, exponent)
    elif name == "F64":  # ggml looks at them in float32
        with np.errstate(over="ignore", invalid="ignore"):
            bad = ~np.isfinite(data.view(np.float64)[:, 0].astype(np.float32))
    elif name == "MXFP4":  # the NaN of its scale, E8M0
        bad = data[:, 0] == 0xFF
    elif name == "IQ1_M":
        four = np.ascontiguousarray(data[:, _IQ1_M_SCALES:]).view(np.uint16) >> 12
        bad = (four[:, 3] & 7 == 7) & (four[:, 2] & 12 == 12)
    else:
        return -1
    return int(bad.argmax()) if bad.any() else -1


def _all_set(data: Bytes, integer: type[Any], exponent: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the integers in `[n, their bytes]` have all of these bits."""
    values = data.view(integer)[:, 0] & integer(exponent)
    found: np.ndarray[Any, np.dtype[np.bool_]] = values == integer(exponent)
    return found
