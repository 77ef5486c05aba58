"""The contract of quantize and dequantize: dtypes, shapes, buffers, importance, errors, threads."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import quant_types
from quant_types import BlockFormat
from tests import oracle
from tests.quant_types.weights import needed
from tests.sampling import one_in

FORMATS = [pytest.param(fmt, id=fmt.name) for fmt in quant_types.FORMATS]
ENGINES = ("lanes", "array")


def some(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("fmt", one_in(3, quant_types.FORMATS))
def test_16_bit_weights(fmt: BlockFormat, dtype: type, engine: str) -> None:
    """They give the bytes of the same weights in float32, denormals and all."""
    bits = np.random.default_rng(1).integers(0, 1 << 16, (33, 512), np.uint16)
    x = bits.view(dtype)
    x = np.where(np.isfinite(x.astype(np.float32)), x, dtype(1))
    if fmt.grid is not None:  # ggml aborts on much greater ones
        x = np.clip(x, dtype(-3e4), dtype(3e4))
    values = np.random.default_rng(2).random(512).astype(np.float32)
    for importance in (needed(fmt, 512), values):
        found = quant_types.quantize(x, fmt, importance, engine)
        wanted = oracle.quantize(x.astype(np.float32), fmt.name, importance)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 65])
def test_any_number_of_rows(fmt: BlockFormat, engine: str, rows: int) -> None:
    """Tiles that are not full."""
    x, given = some((rows, 256), rows), needed(fmt, 256)
    found = quant_types.quantize(x, fmt, given, engine)
    assert np.array_equal(found, oracle.quantize(x, fmt.name, given))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_shapes(fmt: BlockFormat, engine: str) -> None:
    x, given = some((2, 3, 512)), needed(fmt, 512)
    wanted = oracle.quantize(x, fmt.name, given)
    data = quant_types.quantize(x, fmt.name, given, engine)
    assert data.dtype == np.uint8
    assert data.shape == (2, 3, fmt.row_bytes(512))
    assert np.array_equal(data, wanted)
    assert np.array_equal(quant_types.quantize(x[1, 2], fmt, given, engine), wanted[1, 2])
    assert np.array_equal(quant_types.quantize(x[:, ::2], fmt, given, engine), wanted[:, ::2])
    assert quant_types.quantize(x[:, :0], fmt, given, engine).shape == (2, 0, fmt.row_bytes(512))
    again = quant_types.dequantize(data, fmt)
    assert again.dtype == np.float32
    assert again.shape == x.shape
    assert quant_types.dequantize(data[:0], fmt).shape == (0, 3, 512)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_out(fmt: BlockFormat, engine: str) -> None:
    """Written into, in its own shape or flat, and nothing besides."""
    x, given = some((4, 512)), needed(fmt, 512)
    wanted = oracle.quantize(x, fmt.name, given)
    for shape in (wanted.shape, (wanted.size,)):
        buffer = np.full(wanted.size + 20, 0xA5, np.uint8)
        out = buffer[10:-10].reshape(shape)
        assert quant_types.quantize(x, fmt, given, engine, out) is out
        assert np.array_equal(out.reshape(-1), wanted.reshape(-1))
        assert (buffer[:10] == 0xA5).all()
        assert (buffer[-10:] == 0xA5).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("with_importance", [False, True])
def test_into_several_formats(
    with_importance: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as by itself: those that take importance and those that do not, one twice."""
    monkeypatch.setattr(quant_types, "pick_engine", lambda given, is_numpy: engine)
    x = some((6, 512)).astype(ml_dtypes.bfloat16)
    importance = np.random.default_rng(2).random(512).astype(np.float32)
    given = importance if with_importance else None
    formats = [fmt for fmt in quant_types.FORMATS if with_importance or not fmt.needs_importance]
    names = [fmt.name for fmt in formats] + ["Q4_K"]
    outs = [np.empty(6 * quant_types.get_format(name).row_bytes(512), np.uint8) for name in names]
    quant_types.quantize_into(x, zip(names, outs, strict=True), given)
    for name, out in zip(names, outs, strict=True):
        wanted = oracle.quantize(x.astype(np.float32), name, given)
        assert np.array_equal(out, wanted.reshape(-1)), name


