"""Tensors of integers and of F64: copied, named and skipped; never quantized without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.gguf.container import TensorInfo, align, header_bytes, read_header
from quantkit.gguf.types import tensor_bytes, type_by_name
from quantkit.jobs import convert, quantize
from quantkit.planning.build import Request
from quantkit.reporting.inspection import inspect
from quantkit.verification.verify import verify
from tests.conftest import sha256
from tests.damage import edit_tensors

TABLE = "blk.0.ffn_gate_tid2eid.weight"  # DeepSeek V4's, which no recipe quantizes
DTYPES = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}


def with_tensor(path: Path, out: Path, name: str, kind: str) -> bytes:
    """A GGUF file with one more tensor; returns its bytes."""
    header, data = read_header(path), path.read_bytes()
    whole = data[header.data_offset :]
    whole += bytes(align(len(whole)) - len(whole))
    values = np.arange(64, dtype=DTYPES[kind]).reshape(2, 32).tobytes()
    info = TensorInfo(name, (2, 32), type_by_name(kind).id, len(whole))
    text = header_bytes(header.kv, [*header.tensors, info])
    out.write_bytes(text + whole + values + bytes(align(len(values)) - len(values)))
    return values


@pytest.fixture(scope="module")
def plain(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "m.gguf"
    return convert(checkpoint("llama-dense"), path).files[0].path


def test_a_table_is_copied(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = convert(checkpoint("deepseek-v4"), tmp_path / "s.gguf").files[0].path
    request = Request(allow_requantize=True)  # its experts are MXFP4
    path = quantize(source, ["Q8_0"], tmp_path / "q.gguf", request=request).files[0].path
    tables = []
    for file in (source, path):
        header = read_header(file)
        t = next(t for t in header.tensors if t.name == TABLE)
        assert t.ggml_type == type_by_name("I32").id
        start = header.data_offset + t.offset
        tables.append(file.read_bytes()[start : start + tensor_bytes(t.shape, "I32")])
    assert tables[0] == tables[1]
    assert any(tables[0])
    assert verify(path, source).good
    found = inspect(path)
    assert list(found.problems) == []
    assert found.description is not None
    assert "I32" in found.description.dtypes


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_a_table_that_nobody_asks_for(kind: str, plain: Path, tmp_path: Path) -> None:
    with_tensor(plain, tmp_path / "s.gguf", TABLE, kind)
    with pytest.raises(errors.NotLoadable, match=f"{TABLE}: llama.cpp asks for no such tensor"):
        quantize(tmp_path / "s.gguf", ["Q8_0"], tmp_path / "q.gguf")
    assert {p.name for p in tmp_path.iterdir()} == {"s.gguf"}
    found = inspect(tmp_path / "s.gguf").description
    assert found is not None
    assert kind in found.dtypes


@pytest.mark.parametrize("kind", sorted(DTYPES))
@pytest.mark.parametrize("requantize", [False, True])
def test_what_would_be_quantized_is_refused(
    kind: str, requantize: bool, plain: Path, tmp_path: Path
) -> None:
    with_tensor(plain, tmp_path / "s.gguf", "blk.0.table.weight", kind)
    out = tmp_path / "out"
    out.mkdir()
    request = Request(allow_requantize=requantize)
    for recipe in ("Q8_0", "F16"):
        with pytest.raises(errors.RecipeError, match=f"is {kind}, which is not quantized"):
            quantize(tmp_path / "s.gguf", [recipe], out, request=request)
    assert list(out.iterdir()) == []


def test_a_checkpoint_of_float64_is_rounded_first(
    broken: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """As llama.cpp's converter does; here to values that float32 has."""

    def widen(tensors: dict[str, Any]) -> None:
        import ml_dtypes

        for name, (_, shape, data) in tensors.items():
            x = np.frombuffer(data, ml_dtypes.bfloat16).astype(np.float64)
            tensors[name] = ("F64", shape, x.tobytes())

    source = broken("llama-dense")
    edit_tensors(source, widen)
    for kind in ("Q8_0", "Q4_K_M", "F32"):
        for path, name in ((source, "a"), (checkpoint("llama-dense"), "b")):
            quantize(path, [kind], tmp_path / f"{name}.gguf")
        a, b = (read_header(tmp_path / f"{name}.gguf") for name in "ab")
        assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
        ours, theirs = (
            (tmp_path / f"{name}.gguf").read_bytes()[h.data_offset :]
            for name, h in (("a", a), ("b", b))
        )
        assert ours == theirs, kind
        for name in "ab":
            (tmp_path / f"{name}.gguf").unlink()
    convert(source, tmp_path / "wide.gguf", "bf16")
    convert(checkpoint("llama-dense"), tmp_path / "narrow.gguf", "bf16")
    assert sha256(tmp_path / "wide.gguf") == sha256(tmp_path / "narrow.gguf")
