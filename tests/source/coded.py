"""Weights in every coding that is read, and what they are: by the definition of each, in NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from quantkit.source.checkpoint import read_weights
from quantkit.source.codings import decoded, read_settings, widened
from quantkit.source.tensors import SourceTensor
from tests.checkpoints import write_safetensors

GROUP = 64
ROWS, COLUMNS = 96, 256
Arrays = dict[str, np.ndarray[Any, Any]]
Coded = tuple[Arrays, dict[str, Any], np.ndarray[Any, Any]]  # tensors, settings, what they mean
FP8, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
_DTYPES = {
    "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8", "float16": "F16",
    "int16": "I16", "uint32": "U32", "float32": "F32", "float64": "F64", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
F32 = np.float32


def write(arrays: Arrays, path: Path) -> None:
    """A checkpoint of the arrays."""
    raw = {name: (_DTYPES[a.dtype.name], list(a.shape), a.tobytes()) for name, a in arrays.items()}
    write_safetensors(path, raw)


def joined(path: Path, settings: dict[str, Any]) -> list[SourceTensor]:
    """The tensors of a checkpoint with their parts put together, as floats."""
    how = read_settings({"quantization_config": settings}, None, "config.json")
    found = decoded(read_weights(path), how)
    return [widened(t) if t.coding in ("mxfp4_pairs", "nvfp4") else t for t in found]


def words(codes: np.ndarray[Any, Any], bits: int = 4) -> np.ndarray[Any, Any]:
    """Codes along the last axis packed into int32, the first in the lowest bits."""
    per = 32 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per)])
    shifts = np.arange(per, dtype=np.uint64) * np.uint64(bits)
    lanes = codes.reshape(*codes.shape[:-1], -1, per).astype(np.uint64)
    return (lanes << shifts).sum(-1).astype(np.uint32).view(np.int32)


def pairs(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Codes of 4 bits two a byte, the first in the low half."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)


def _scales(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.normal(0.01, 0.002, shape)


def words_of_three(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Codes of 3 bits along the last axis packed into int32, one bit after another."""
    bits = (codes[..., None] >> np.arange(3) & 1).astype(np.uint8)
    packed = np.packbits(bits.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.int32)