def test_into_formats_that_do_not_fit() -> None:
    """Nothing is written if anything is wrong with any of them."""
    x = some((2, 64))
    good = np.full(2 * 68, 0xA5, np.uint8)
    short, far = np.empty(10, np.uint8), np.empty(100, np.uint8)
    for name, out, error in (
        ("Q4_0", short, quant_types.BadShape),
        ("Q4_K", far, quant_types.BadShape),
        ("Q4_9", far, quant_types.UnknownFormat),
        ("Q4_0", far.view(np.int8), quant_types.BadDtype),
    ):
        with pytest.raises(error):
            quant_types.quantize_into(x, [("Q8_0", good), (name, out)])
    assert (good == 0xA5).all()
    x[1, 3] = np.nan
    with pytest.raises(quant_types.NotFinite) as raised:
        quant_types.quantize_into(x, [("Q8_0", good)])
    assert raised.value.row == 1


def test_input_that_is_read_only_or_unaligned() -> None:
    x = some((4, 512))
    wanted = oracle.quantize(x, "Q4_K")
    raw = b"\0" + x.tobytes()
    unaligned = np.frombuffer(raw, np.float32, offset=1).reshape(x.shape)
    assert not unaligned.flags.aligned
    for engine in ENGINES:
        assert np.array_equal(quant_types.quantize(unaligned, "Q4_K", engine=engine), wanted)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["Q4_0", "Q3_K", "Q4_K", "Q6_K"])
def test_importance_broadcasts(name: str, engine: str) -> None:
    """One row of importance for all, or one an expert."""
    x = some((3, 20, 512))
    values = np.random.default_rng(5).random((3, 1, 512)).astype(np.float32)
    found = quant_types.quantize(x, name, values, engine)
    for expert in range(3):
        assert np.array_equal(found[expert], oracle.quantize(x[expert], name, values[expert, 0]))
    wide = np.broadcast_to(values, x.shape)
    assert np.array_equal(quant_types.quantize(x, name, wide, engine), found)
    one = quant_types.quantize(x, name, values[0], engine)
    assert np.array_equal(one, quant_types.quantize(x, name, values[0, 0], engine))


@pytest.mark.parametrize("fmt", FORMATS)
def test_takes_importance(fmt: BlockFormat) -> None:
    """What the table says of a format is what ggml does."""
    x = some((64, 256))
    values = np.random.default_rng(6).random(256).astype(np.float32) ** 4
    plain = oracle.quantize(x, fmt.name, needed(fmt, 256))
    ignored = np.array_equal(oracle.quantize(x, fmt.name, values), plain)
    assert ignored is not fmt.takes_importance


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", FORMATS)
def test_not_finite(fmt: BlockFormat, bad: float, engine: str) -> None:
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        x = some((300, 512)).astype(dtype)
        x[123, 400] = bad
        x[200, 0] = bad
        with pytest.raises(quant_types.NotFinite, match="row 123;") as error:
            quant_types.quantize(x.reshape(3, 100, 512), fmt, needed(fmt, 512), engine)
        assert error.value.row == 123
    x = some((4, 512))
    x[3, 511] = bad
    with pytest.raises(quant_types.NotFinite) as error:
        quant_types.quantize(x, fmt, np.ones(512, np.float32), engine=engine)
    assert error.value.row == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_check_finite(dtype: type, bad: float) -> None:
    x = some((3, 100, 512)).astype(dtype)
    x[0, 0, 0] = ml_dtypes.finfo(dtype).max
    quant_types.check_finite(x)
    quant_types.check_finite(x[:0])
    x[1, 23, 400] = x[2, 0, 0] = bad
    with pytest.raises(quant_types.NotFinite) as error:
        quant_types.check_finite(x)
    assert error.value.row == 123
    with pytest.raises(quant_types.BadDtype):
        quant_types.check_finite(x.view(np.uint8))


def test_unknown_names() -> None:
    with pytest.raises(quant_types.UnknownFormat, match=r"Q4_K.*found 'Q4_KM'"):
        quant_types.get_format("Q4_KM")
    with pytest.raises(quant_types.UnknownFormat, match=r"found 'q4_k'"):
        quant_types.quantize(some((1, 256)), "q4_k")
    with pytest.raises(quant_types.UnknownFormat, match=r"auto, array, lanes, found 'cuda'"):
        quant_types.quantize(some((1, 256)), "Q4_K", engine="cuda")
    with pytest.raises(quant_types.UnknownFormat, match="engine"):
        quant_types.dequantize(np.zeros(144, np.uint8), "Q4_K", engine="cuda")


