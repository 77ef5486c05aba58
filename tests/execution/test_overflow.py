"""A weight past what its format holds: one line with its place, and no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import quant_types
from quantkit import errors
from quantkit.calibration.imatrix import Imatrix
from quantkit.gguf.container import read_header
from quantkit.jobs import convert, quantize
from quantkit.planning.build import Request
from quantkit.recipes.choose import Overrides
from quantkit.releases.release import release
from quantkit.reporting.inspection import inspect
from quantkit.verification.verify import verify
from tests import oracle
from tests.checkpoints import DTYPES
from tests.damage import edit_tensors
from tests.sampling import one_in
from tests.verification.damage import rewritten, span

NAME, ROW = "model.layers.1.self_attn.q_proj.weight", 5
OURS = "blk.1.attn_q.weight"  # its rows are permuted
HOLD_IT = {"F32", "BF16", "MXFP4"}
WITH_MATRIX = {"IQ1_M", "IQ2_S", "IQ3_XXS"}  # llama-quantize does not make them without one
# formats that an importance matrix is needed for stop at such weights in the same place
REFUSE_IT = sorted(
    f.name
    for f in quant_types.FORMATS
    if f.name not in HOLD_IT | WITH_MATRIX and not f.needs_importance
)


def with_weight(source: Path, value: float) -> Path:
    def edit(tensors: dict[str, Any]) -> None:
        dtype, shape, data = tensors[NAME]
        x = np.frombuffer(data, ml_dtypes.bfloat16).reshape(shape).copy()
        x[ROW, 7] = value
        tensors[NAME] = (dtype, shape, x.tobytes())

    edit_tensors(source, edit)
    return source


@pytest.fixture
def huge(broken: Callable[..., Path]) -> Path:
    return with_weight(broken("llama-dense"), 2.0**40)


@pytest.mark.parametrize("fmt", REFUSE_IT)
def test_every_format_with_a_float16(fmt: str, huge: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    recipe = "F16" if fmt == "F16" else "Q8_0"
    request = (
        Request() if fmt == "F16" else Request(overrides=Overrides(tensor_types=(("attn_q", fmt),)))
    )
    with pytest.raises(errors.WeightTooLarge) as caught:
        quantize(huge, [recipe], out, request=request)
    line = str(caught.value)
    assert f"tensor {OURS}, row " in line
    assert f"1.09951e+12 is past what {fmt} holds; choose BF16 or F32" in line
    assert "\n" not in line
    assert list(out.iterdir()) == []


def data_of(path: Path, name: str) -> bytes:
    header = read_header(path)
    return path.read_bytes()[header.data_offset :][span(header, name)]


@pytest.mark.parametrize("value", [70144.0, 1e8, 2.0**40, 3e38])
@pytest.mark.parametrize(
    "fmt", one_in(4, [f.name for f in quant_types.FORMATS if f.takes_importance])
)
def test_with_importances_the_bytes_are_ggmls_or_none_are_written(
    fmt: str, value: float, broken: Callable[..., Path], tmp_path: Path
) -> None:
    source = with_weight(broken("llama-dense"), value)
    weights = np.random.default_rng(3).lognormal(size=256).astype(np.float32)
    matrix = Imatrix("m.gguf", {OURS: weights}, ("text",), 1)
    convert(source, tmp_path / "f32.gguf", "f32")
    rows = np.frombuffer(data_of(tmp_path / "f32.gguf", OURS), np.float32).reshape(-1, 256)
    request = Request(overrides=Overrides(tensor_types=(("blk.1.attn_q", fmt),)))
    path, said = tmp_path / "m.gguf", ""
    try:
        quantize(source, ["Q8_0"], path, request=request, imatrix=matrix)
    except errors.WeightTooLarge as e:  # where ggml writes infinities, or stops the process
        said = str(e)
    if said:
        assert f"tensor {OURS}, row " in said
        assert f"is past what {fmt} holds; choose BF16 or F32" in said
        assert not list(tmp_path.glob("m.gguf*"))
        assert value > 1e5
    else:
        theirs = oracle.quantize(rows, fmt, weights)
        assert data_of(path, OURS) == theirs.tobytes()
        assert np.isfinite(oracle.dequantize(theirs, fmt)).all()


@pytest.mark.parametrize("value", [1e13, 1e19, 1e25, 3e38])
@pytest.mark.parametrize("fmt", ["Q3_K", "Q6_K", "IQ4_XS", "Q4_K", "NVFP4"])
def test_where_sums_of_squares_overflow(
    fmt: str, value: float, broken: Callable[..., Path], tmp_path: Path
) -> None:
    """A search then takes zeros for the best."""
    source = with_weight(broken("llama-dense"), value)
    request = Request(overrides=Overrides(tensor_types=(("attn_q", fmt),)))
    with pytest.raises(errors.WeightTooLarge, match=f"past what {fmt} holds; choose BF16 or F32"):
        quantize(source, ["Q8_0"], tmp_path / "m.gguf", request=request)


def in_dtype(source: Path, name: str, dtype: str, value: float) -> Path:
    def edit(tensors: dict[str, Any]) -> None:
        kept, shape, data = tensors[name]
        x = np.frombuffer(data, DTYPES[kept]).astype(DTYPES[dtype])
        x[3] = value
        tensors[name] = (dtype, shape, x.tobytes())

    edit_tensors(source, edit)
    return source


def test_past_bfloat16_and_past_float32(broken: Callable[..., Path], tmp_path: Path) -> None:
    source = in_dtype(broken("llama-dense"), NAME, "F32", 3.4e38)
    for outtype in ("bf16", "auto"):
        with pytest.raises(errors.WeightTooLarge, match="past what BF16 holds; choose F32 for it"):
            convert(source, tmp_path / "m.gguf", outtype)
    in_dtype(source, NAME, "F64", 1e300)
    with pytest.raises(errors.WeightTooLarge, match="row 0: 1e\\+300 is past what F32 holds"):
        convert(source, tmp_path / "m.gguf", "f32")


def test_a_value_that_is_computed(broken: Callable[..., Path], tmp_path: Path) -> None:
    """Of qwen3next's `A_log`, the exponential is written."""
    source = in_dtype(broken("qwen3next"), "model.layers.0.linear_attn.A_log", "F32", 100.0)
    with pytest.raises(errors.NonFiniteWeight, match=r"A_log has NaN or infinity in row 3"):
        convert(source, tmp_path / "m.gguf")


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_a_conversion(outtype: str, huge: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.WeightTooLarge, match=f"is past what {outtype.upper()} holds"):
        convert(huge, tmp_path / "m.gguf", outtype)
    assert not list(tmp_path.glob("m.gguf*"))


