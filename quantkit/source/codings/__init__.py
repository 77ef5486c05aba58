"""Weights that are kept in 8 and 4 bits beside their scales: read as the numbers that they mean.

Several tensors of the checkpoint (`weight`, `weight_scale_inv` ...) become one `SourceTensor` that
is decoded as its rows are read: in float32, as llama.cpp's converter computes it
(`conversion/base.py`, dequant_model), or, for MXFP4 and NVFP4, in ggml's blocks, where only bits
move. Which coding it is follows from the tensors; `quantization_config` has what they do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from quantkit.errors import ConfigError
from quantkit.gguf.types import type_by_name
from quantkit.source.codings import (
    awq,
    batch_norm,
    beside,
    bitsandbytes,
    by_expert,
    codebooks,
    gptq,
    mxfp4,
    nvfp4,
    packed,
    plain,
    product,
    resized,
    scaled,
    slabs,
    ternary,
)
from quantkit.source.codings.known import are_known, check_activations, is_coded
from quantkit.source.codings.parts import Decoder, Found, Join, Rows, cut
from quantkit.source.codings.settings import Settings, read_settings
from quantkit.source.tensors import Files, SourceTensor

__all__ = ["Settings", "decoded", "is_idle", "read", "read_settings", "settings_note", "widened"]


def decoded(tensors: Sequence[SourceTensor], settings: Settings) -> list[SourceTensor]:
    """The tensors with those that are kept in parts put together, and without what is left over of
    activations and caches.

    Each stands where the part that holds its weights stood. Raises ConfigError (a method that is
    not read), TensorMissing, TensorShape, UnsupportedSource.
    """
    found = {t.name: t for t in tensors}
    out: Found = {}
    check_activations(settings)
    if any(map(is_coded, tensors)) and are_known(settings, tensors):
        for ending, join in _JOINS.items():
            for name in [name for name in found if name.endswith(ending)]:
                if name in found and (made := _joined(join, found, name, ending, settings)):
                    for part in made.parts:
                        found.pop(part.name, None)
                    out[made.parts[0].name] = made
        packed.check_shapes(out.values())
    for name in [name for name in found if name.endswith(_LEFT_OVER)]:
        del found[name]
    kept = (out.get(t.name) or found.get(t.name) for t in tensors)
    return [plain.float64(t) if t.raw == "F64" else t for t in kept if t is not None]


def settings_note(tensors: Iterable[SourceTensor], settings: Settings) -> str | None:
    """A line for people where the settings are left over: no tensor is quantized."""
    if not settings.method or any(map(is_coded, tensors)):
        return None
    return (
        f"quantization_config of {settings.where} says {settings.method!r}, and "
        "every tensor is of 16 bits or more: it is left over, and ignored"
    )


def _joined(
    join: Join, found: Found, name: str, ending: str, settings: Settings
) -> SourceTensor | None:
    try:
        return join(found, name.removesuffix(ending), settings)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        ArithmeticError,
        IndexError,
        RecursionError,
    ) as e:
        raise ConfigError(
            f"{settings.where}: quantization_config does not fit the parts of {name} "
            f"({type(e).__name__}: {e})"
        ) from None


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int = 0, width: int = 0
) -> Rows:
    """`width` columns (all if 0) of rows `first` to `first + count` of `t`, decoded."""
    width = width or t.n_per_row
    if t.coding:
        return _DECODERS[t.coding](files, t, first, count, column, width)
    return cut(files, t, first, count, column, width)


def _of_parts(decode: Callable[..., Rows]) -> Decoder:
    """A decoder of tensors whose parts may be made of parts themselves."""
    return lambda files, t, *where: decode(files, t, *where, read)


def is_idle(t: SourceTensor, found: Mapping[str, SourceTensor]) -> bool:
    """Whether it is a bias of zeros beside a weight in GPTQ: AutoGPTQ gives every layer one.

    Of files on the Hub it is not asked: a request for each would be far too many.
    """
    weight = found.get(f"{t.name.removesuffix('.bias')}.weight")
    if weight is None or weight.coding != "gptq" or t.raw or t.is_remote:
        return False
    with Files([t.path]) as files:
        return not files.read_rows(t, 0, t.n_rows).astype("float32").any()


def widened(t: SourceTensor) -> SourceTensor:
    """A tensor that is kept in blocks, as float32."""
    if t.coding == "nvfp4":
        return nvfp4.widened(t)
    return replace(t, ggml=type_by_name("F32"), coding="mxfp4_floats")


def kept_as(t: SourceTensor) -> str:
    """In what its weights are quantized already, for people ("" if they are not): a ggml type, or
    the coding of a checkpoint."""
    if t.raw:
        return _RAW.get(t.raw, "")
    if not t.coding:
        return "" if t.ggml.is_float or t.ggml.is_number else t.ggml.name
    if t.coding in ("beside", "product", "scaled"):
        return next(filter(None, map(kept_as, t.parts)), "")
    return _KEPT_AS.get(t.coding, "")


def _join_words(found: Found, name: str, settings: Settings) -> SourceTensor:
    """`.qweight`: GPTQ or AWQ, which the tensors do not tell."""
    if settings.method == "awq" or settings.packing.endswith("awq"):
        return awq.join(found, name, settings)
    return gptq.join(found, name, settings)


def _join_packed(found: Found, name: str, settings: Settings) -> SourceTensor:
    """compressed-tensors' `_packed`: integers, MXFP4 or NVFP4."""
    codes, scale_name = found[f"{name}_packed"], f"{name}_scale"
    if codes.raw != "U8":
        return packed.join(found, name, settings)
    if scale_name in found and found[scale_name].raw in ("U8", "F8_E8M0"):
        return mxfp4.join_pairs(found, name, codes.name, scale_name)
    return nvfp4.join(found, name, codes.name, settings)


