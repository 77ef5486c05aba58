"""A batch norm with the statistics that it was trained with: one factor and one summand a channel.

llama.cpp folds them so (`conversion/gemma.py`, ConformerAudioModel; `conversion/granite.py`), in
the dtype that the checkpoint has, with the variance raised by 1e-5 in every model.
"""

from __future__ import annotations

import numpy as np

from quantkit.errors import TensorShape
from quantkit.source.codings.parts import Decoder, Rows, joined
from quantkit.source.tensors import Files, SourceTensor

_EPS = 1e-5


def factor(weight: SourceTensor, variance: SourceTensor) -> SourceTensor:
    """What a channel is multiplied by, under the name of `weight`. Raises TensorShape."""
    return _folded(weight, weight, variance)


def summand(
    bias: SourceTensor, mean: SourceTensor, weight: SourceTensor, variance: SourceTensor
) -> SourceTensor:
    """What is added to a channel after that, under the name of `bias`. Raises TensorShape."""
    return _folded(bias, weight, variance, mean)


def _folded(t: SourceTensor, *others: SourceTensor) -> SourceTensor:
    for other in others:
        if other.raw or other.shape != t.shape or len(t.shape) != 1:
            raise TensorShape(
                f"{other.path}: tensor {other.name}: {other.raw or other.ggml.name} "
                f"{list(other.shape)} found; it belongs to {t.name}, of shape {list(t.shape)}"
            )
    parts = (t, *others) if others[0] is not t else others
    return joined(t.name, "F32", t.shape, "batch_norm", *parts)


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int, of: Decoder
) -> Rows:
    """Channels `first` to `first + count`, `[count, 1]`: in float16 if all parts are; `of` reads
    one of them."""
    parts = [_plain(of(files, part, first, count, 0, 1)) for part in t.parts]
    if len(parts) == 2:
        weight, variance = parts
        return _factor(weight, variance)
    bias, weight, variance, mean = parts
    out: Rows = bias - mean * _factor(weight, variance)
    return out


def _plain(x: Rows) -> Rows:
    return x if x.dtype == np.float16 else x.astype(np.float32)


def _factor(weight: Rows, variance: Rows) -> Rows:
    raised = (variance.astype(np.float32) + np.float32(_EPS)).astype(variance.dtype)
    out: Rows = weight / np.sqrt(raised)
    return out
