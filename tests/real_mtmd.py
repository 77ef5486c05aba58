"""The real llama.cpp's eyes and ears: what its mtmd makes of a picture or a sound, in a process of
its own.

`python -m tests.real_mtmd TEXT.gguf MMPROJ.gguf INPUT.npy OUT.npy`: a picture is uint8 `[height,
width, 3]`, a sound float32 `[samples]`, 16,000 a second; what comes out is float32 `[tokens, width
of the text's input]`. The process fails, or ends, where llama.cpp does.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from ctypes import c_bool, c_byte, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

_MEDIA = (1, 2)  # mtmd_input_chunk_type: an image, a sound


class _Params(ctypes.Structure):
    """`mtmd_context_params`, which goes back as it came but for its first and its warmup field."""

    _fields_ = (
        ("use_gpu", c_bool), ("device", c_void_p), ("print_timings", c_bool),
        ("n_threads", c_int32), ("image_marker", c_char_p), ("media_marker", c_char_p),
        ("flash_attn_type", c_int32), ("warmup", c_bool), ("image_min_tokens", c_int32),
        ("image_max_tokens", c_int32), ("rest", c_byte * 256),
    )  # fmt: skip


class _Text(ctypes.Structure):
    """`mtmd_input_text`."""

    _fields_ = (("text", c_char_p), ("length", c_size_t), ("add_special", c_bool),
                ("parse_special", c_bool))  # fmt: skip


_FUNCTIONS = {
    "mtmd_context_params_default": (_Params, ()),
    "mtmd_init_from_file": (c_void_p, (c_char_p, c_void_p, _Params)),
    "mtmd_default_marker": (c_char_p, ()),
    "mtmd_bitmap_init": (c_void_p, (c_uint32, c_uint32, c_char_p)),
    "mtmd_bitmap_init_from_audio": (c_void_p, (c_size_t, c_void_p)),
    "mtmd_input_chunks_init": (c_void_p, ()),
    "mtmd_tokenize": (c_int32, (c_void_p, c_void_p, c_void_p, c_void_p, c_size_t)),
    "mtmd_input_chunks_size": (c_size_t, (c_void_p,)),
    "mtmd_input_chunks_get": (c_void_p, (c_void_p, c_size_t)),
    "mtmd_input_chunk_get_type": (c_int32, (c_void_p,)),
    "mtmd_input_chunk_get_n_tokens": (c_size_t, (c_void_p,)),
    "mtmd_encode_chunk": (c_int32, (c_void_p, c_void_p)),
    "mtmd_get_output_embd": (ctypes.POINTER(c_float), (c_void_p,)),
    "llama_model_n_embd_inp": (c_int32, (c_void_p,)),
}


def seen(text: Path, projector: Path, given: np.ndarray, folder: Path) -> np.ndarray:
    """What llama.cpp's encoder makes of a picture or a sound."""
    np.save(folder / "given.npy", given)
    out = folder / "seen.npy"
    done = subprocess.run(
        [sys.executable, "-m", "tests.real_mtmd", *map(str, (text, projector)),
         str(folder / "given.npy"), str(out)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=300,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # which waits for a debugger
    )  # fmt: skip
    told = [line for line in done.stderr.splitlines() if "ASSERT" in line or "rror" in line]
    assert done.returncode == 0, "\n".join(told) or done.stderr[-3000:]
    return np.load(out)


def main(text: str, projector: str, given: str, out: str) -> None:
    from quantkit.llama.llama_cpp import library

    lib = library()
    for name, (returned, taken) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = returned, taken
    model = lib.llama_model_load_from_file(text.encode(), lib.llama_model_default_params())
    params = lib.mtmd_context_params_default()
    params.use_gpu = params.warmup = False
    context = lib.mtmd_init_from_file(projector.encode(), model, params)
    assert context, "mtmd does not load the projector"
    x = np.ascontiguousarray(np.load(given))
    if x.ndim == 1:
        bitmap = lib.mtmd_bitmap_init_from_audio(len(x), x.ctypes.data)
    else:
        bitmap = lib.mtmd_bitmap_init(x.shape[1], x.shape[0], x.tobytes())
    chunks = lib.mtmd_input_chunks_init()
    marker = lib.mtmd_default_marker()
    said = _Text(marker, len(marker), False, False)
    assert lib.mtmd_tokenize(context, chunks, ctypes.byref(said),
                             (c_void_p * 1)(bitmap), 1) == 0  # fmt: skip
    rows = []
    for i in range(lib.mtmd_input_chunks_size(chunks)):
        chunk = lib.mtmd_input_chunks_get(chunks, i)
        if lib.mtmd_input_chunk_get_type(chunk) not in _MEDIA:
            continue
        assert lib.mtmd_encode_chunk(context, chunk) == 0
        n = lib.mtmd_input_chunk_get_n_tokens(chunk), lib.llama_model_n_embd_inp(model)
        rows.append(np.ctypeslib.as_array(lib.mtmd_get_output_embd(context), n).copy())
    np.save(out, np.concatenate(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