def _join_scaled(ending: str) -> Join:
    """A weight beside its scales: FP8 or INT8, or four bits in the halves of bytes."""

    def join(found: Found, name: str, settings: Settings) -> SourceTensor | None:
        scale = found[name + ending]
        weight = found.get(name)
        if weight is None:
            if ending == "_scale" and not name.endswith(".weight"):
                return None  # a tensor of the model that is called so
            if settings.method == "modelopt":  # as llama.cpp's converter: the scales of nothing
                del found[scale.name]
                return None
            raise scaled.missing_weight(name, scale)
        if not weight.raw and not name.endswith(".weight") and ending == "_scale":
            return None
        if settings.method == "bitnet":
            return ternary.join(found, name, settings)
        return _join_by_types(found, name, scale, settings)

    return join


def _join_stacked(found: Found, name: str, settings: Settings) -> SourceTensor | None:
    """Stacked experts, which have no `.weight` in their names, as ModelOpt keeps them."""
    weight, scale = found.get(name), found[f"{name}_weight_scale"]
    if weight is None or not weight.raw:
        return None
    return _join_by_types(found, name, scale, settings, scale.name)


def _join_by_types(
    found: Found, name: str, scale: SourceTensor, settings: Settings, nvfp4_scale: str = ""
) -> SourceTensor:
    """A weight and its scales, as their types say; `nvfp4_scale`: what those of NVFP4 are called,
    if not as usual."""
    if found[name].raw == "U8" and scale.raw == "F8_E4M3":
        return nvfp4.join(found, name, name, settings, nvfp4_scale)
    if found[name].raw == "U8" and scale.raw in ("U8", "F8_E8M0"):
        return mxfp4.join_pairs(found, name, name, scale.name)
    return scaled.join(found, name, scale.name, settings)


def _join_beside(ending: str) -> Join:
    """`x.weight` beside `x` + `ending`: DeepSeek V4's, and Mistral's own format."""

    def join(found: Found, name: str, settings: Settings) -> SourceTensor | None:
        weight, scale = found.get(f"{name}.weight"), found[name + ending]
        if weight is None or not weight.raw:
            return None  # a tensor of the model that is called so
        if weight.raw in ("I8", "U8") and scale.raw in ("U8", "F8_E8M0"):
            return mxfp4.join_pairs(found, weight.name, weight.name, scale.name)
        return scaled.join(found, weight.name, scale.name, settings)

    return join


# the ending of a part that each weight of a coding has -> how the parts are put together
_JOINS: Mapping[str, Join] = {
    "_blocks": mxfp4.join_blocks,
    ".qweight": _join_words,
    "_packed": _join_packed,
    "_scale_inv": _join_scaled("_scale_inv"),
    "_weight_scale": _join_stacked,
    "_scale": _join_scaled("_scale"),
    ".scale": _join_beside(".scale"),
    ".qscale_weight": _join_beside(".qscale_weight"),
    ".SCB": bitsandbytes.join_int8,
    ".absmax": bitsandbytes.join_four_bits,
}
# what quantized activations and caches leave in a checkpoint; weights do not need it
_LEFT_OVER = (
    ".input_scale", ".output_scale", "activation_scale", ".input_global_scale", ".input_scale_ub",
    ".qscale_act", ".k_scale", ".v_scale", ".q_scale", ".prob_scale", ".kv_scale",
    ".input_zero_point", ".output_zero_point", ".k_zero_point", ".v_zero_point",
    "_proj_input_scale", "_proj_input_global_scale",  # of stacked experts
)  # fmt: skip
# what a coding is called where people read of it
_KEPT_AS: Mapping[str, str] = {
    "awq": "AWQ", "bitsandbytes8": "bitsandbytes' 8 bits", "bitsandbytes4": "bitsandbytes' 4 bits",
    "gptq": "GPTQ", "mxfp4": "MXFP4", "mxfp4_pairs": "MXFP4", "mxfp4_floats": "MXFP4",
    "nvfp4": "NVFP4", "nvfp4_floats": "NVFP4", "nvfp4_columns": "NVFP4",
    "packed": "packed integers",
    "ternary": "BitNet's two bits",
}  # fmt: skip
_RAW: Mapping[str, str] = {"F8_E4M3": "FP8", "F8_E5M2": "FP8", "I8": "INT8"}
_DECODERS: Mapping[str, Decoder] = {
    "awq": awq.read,
    "bitsandbytes8": bitsandbytes.read_int8,
    "bitsandbytes4": bitsandbytes.read_four_bits,
    "float64": plain.read_float64,
    "gptq": gptq.read,
    "indices": plain.read_indices,
    "mxfp4": mxfp4.read_blocks,
    "mxfp4_pairs": mxfp4.read_blocks,
    "mxfp4_floats": mxfp4.read_floats,
    "nvfp4": nvfp4.read_blocks,
    "nvfp4_floats": nvfp4.read_floats,
    "nvfp4_columns": nvfp4.read_columns,
    "packed": packed.read,
    "batch_norm": _of_parts(batch_norm.read),
    "beside": _of_parts(beside.read),
    "by_expert": _of_parts(by_expert.read),
    "codebooks": _of_parts(codebooks.read),
    "product": _of_parts(product.read),
    "resized": _of_parts(resized.read),
    "scaled": scaled.read,
    "scales": nvfp4.read_scales,
    "slabs": _of_parts(slabs.read),
    "ternary": ternary.read,
}
