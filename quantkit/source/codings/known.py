"""Which codings are read: all others are refused by name, before a byte of a weight is.

`quant_method` names most. Some are seen only from tensors (a tool that writes no settings), and
some say that the weights alone are not the model (activations that are rotated or scaled first).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from quantkit.errors import ConfigError, UnsupportedSource
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import SourceTensor

METHODS = ("auto-round", "awq", "bitnet", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8",
           "gptq", "modelopt", "mxfp4", "mxfp8", "quark")  # fmt: skip
PACKINGS = ("auto_round:auto_gptq", "auto_round:auto_awq")
_SPARSE = ("marlin-24", "sparse-24-bitmask", "sparse-bitmask")  # formats of compressed-tensors
# endings that only parts of quantized weights have
_PARTS = ("_scale_inv", ".weight_scale", ".weight_packed", ".qweight", "_blocks", ".absmax", ".SCB")
# ending of a part, its stored dtypes -> whose coding it is; of those that are not read
_OTHERS = (
    (".q_weight", ("I32",), "EXL2"),
    (".trellis", ("I16",), "EXL3"),
    (".W_q", ("U8", "I32"), "HQQ"),
    (".codes", ("I8", "U8", "I16", "U16"), "AQLM"),
    (".indices", ("I16", "U16", "I32", "I64"), "VPTQ"),
    (".dense_weights", ("I64", "U64"), "SpQR"),
    (".Qidxs", ("I16", "I64", "U8"), "QuIP#"),
    ("._data", ("I8", "U8"), "quanto"),
    (("_qdata", ":_data"), ("I8", "U8", "I32", "F8_E4M3"), "torchao"),
    (".B", ("I32",), "Marlin"),
    ((".bitmask", ".meta"), ("U8", "I16"), "compressed-tensors' sparse layouts"),
    (".weight", ("U32",), "MLX"),
)
# parts that say that what goes into the weights is changed first
_BEFORE = (".pre_quant_scale", ".svdquant_lora_a")
_WRITE = {
    "MLX": "or write one: mlx_lm.convert --hf-path DIR --dequantize --mlx-path NEW",
    "": "or write one first: in transformers, model.dequantize(), then model.save_pretrained(DIR)",
}


def is_coded(t: SourceTensor) -> bool:
    """Whether a tensor is, or may be, a part of a quantized weight."""
    return t.name.endswith(_PARTS) or t.raw not in ("", "F64", "I64", "BOOL")


def are_known(settings: Settings, tensors: Iterable[SourceTensor]) -> bool:
    """Whether the settings say how weights are kept, or need not; there are quantized tensors
    among them. Raises ConfigError, UnsupportedSource."""
    tensors = list(tensors)
    if settings.method and settings.method not in METHODS:
        raise ConfigError(
            f"{settings.where}: weights are quantized by {settings.method!r}, which is not read "
            f"({', '.join(sorted(METHODS))} are). Convert the 16-bit release, {_WRITE['']}"
        )
    for t in tensors:
        _check_part(t)
    if settings.method:
        _check_packing(settings)
        return True
    if any(t.raw == "F8_E8M0" for t in tensors):  # powers of two, which only scales are kept in
        return True
    if part := next((t for t in tensors if t.name.endswith(_PARTS)), None):
        raise ConfigError(
            f"{settings.where}: no quantization_config, and tensor {part.name} of {part.path} "
            "is a part of quantized weights; get the config.json of the release again"
        )
    return False


def check_activations(settings: Settings) -> None:
    """Refuse weights that are right only with activations that are changed as the model runs,
    however the weights are kept. Raises ConfigError."""
    if rotated := settings.rotated:
        raise ConfigError(
            f"{settings.where}: {rotated} of quantization_config rotates what goes into the "
            "weights as the model runs, and GGUF has no place for that. Convert the 16-bit "
            "release instead"
        )


def _check_part(t: SourceTensor) -> None:
    """Refuse the parts of codings that are not read. Raises UnsupportedSource."""
    for ending, dtypes, whose in _OTHERS:
        if t.raw in dtypes and t.name.endswith(ending):
            raise UnsupportedSource(
                f"{t.path}: tensor {t.name} is {t.raw}: weights as {whose} keeps them, which are "
                f"not read. Convert the 16-bit release{_more(whose)}"
            )
    if t.name.endswith(_BEFORE):
        raise UnsupportedSource(
            f"{t.path}: tensor {t.name} changes what goes into the weights as the model runs, and "
            "GGUF has no place for that. Convert the 16-bit release instead"
        )


def _more(whose: str) -> str:
    return f", {_WRITE[whose]}" if whose in _WRITE else " instead"


def _check_packing(settings: Settings) -> None:
    """Settings that say of a layout of a known method that it is another. Raises ConfigError."""
    if settings.method == "auto-round" and settings.packing not in PACKINGS:
        raise ConfigError(
            f"{settings.where}: AutoRound's weights in packing_format {settings.packing!r}; "
            f"{' and '.join(PACKINGS)} are read. Convert the 16-bit release instead"
        )
    sparse = next((f for f in _formats(settings) if f in _SPARSE), None)
    if settings.method == "compressed-tensors" and sparse:
        raise ConfigError(
            f"{settings.where}: weights of which some are left out, in the format {sparse!r}, are "
            "not read. Convert the 16-bit release instead"
        )
    if settings.method == "quark" and any(map(_by_column, _tables(settings.values))):
        raise ConfigError(
            f"{settings.where}: Quark's weights with a scale for each column (ch_axis) are not "
            "read. Convert the 16-bit release instead"
        )


def _formats(settings: Settings) -> Iterator[Any]:
    """What compressed-tensors calls its layouts: of all, of a group, of what is sparse."""
    return (table.get("format") for table in _tables(settings.values))


def _by_column(table: dict[str, Any]) -> bool:
    return table.get("qscheme") == "per_channel" and table.get("ch_axis") not in (None, 0, -2)


def _tables(value: Any, deep: int = 6) -> Iterator[dict[str, Any]]:
    """A table and those in it."""
    if isinstance(value, dict):
        yield value
        value = [*value.values()]
    if deep and isinstance(value, list):
        for item in value:
            yield from _tables(item, deep - 1)