def gptq(
    bits: int = 4, order: bool = True, group: int = GROUP, plus: int = 1, **says: Any
) -> Callable[[np.random.Generator], Coded]:
    """GPTQ with `g_idx`, or (`order` False) groups of columns side by side and none."""

    def make(rng: np.random.Generator) -> Coded:
        pack = words_of_three if bits == 3 else lambda codes: words(codes, bits)
        q = rng.integers(0, 1 << bits, (COLUMNS, ROWS))
        zeros = rng.integers(0, 1 << bits, (-(-COLUMNS // group), ROWS))
        scales = _scales(rng, *zeros.shape).astype(np.float16)
        groups = rng.integers(0, COLUMNS // group, COLUMNS).astype(np.int32)
        arrays = {
            "w.qweight": pack(q.T).T.copy(),
            "w.qzeros": pack(zeros),
            "w.scales": scales,
            "w.g_idx": groups,
        }
        if not order:
            del arrays["w.g_idx"]
            groups = np.arange(COLUMNS) // group
        scale, zero = scales.astype(F32)[groups], zeros[groups] + plus
        settings = {
            "quant_method": "gptq",
            "bits": 4 if says.keys() & {"dynamic", "extra_config"} else bits,
            **says,
        }
        return arrays, settings, (scale * (q - zero)).T

    return make


def awq(rng: np.random.Generator, **stated: Any) -> Coded:
    q = rng.integers(0, 16, (COLUMNS, ROWS))
    zeros = rng.integers(0, 16, (COLUMNS // GROUP, ROWS))
    scales = _scales(rng, *zeros.shape).astype(np.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's: nibble i of a word holds column order[i]

    def packed(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return words(codes.reshape(len(codes), -1, 8)[:, :, order].reshape(codes.shape))

    arrays = {"w.qweight": packed(q), "w.qzeros": packed(zeros), "w.scales": scales}
    scale, zero = (np.repeat(x, GROUP, axis=0) for x in (scales.astype(F32), zeros))
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, **stated}
    return arrays, settings, (scale * (q - zero)).T


def compressed(fmt: str, **weights: Any) -> dict[str, Any]:
    """The settings of compressed-tensors with one group."""
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": fmt,
        "config_groups": {"group_0": group},
    }


def packed(
    bits: int = 4, zeros: bool = True, strategy: str = "group", order: bool = False
) -> Callable[[np.random.Generator], Coded]:
    def make(rng: np.random.Generator) -> Coded:
        group = GROUP if strategy == "group" else COLUMNS
        q = rng.integers(0, 1 << bits, (ROWS, COLUMNS))
        scales = _scales(rng, ROWS, COLUMNS // group).astype(np.float16)
        arrays = {
            "w.weight_packed": words(q, bits),
            "w.weight_scale": scales,
            "w.weight_shape": np.array([ROWS, COLUMNS]),
        }
        zero = np.full(scales.shape, 1 << (bits - 1))
        if zeros:
            zero = rng.integers(0, 1 << bits, scales.shape)
            arrays["w.weight_zero_point"] = words(zero.T, bits).T.copy()
        groups = np.arange(COLUMNS) // group
        if order:
            groups = arrays["w.weight_g_idx"] = rng.permutation(groups).astype(np.int32)
        settings = compressed(
            "pack-quantized",
            num_bits=bits,
            type="int",
            strategy=strategy,
            group_size=GROUP if strategy == "group" else None,
        )
        return arrays, settings, (q - zero[:, groups]) * scales.astype(F32)[:, groups]

    return make


def blocks(rng: np.random.Generator) -> Coded:
    """FP8 in blocks, of which the last are partial."""
    values = rng.normal(0, 1, (ROWS, COLUMNS)).astype(FP8)
    height, width = 40, 100
    scales = rng.normal(1, 0.2, (-(-ROWS // height), -(-COLUMNS // width))).astype(F32)
    whole = np.repeat(np.repeat(scales, height, 0), width, 1)[:ROWS, :COLUMNS]
    settings = {"quant_method": "fp8", "weight_block_size": [height, width]}
    return {"w.weight": values, "w.weight_scale_inv": scales}, settings, values.astype(F32) * whole


def scaled(
    shape: tuple[int, ...],
    dtype: Any = FP8,
    scale: Any = F32,
    name: str = "w.weight_scale",
    settings: dict[str, Any] | None = None,
    height: int = 0,
    width: int = 0,
) -> Callable[[np.random.Generator], Coded]:
    """Codes of a byte with scales of `shape`, each for `height` rows and `width` columns."""

    def make(rng: np.random.Generator) -> Coded:
        codes = rng.normal(0, 40, (ROWS, COLUMNS)).clip(-127, 127).astype(dtype)
        if scale in (E8M0, np.uint8):
            scales = rng.integers(110, 130, shape).astype(np.uint8).view(scale)
            values = np.exp2(scales.view(np.uint8).astype(F32) - 127)
        else:
            scales = rng.normal(1, 0.2, shape).astype(scale)
            values = scales.astype(F32)
        whole = values.reshape(-(-ROWS // (height or ROWS)), -1)
        whole = np.repeat(np.repeat(whole, height or ROWS, 0), width or COLUMNS, 1)
        how = settings or {"quant_method": "modelopt", "quant_algo": "FP8"}
        expected = codes.astype(F32) * whole[:ROWS, :COLUMNS]
        return {"w.weight": codes, name: scales}, how, expected

    return make


def int8_with_zeros(rng: np.random.Generator) -> Coded:
    q, zeros = (rng.integers(-128, 128, (ROWS, n)).astype(np.int8) for n in (COLUMNS, 1))
    scales = _scales(rng, ROWS, 1).astype(ml_dtypes.bfloat16)
    arrays = {"w.weight": q, "w.weight_scale": scales, "w.weight_zero_point": zeros}
    settings = compressed("int-quantized", num_bits=8, type="int", strategy="channel")
    return arrays, settings, (q.astype(F32) - zeros) * scales.astype(F32)


def mxfp4(
    codes_name: str,
    scale_name: str,
    settings: dict[str, Any],
    dtype: Any = np.uint8,
    scale: Any = np.uint8,
) -> Callable[[np.random.Generator], Coded]:
    def make(rng: np.random.Generator) -> Coded:
        codes = rng.integers(0, 16, (ROWS, COLUMNS))
        powers = rng.integers(100, 140, (ROWS, COLUMNS // 32)).astype(np.uint8)
        expected = np.array(E2M1, F32)[codes] * np.repeat(np.exp2(powers.astype(F32) - 127), 32, 1)
        arrays: Arrays = {codes_name: pairs(codes).view(dtype), scale_name: powers.view(scale)}
        return arrays, settings, expected

    return make


def nvfp4(modelopt: bool, columns: int = COLUMNS) -> Callable[[np.random.Generator], Coded]:
    def make(rng: np.random.Generator) -> Coded:
        codes = rng.integers(0, 16, (ROWS, columns))
        scales = np.abs(rng.normal(0, 100, (ROWS, columns // 16))).astype(FP8)
        values = np.array(E2M1, F32)[codes]
        if modelopt:
            second = np.array(0.0007, F32)
            arrays = {
                "w.weight": pairs(codes),
                "w.weight_scale": scales,
                "w.weight_scale_2": second,
                "w.input_scale": np.array(0.02, F32),
            }
            settings = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
            return arrays, settings, values * np.repeat(scales.astype(F32) * second, 16, 1)
        whole = np.array([1400.0], F32)
        arrays = {
            "w.weight_packed": pairs(codes),
            "w.weight_scale": scales,
            "w.weight_global_scale": whole,
            "w.input_global_scale": np.array([50.0], F32),
        }
        settings = compressed("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16)
        return arrays, settings, values * np.repeat(scales.astype(F32) / whole, 16, 1)

    return make


def bitsandbytes8(rng: np.random.Generator) -> Coded:
    q = rng.integers(-127, 128, (ROWS, COLUMNS)).astype(np.int8)
    largest = rng.normal(3, 0.2, ROWS).astype(F32)
    arrays = {"w.weight": q, "w.SCB": largest, "w.weight_format": np.array(0, np.uint8)}
    expected = q.astype(F32) * largest[:, None] * F32(7.874015718698502e-3)
    return arrays, {"quant_method": "bitsandbytes", "load_in_8bit": True}, expected


def bitsandbytes4(nested: bool, storage: Any = np.uint8) -> Callable[[np.random.Generator], Coded]:
    def make(rng: np.random.Generator) -> Coded:
        codes = rng.integers(0, 16, ROWS * COLUMNS)
        table = np.sort(rng.normal(0, 1, 16)).astype(F32)
        n, offset = ROWS * COLUMNS // 64, 0.125
        state = {
            "quant_type": "nf4",
            "blocksize": 64,
            "dtype": "bfloat16",
            "shape": [ROWS, COLUMNS],
        }
        arrays: Arrays = {
            "w.weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8).view(storage)[:, None],
            "w.weight.quant_map": table,
        }
        if nested:
            outer, values = (rng.normal(1, 0.1, k).astype(F32) for k in (-(-n // 256), 256))
            held = rng.integers(0, 256, n).astype(np.uint8)
            arrays |= {
                "w.weight.absmax": held,
                "w.weight.nested_absmax": outer,
                "w.weight.nested_quant_map": values,
            }
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
            scales = values[held] * np.repeat(outer, 256)[:n] + F32(offset)
        else:
            scales = arrays["w.weight.absmax"] = rng.normal(1, 0.1, n).astype(F32)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        arrays["w.weight.quant_state.bitsandbytes__nf4"] = text
        expected = (table[codes] * np.repeat(scales, 64)).reshape(ROWS, COLUMNS)
        return arrays, {"quant_method": "bitsandbytes", "load_in_4bit": True}, expected

    return make


def float64(rng: np.random.Generator) -> Coded:
    values = rng.normal(0, 1, (ROWS, COLUMNS))
    return {"w.weight": values}, {}, values.astype(F32)


def _named(
    make: Callable[[np.random.Generator], Coded], settings: dict[str, Any], rng: np.random.Generator
) -> Coded:
    """The same weights with other settings."""
    arrays, _, expected = make(rng)
    return arrays, dict(settings), expected


_ROUND = {"quant_method": "auto-round", "group_size": GROUP, "sym": False}
_BY_MODULE: dict[str, Any] = {"dynamic": {"+:w": {}}}
_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
_V4 = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
_CHANNEL = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
_BLOCK = compressed(
    "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 64]
)
_TEXT_BLOCK = compressed(
    "float-quantized", num_bits=8, type="float", strategy="block", block_structure="32x64"
)
_GROUP = compressed("int-quantized", num_bits=8, type="int", strategy="group", group_size=32)
_MX = compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32)

SCHEMES: dict[str, Callable[[np.random.Generator], Coded]] = {
    "gptq": gptq(), "gptq of 8 bits": gptq(8), "gptq of 2 bits": gptq(2), "awq": awq,
    "gptq of 3 bits": gptq(3), "gptq, second layout": gptq(plus=0, checkpoint_format="gptq_v2"),
    "gptq without g_idx": gptq(order=False, desc_act=False, group_size=GROUP),
    "gptq of 3 bits without g_idx": gptq(3, order=False),
    "gptq, last group partial": gptq(order=False, group=96, group_size=96),
    "gptq of 8 bits, by module": gptq(8, **_BY_MODULE),
    "gptq of 3 bits, by module": gptq(3, **_BY_MODULE),
    "autoround, as gptq": gptq(order=False, **_ROUND, packing_format="auto_round:auto_gptq"),
    "autoround, by module": gptq(8, order=False, **_ROUND, extra_config={"w": {"bits": 8}},
                                 packing_format="auto_round:auto_gptq"),
    "autoround, as awq": partial(awq, **_ROUND, packing_format="auto_round:auto_awq"),
    "quark, fp8": scaled((), settings={"quant_method": "quark"}),
    "quark, fp8 by row": scaled((ROWS,), settings={"quant_method": "quark"}, height=1),
    "quark, mxfp4": mxfp4("w.weight", "w.weight_scale", {"quant_method": "quark"}),
    "packed": packed(), "packed, symmetric": packed(zeros=False), "packed in 8 bits": packed(8),
    "packed in 3 bits": packed(3), "packed by row": packed(strategy="channel"),
    "packed, columns in any order": packed(order=True),
    "fp8 in blocks": blocks,
    "fp8 by tensor": scaled(()), "fp8 by tensor, one": scaled((1,)),
    "fp8 by tensor, mistral": scaled((), name="w.weight_scale_inv",
                                     settings={"quant_method": "fp8", "weight_block_size": None}),
    "fp8 by tensor, mistral's own": scaled((), name="w.qscale_weight", settings=_FP8),
    "fp8 by row": scaled((ROWS, 1), scale=ml_dtypes.bfloat16, settings=_CHANNEL, height=1),
    "fp8 by row, one axis": scaled((ROWS,), height=1),
    "fp8 by column": scaled((1, COLUMNS), width=1),
    "fp8 in blocks, compressed-tensors": scaled((3, 4), settings=_BLOCK, height=32, width=64),
    "fp8 in blocks, as text": scaled((3, 4), settings=_TEXT_BLOCK, height=32, width=64),
    "fp8 in blocks, modelopt": scaled((1, 1, 2, 1), height=128, width=128),
    "fp8 in blocks, powers of two": scaled((1, 2), scale=E8M0, name="w.scale", settings=_V4,
                                           height=128, width=128),
    "mxfp8, minimax": scaled((ROWS, 8), scale=np.uint8, name="w.weight_scale_inv", height=1,
                             width=32, settings={"quant_method": "mxfp8",
                                                 "weight_block_size": [1, 32]}),
    "mxfp8, without a size": scaled((ROWS, 8), scale=np.uint8, name="w.weight_scale_inv", height=1,
                                    width=32, settings={"quant_method": "mxfp8"}),
    "nvfp4, by its algorithm": partial(_named, nvfp4(True), {"quant_algo": "NVFP4"}),
    "nvfp4, sglang": partial(_named, nvfp4(True), {"quant_method": "modelopt_fp4"}),
    "fp8, sglang": scaled((), settings={"quant_method": "modelopt_fp8", "quant_algo": "FP8"}),
    "mxfp8": scaled((ROWS, 8), scale=np.uint8, height=1, width=32),
    "fp8 e5m2": scaled((), dtype=E5M2),
    "int8 by row": scaled((ROWS, 1), dtype=np.int8, settings=_CHANNEL, height=1),
    "int8 by group": scaled((ROWS, 8), dtype=np.int8, settings=_GROUP, height=1, width=32),
    "int8 with zeros": int8_with_zeros,
    "mxfp4, compressed-tensors": mxfp4("w.weight_packed", "w.weight_scale", _MX),
    "mxfp4, mimo": mxfp4("w.weight", "w.weight_scale", _FP8),
    "mxfp4, deepseek": mxfp4("w.weight", "w.scale", _V4, np.int8, E8M0),
    "nvfp4, modelopt": nvfp4(True), "nvfp4, compressed-tensors": nvfp4(False),
    "nvfp4 in short rows": nvfp4(True, 80),
    "bitsandbytes int8": bitsandbytes8, "bitsandbytes nf4": bitsandbytes4(False),
    "bitsandbytes nf4, nested": bitsandbytes4(True),
    "bitsandbytes nf4, stored in bfloat16": bitsandbytes4(True, ml_dtypes.bfloat16),
    "bitsandbytes nf4, stored in float32": bitsandbytes4(False, F32),
    "float64": float64,
}  # fmt: skip
