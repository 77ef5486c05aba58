"""What llama-imatrix tells of a matrix: by tensor, by layer; and by expert, which it does not.

Numbers and their order are those of `tools/imatrix/imatrix.cpp` (`compute_vector_statistics`,
`compute_tensor_statistics`, `compute_layer_statistics`), taken in float64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, log2, nan, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from quantkit.calibration.sums import Entry

Doubles = NDArray[np.float64]

SCHEMA = (
    "sum_sq", "mean", "elements", "std_deviation", "skewness", "kurtosis", "gain", "h_norm",
    "l2_dist", "cossim", "pearson", "covariance",
)  # fmt: skip
_NOTHING = 1e-10  # a sum of squares or a deviation that is none


@dataclass(frozen=True)
class Likeness:
    """A tensor beside the same one of an earlier layer: sums over the input channels that both
    have data for. `energy` and `elements`: of the earlier one."""

    features: int
    dot: float
    squares: tuple[float, float]
    covariance: float
    variances: tuple[float, float]
    distance: float  # squared
    energy: float
    elements: int


@dataclass(frozen=True)
class TensorStatistics:
    """One tensor's: `energy` is the sum of its mean squared activations over `elements` channels;
    mean, deviation, skewness and kurtosis are those of the mean activations (of the squared ones,
    where no others were kept: `legacy`); `entropy` in bits. `row`: float32 `[12]`, in the order of
    SCHEMA."""

    legacy: bool
    energy: float
    mean: float
    elements: int
    deviation: float
    skewness: float
    kurtosis: float
    entropy: float
    gain: float = nan
    like: Likeness | None = None

    @property
    def evenness(self) -> float:
        """The entropy as a percentage of the most that it can be; taken in float32."""
        if self.elements < 2:
            return nan
        most = np.log2(np.float32(self.elements))
        return float(np.float32(100) * (np.float32(self.entropy) / most))

    @property
    def row(self) -> NDArray[np.float32]:
        """float32 `[12]`, in the order of SCHEMA."""
        beside = compared(self.like)
        return np.array(
            [
                self.energy, self.mean, self.elements, self.deviation, self.skewness,
                self.kurtosis, self.gain, self.evenness, *beside,
            ],
            "<f4",
        )  # fmt: skip


def compared(like: Likeness | None) -> tuple[float, float, float, float]:
    """Distance, cosine, Pearson's correlation and covariance."""
    if like is None:
        return nan, nan, nan, nan
    cosine = _ratio(like.dot, *like.squares)
    pearson = _ratio(like.covariance, *like.variances)
    covariance = like.covariance / like.features if like.features > 1 else nan
    return sqrt(like.distance), cosine, pearson, covariance


def _ratio(product: float, a: float, b: float) -> float:
    if a > 0 and b > 0:
        return min(max(product / (sqrt(a) * sqrt(b)), -1), 1)
    return nan if a == b == 0 else 0.0


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor is of."""
    found = re.search(r"(?:^|\.)blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def tensor_statistics(entries: Mapping[str, Entry], nextn: int = 0) -> dict[str, TensorStatistics]:
    """Of each tensor that has data. The last `nextn` layers predict further tokens: the first of
    them is compared with none."""
    alone = {name: s for name, e in entries.items() if (s := _of_one(e)) is not None}
    first = first_predicting(alone, nextn)
    out = dict(alone)
    for name, own in alone.items():
        layer = layer_of(name)
        if not layer or layer == first:
            continue
        lowest = first if layer > first else 0
        before = next(
            (
                other
                for i in range(layer - 1, int(lowest) - 1, -1)
                if (other := name.replace(f"blk.{layer}", f"blk.{i}", 1)) in alone
            ),
            None,
        )
        if before is not None:
            with np.errstate(all="ignore"):
                like = _likeness(entries[name], entries[before], own, alone[before])
            if like is not None:
                out[name] = _beside(own, alone[before], like)
    return out


def first_predicting(names: Mapping[str, Any] | Sequence[str], nextn: int) -> float:
    """The first layer that predicts further tokens; infinity where there is none."""
    layers = {name: layer for name in names if (layer := layer_of(name)) is not None}
    if nextn and layers:
        return max(0, max(layers.values()) + 1 - nextn)
    return min((i for name, i in layers.items() if f"blk.{i}.nextn." in name), default=inf)


def _averages(
    entry: Entry, activations: bool, kind: type[np.floating[Any]] = np.float64
) -> Doubles:
    """float64 `[k, n]`, taken in `kind`: NaN where nothing was counted."""
    values = entry.sums if activations and entry.sums is not None else entry.squares
    counts = entry.counts.astype(np.float32).astype(kind)[:, None]
    with np.errstate(all="ignore"):
        rows = values.reshape(counts.size, -1).astype(kind) * (1 / counts)
        return np.where(counts > 0, rows, nan).astype(np.float64)


def _of_one(entry: Entry) -> TensorStatistics | None:
    legacy = entry.sums is None
    energies, values = (_averages(entry, kept).reshape(-1) for kept in (False, True))
    valid = np.isfinite(energies) & np.isfinite(values)
    energies, values = energies[valid], values[valid]
    n = energies.size
    if n == 0:
        return None
    mean = float(values.mean())
    off = values - mean
    squared = off * off
    variance = float(squared.mean()) if n > 1 else 0.0
    deviation, skewness, kurtosis = float(np.sqrt(np.float32(variance))), 0.0, 0.0
    if deviation > _NOTHING:
        skewness = float((squared * off).mean()) / (variance * sqrt(variance))
        kurtosis = float((squared * squared).mean()) / variance**2 - 3
    positive = np.maximum(energies, 0)
    total, entropy = float(positive.sum()), 0.0
    if total > 0:
        p = positive / total
        p = p[p > _NOTHING]
        entropy = -float((p * np.log2(p)).sum())
    energy = float(energies.sum())
    return TensorStatistics(legacy, energy, mean, n, deviation, skewness, kurtosis, entropy)


def _likeness(
    a: Entry, b: Entry, told: TensorStatistics, before: TensorStatistics
) -> Likeness | None:
    """Both by their activations, or, where one has none, both by their squares. The averages are
    taken in float32, as llama-imatrix takes them."""
    kept = not (told.legacy or before.legacy)
    c, p = (_averages(e, kept, np.float32).reshape(-1) for e in (a, b))
    if c.size != p.size:
        return None
    valid = np.isfinite(c) & np.isfinite(p)
    c, p = c[valid], p[valid]
    if c.size == 0:
        return None
    dc, dp = c - c.mean(), p - p.mean()
    return Likeness(
        int(c.size),
        float(c @ p),
        (float(c @ c), float(p @ p)),
        float(dc @ dp),
        (float(dc @ dc), float(dp @ dp)),
        float(((c - p) ** 2).sum()),
        before.energy,
        before.elements,
    )


def _beside(own: TensorStatistics, before: TensorStatistics, like: Likeness) -> TensorStatistics:
    from dataclasses import replace

    if before.energy > _NOTHING:
        gain = sqrt(own.energy / own.elements) / sqrt(before.energy / before.elements)
    else:
        gain = 1.0 if own.energy <= _NOTHING else nan
    return replace(own, gain=gain, like=like)


@dataclass(frozen=True)
class LayerStatistics:
    """One layer's tensors together: their energy, and how they are beside the layers before."""

    energy: float
    gain: float
    distance: float
    cosine: float
    pearson: float
    covariance: float


