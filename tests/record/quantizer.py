"""llama-quantize's command line over the llama.cpp that is in the xllamacpp wheel.

    python tests/record/quantizer.py [--imatrix FILE.gguf] IN.gguf OUT.gguf TYPE [THREADS]

The work is done by `llama_model_quantize`, as in llama-quantize itself; what that program does
before (types by name, the importance matrix, the keys it notes) is done here after
`tools/quantize/quantize.cpp`. Structures are those of llama.cpp's `include/llama.h`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from ctypes import c_bool, c_char, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from gguf import GGUFReader, LlamaFileType

ALL_F32 = LlamaFileType.ALL_F32
TYPES = {t.name.removeprefix("MOSTLY_"): t for t in LlamaFileType} | {"F32": ALL_F32}
_INT, _STRING = 0, 3  # llama_model_kv_override_type


class _Params(ctypes.Structure):
    _fields_ = (
        ("nthread", c_int32), ("ftype", c_int32), ("output_tensor_type", c_int32),
        ("token_embedding_type", c_int32), ("allow_requantize", c_bool),
        ("quantize_output_tensor", c_bool), ("only_copy", c_bool), ("pure", c_bool),
        ("keep_split", c_bool), ("dry_run", c_bool), ("imatrix", c_void_p),
        ("kv_overrides", c_void_p), ("tt_overrides", c_void_p), ("prune_layers", c_void_p),
        ("rest", c_size_t * 8),  # room for what later versions have
    )  # fmt: skip


class _Importance(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("data", c_void_p), ("size", c_size_t))


class _Value(ctypes.Union):
    _fields_ = (("i64", c_int64), ("f64", c_double), ("text", c_char * 128))


class _Override(ctypes.Structure):
    _fields_ = (("tag", c_int32), ("key", c_char * 128), ("value", _Value))


def importance(path: Path) -> dict[str, np.ndarray]:
    """Tensor -> mean of its squared inputs, float32, an expert after the other; ones where an
    expert was never used."""
    tensors = {t.name: t.data for t in GGUFReader(path).tensors}
    out = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            weight = name.removesuffix(".in_sum2")
            counts = tensors[f"{weight}.counts"].reshape(-1, 1)
            rows = sums.reshape(len(counts), -1)
            used = np.maximum(counts, np.float32(1))
            out[weight] = np.where(counts > 0, rows / used, np.float32(1)).astype(np.float32)
    return out


def noted(path: Path, entries: int) -> ctypes.Array[_Override]:
    """The keys that say which importance matrix a file was made with, and the end of the list."""
    fields = GGUFReader(path).fields
    values: dict[str, str | int] = {
        "file": str(path),
        "dataset": fields["imatrix.datasets"].contents()[0],
        "entries_count": entries,
        "chunks_count": fields["imatrix.chunk_count"].contents(),
    }
    out = (_Override * (len(values) + 1))()
    for override, (key, value) in zip(out, values.items(), strict=False):
        override.key = f"quantize.imatrix.{key}".encode()
        if isinstance(value, int):
            override.tag, override.value.i64 = _INT, value
        else:
            override.tag, override.value.text = _STRING, value.encode()[:127]
    return out


def library() -> ctypes.CDLL:
    """llama.cpp out of the wheel."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        sys.exit("llama.cpp is not installed; pip install xllamacpp")
    folder = Path(spec.origin).parent
    (path,) = (p for p in folder.glob("xllamacpp*") if p.suffix in (".so", ".pyd"))
    lib = ctypes.CDLL(str(path))
    lib.llama_model_quantize_default_params.restype = _Params
    lib.llama_model_quantize.argtypes = (c_char_p, c_char_p, ctypes.POINTER(_Params))
    lib.llama_model_quantize.restype = ctypes.c_uint32
    return lib


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("type", choices=[*TYPES, "COPY"], metavar="TYPE")
    parser.add_argument("threads", type=int, nargs="?", default=os.cpu_count())
    args = parser.parse_args()
    lib = library()
    params = lib.llama_model_quantize_default_params()
    if (params.quantize_output_tensor, params.only_copy, params.imatrix) != (True, False, None):
        sys.exit("xllamacpp has a llama.cpp of another layout than is known here")
    params.nthread, params.ftype = args.threads, TYPES.get(args.type, ALL_F32)
    params.only_copy = args.type == "COPY"
    if args.imatrix:
        data = importance(args.imatrix)
        entries = (_Importance * (len(data) + 1))()
        for entry, (name, x) in zip(entries, data.items(), strict=False):
            entry.name, entry.data, entry.size = name.encode(), x.ctypes.data, x.size
        overrides = noted(args.imatrix, len(data))
        params.imatrix, params.kv_overrides = ctypes.addressof(entries), ctypes.addressof(overrides)
    lib.llama_backend_init()
    source, out = str(args.source).encode(), str(args.out).encode()
    return int(lib.llama_model_quantize(source, out, ctypes.byref(params)) != 0)


if __name__ == "__main__":
    sys.exit(main())