def test_bad_shapes() -> None:
    with pytest.raises(quant_types.BadShape, match="multiple of 256 weights, found 320"):
        quant_types.quantize(some((2, 320)), "Q4_K")
    with pytest.raises(quant_types.BadShape, match="found 33"):
        quant_types.get_format("Q8_0").row_bytes(33)
    with pytest.raises(quant_types.BadShape, match="scalar"):
        quant_types.quantize(np.float32(1), "F32")
    with pytest.raises(quant_types.BadShape, match="multiple of 144 bytes"):
        quant_types.dequantize(np.zeros(145, np.uint8), "Q4_K")
    x = some((2, 256))
    strided = np.zeros((2, 288), np.uint8)[:, ::2]
    read_only = np.zeros(288, np.uint8)
    read_only.flags.writeable = False
    for out in (np.zeros(287, np.uint8), strided, read_only):
        with pytest.raises(quant_types.BadShape, match="buffer of 288 bytes"):
            quant_types.quantize(x, "Q4_K", out=out)


def test_bad_dtypes() -> None:
    for dtype in (np.float64, np.int32, np.uint8):
        with pytest.raises(quant_types.BadDtype, match=np.dtype(dtype).name):
            quant_types.quantize(np.zeros((1, 256), dtype), "Q4_K")
    with pytest.raises(quant_types.BadDtype, match="int8"):
        quant_types.quantize(some((1, 256)), "Q4_K", out=np.zeros(144, np.int8))
    with pytest.raises(quant_types.BadDtype, match="float32"):
        quant_types.dequantize(np.zeros(36, np.float32), "Q4_K")


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0"])
def test_bad_importance(name: str) -> None:
    x = some((2, 4, 256))
    good = np.ones(256, np.float32)
    for bad in (good[:255], np.ones((3, 256), np.float32), np.ones((1, 2, 4, 256), np.float32)):
        with pytest.raises(quant_types.BadImportance, match="shape"):
            quant_types.quantize(x, name, bad)
    with pytest.raises(quant_types.BadImportance, match="float64"):
        quant_types.quantize(x, name, good.astype(np.float64))
    for value in (np.nan, np.inf, -1e-3):
        bad = good.copy()
        bad[7] = value
        with pytest.raises(quant_types.BadImportance, match="negative"):
            quant_types.quantize(x, name, bad)


def test_every_error_is_one_line_and_a_value_error() -> None:
    for kind in quant_types.QuantTypesError.__subclasses__():
        assert issubclass(kind, ValueError)
        assert kind.__name__ in sys.modules["quant_types.errors"].__doc__
    for error in (
        quant_types.NotFinite(3), quant_types.NeedsImportance("IQ1_S"), quant_types.OutOfRange()
    ):  # fmt: skip
        assert "\n" not in str(error)


def test_table() -> None:
    """Names and numbers are GGUF's; records are as large as ggml's blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for fmt in quant_types.FORMATS:
        if fmt.name == "Q2_0":  # which the package does not know yet
            assert fmt.ggml_type == 42
            continue
        kind = GGMLQuantizationType(fmt.ggml_type)
        assert kind.name == fmt.name
        assert (fmt.block_size, fmt.type_size) == GGML_QUANT_SIZES[kind]
        assert quant_types.get_format(fmt.name) is fmt
        assert quant_types.get_format(fmt) is fmt


def test_other_threads_run_meanwhile() -> None:
    """Quantizing holds no GIL: this thread goes on counting."""
    x = some((4096, 4096))
    quant_types.quantize(x[:1], "Q2_K")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(quant_types.quantize, x, "Q2_K")
        turns = 0
        while not job.done():
            time.sleep(0)
            turns += 1
    assert turns > 20  # a few before and after, if it were held
    assert np.array_equal(job.result(), quant_types.quantize(x, "Q2_K"))


def test_threads_share_a_buffer() -> None:
    x = some((64, 512))
    out = np.empty((64, 288), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda row: quant_types.quantize(x[row : row + 4], "Q4_K", out=out[row : row + 4]),
                range(0, 64, 4),
            )
        )
    assert np.array_equal(out, oracle.quantize(x, "Q4_K"))


def test_import_is_light() -> None:
    """Neither numba nor torch, nor anything of quantkit, until it is used."""
    code = (
        "import sys, quant_types; "
        "print([m for m in ('numba', 'torch', 'ml_dtypes', 'quantkit') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