def layer_statistics(told: Mapping[str, TensorStatistics]) -> dict[int, LayerStatistics]:
    """By the number of the layer, upward."""
    layers: dict[int, list[TensorStatistics]] = {}
    for name, s in told.items():
        if (layer := layer_of(name)) is not None:
            layers.setdefault(layer, []).append(s)
    return {layer: _together(layers[layer]) for layer in sorted(layers)}


def _together(tensors: Sequence[TensorStatistics]) -> LayerStatistics:
    energy = sum(t.energy for t in tensors)
    pairs = [(t, t.like) for t in tensors if t.like is not None]
    if not pairs:
        return LayerStatistics(energy, nan, nan, nan, nan, nan)
    likes = [like for _, like in pairs]
    matched = [(t, like) for t, like in pairs if like.energy > _NOTHING]
    gain = nan
    if matched:
        now = sum(t.energy for t, _ in matched) / sum(t.elements for t, _ in matched)
        then = sum(like.energy for _, like in matched) / sum(like.elements for _, like in matched)
        gain = sqrt(now) / sqrt(then)
    whole = Likeness(
        sum(like.features for like in likes),
        sum(like.dot for like in likes),
        (sum(like.squares[0] for like in likes), sum(like.squares[1] for like in likes)),
        sum(like.covariance for like in likes),
        (sum(like.variances[0] for like in likes), sum(like.variances[1] for like in likes)),
        sum(like.distance for like in likes),
        0,
        0,
    )
    return LayerStatistics(energy, gain, *compared(whole))


@dataclass(frozen=True, eq=False)
class Routing:
    """How often the experts of a layer were reached: `tokens` int64 `[experts]`."""

    tokens: NDArray[np.int64]

    @property
    def shares(self) -> Doubles:
        """Of all routed tokens, float64 `[experts]`."""
        return self.tokens / max(int(self.tokens.sum()), 1)

    @property
    def evenness(self) -> float:
        """The entropy of the routing, as a percentage of an even one's."""
        p = self.shares[self.shares > 0]
        if self.tokens.size < 2 or not p.size:
            return nan
        return 100 * float(-(p * np.log2(p)).sum()) / log2(self.tokens.size)

    def below(self, tokens: int) -> list[int]:
        """Experts that were reached less often."""
        return [i for i, n in enumerate(self.tokens.tolist()) if n < tokens]


def routing(entries: Mapping[str, Entry]) -> dict[int, Routing]:
    """By the number of the layer, upward: the least counts among a layer's stacked experts."""
    layers: dict[int, NDArray[np.int64]] = {}
    for name, entry in entries.items():
        layer = layer_of(name)
        if layer is not None and "_exps." in name and entry.counts.size > 1:
            known = layers.get(layer, entry.counts)
            if known.size == entry.counts.size:
                layers[layer] = np.minimum(known, entry.counts)
    return {layer: Routing(layers[layer]) for layer in sorted(layers)}


def shown(value: float, digits: int = 4) -> str:
    """A number for a table; `-` where there is none."""
    return "-" if isnan(value) else f"{value:.{digits}f}"
