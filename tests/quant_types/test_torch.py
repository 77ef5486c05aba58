"""The array engine on torch tensors: the same code, the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

import quant_types
from quant_types import BlockFormat
from tests import oracle
from tests.quant_types.weights import importance, needed, weights_for

torch = pytest.importorskip("torch")
pytest.importorskip("array_api_compat")
pytestmark = pytest.mark.torch

FORMATS = [pytest.param(fmt, id=fmt.name) for fmt in quant_types.FORMATS]
KINDS = ("normal", "heavy_tailed", "constant", "zero", "integers", "denormal", "bit_patterns")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_quantize(fmt: BlockFormat, kind: str, device: str) -> None:
    x = weights_for(fmt, kind)[:16].copy()
    tensor = torch.from_numpy(x).to(device)
    for values in (needed(fmt, x.shape[-1]), importance(x.shape[-1])):
        found = quant_types.quantize(tensor, fmt, values)
        assert found.device == tensor.device
        assert np.array_equal(found.cpu().numpy(), oracle.quantize(x, fmt.name, values))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_dequantize(fmt: BlockFormat, device: str) -> None:
    x = weights_for(fmt, "heavy_tailed")[:16]
    data = oracle.quantize(x, fmt.name, needed(fmt, x.shape[-1]))
    found = quant_types.dequantize(torch.from_numpy(data).to(device), fmt)
    wanted = oracle.dequantize(data, fmt.name)
    assert np.array_equal(found.cpu().numpy().view(np.uint32), wanted.view(np.uint32))


def test_16_bit_tensors() -> None:
    x = torch.from_numpy(weights_for(quant_types.get_format("Q4_K"), "normal")[:4].copy())
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        found = quant_types.quantize(half, "Q4_K").numpy()
        assert np.array_equal(found, oracle.quantize(half.float().numpy(), "Q4_K"))


def test_not_finite() -> None:
    x = torch.zeros(8, 512)
    x[5, 300] = torch.nan
    with pytest.raises(quant_types.NotFinite, match="row 5;"):
        quant_types.quantize(x, "Q4_K")