def test_the_row_is_named(huge: Path, tmp_path: Path) -> None:
    """As it stands in the tensor that would be written."""
    convert(huge, tmp_path / "m.gguf", "f32")
    x = np.frombuffer(data_of(tmp_path / "m.gguf", OURS), np.float32).reshape(-1, 256)
    row = int(np.abs(x).max(axis=1).argmax())
    with pytest.raises(errors.WeightTooLarge, match=f"{OURS}, row {row}: "):
        quantize(huge, ["Q4_K_M"], tmp_path)


@pytest.mark.parametrize("fmt", ["BF16", "F32", "MXFP4"])
def test_formats_that_hold_it(fmt: str, huge: Path, tmp_path: Path) -> None:
    request = Request(overrides=Overrides(tensor_types=(("attn_q", fmt),)))
    recipe = "Q8_0" if fmt == "MXFP4" else fmt
    path = quantize(huge, [recipe], tmp_path, request=request).files[0].path
    assert verify(path).good


def test_what_fits_into_a_scale_is_made(broken: Callable[..., Path], tmp_path: Path) -> None:
    """70,000 is past float16 and not past a scale of Q8_0; the bytes are those of the source."""
    source = with_weight(broken("llama-dense"), 70000.0)
    path = quantize(source, ["Q8_0"], tmp_path).files[0].path
    assert verify(path, source).good
    with pytest.raises(errors.WeightTooLarge, match="70144 is past what F16 holds"):
        convert(source, tmp_path / "f16.gguf", "f16")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "F16", "BF16"])
def test_blocks_that_are_infinite_are_found_in_files(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """By verify, alone and against themselves, where the bytes are the same; by inspect; and as
    they would be copied."""
    good = quantize(checkpoint("llama-dense"), [kind], tmp_path).files[0].path

    def damage(header: Any, data: bytearray) -> None:
        start = span(header, "blk.1.attn_k.weight").start
        data[start : start + 2] = b"\x80\x7f" if kind == "BF16" else b"\x00\x7c"

    bad = rewritten(good, tmp_path / "bad.gguf", damage)
    (finding,) = verify(bad).findings
    assert finding == "blk.1.attn_k.weight has NaN or infinity, first in row 0"
    assert "blk.1.attn_k.weight has NaN or infinity" in verify(bad, bad).findings
    assert "NaN or infinity in blk.1.attn_k.weight, first near row 0" in inspect(bad).problems
    with pytest.raises(errors.NonFiniteWeight, match=r"in row 0"):
        quantize(bad, ["COPY"], tmp_path / "copy.gguf")
    assert not list(tmp_path.glob("copy.gguf*"))


def test_a_release_leaves_no_record_of_nothing(huge: Path, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    for name in ("new", "before"):
        with pytest.raises(errors.WeightTooLarge, match="past what Q4_K holds"):
            release(huge, tmp_path / name, ["Q4_K_M"])
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "before").iterdir()) == []
