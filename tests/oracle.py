"""ggml itself, through the shared object of the `xllamacpp` wheel: what every byte is held against.

The library is built for the plain instruction set of its platform, so its results are strict IEEE
single precision in source order.
"""

from __future__ import annotations

import ctypes
import functools
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import quant_types


class _Traits(ctypes.Structure):
    """The head of `struct ggml_type_traits`; the fields after `to_float` are not read."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, with the signatures of the functions used."""
    spec = find_spec("xllamacpp")
    assert spec is not None, "the oracle is the xllamacpp wheel: pip install xllamacpp"
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    lib = ctypes.CDLL(str(path))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    lib.ggml_quantize_init.argtypes = [ctypes.c_int]
    lib.ggml_row_size.restype = ctypes.c_size_t
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return lib


def stamp() -> str:
    """Where the bytes come from, for messages and tables."""
    return f"ggml of xllamacpp {version('xllamacpp')}"


def row_bytes(name: str, n: int) -> int:
    """Bytes of a row of `n` weights."""
    return int(library().ggml_row_size(quant_types.get_format(name).ggml_type, n))


def quantize(x: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """`ggml_quantize_chunk`: float32 `x[..., n]`, importance `[n]` -> uint8 `[..., bytes]`."""
    lib = library()
    ggml_type = quant_types.get_format(name).ggml_type
    x = np.ascontiguousarray(x, np.float32)
    n = x.shape[-1]
    rows = x.size // n
    # Poisoned, so that a byte which ggml does not write shows up.
    out = np.full((*x.shape[:-1], row_bytes(name, n)), 0xA5, np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == (n,)
    lib.ggml_quantize_init(ggml_type)
    weights = None if importance is None else importance.ctypes.data
    wrote = lib.ggml_quantize_chunk(ggml_type, x.ctypes.data, out.ctypes.data, 0, rows, n, weights)
    assert wrote == out.size
    return out


def dequantize(data: np.ndarray, name: str) -> np.ndarray:
    """ggml's `to_float`: uint8 `[..., bytes]` -> float32 `[..., n]`."""
    ggml_type = quant_types.get_format(name).ggml_type
    data = np.ascontiguousarray(data, np.uint8)
    traits = library().ggml_get_type_traits(ggml_type).contents
    n = data.shape[-1] // traits.type_size * traits.block_size
    out = np.empty((*data.shape[:-1], n), np.float32)
    if not traits.to_float:  # F32 has no conversion
        return np.array(data.view(np.float32))
    convert = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        traits.to_float
    )
    convert(data.ctypes.data, out.ctypes.data, out.size)
    return out
