"""What a quantized file loses: how much an error matters by what its tensor does, and words for it.

A tensor's error is relative: the sum of (w - q)^2 over the sum of w^2. The KL divergence that it
causes is nearly proportional to it, with a factor that depends on what the tensor does; so the
factors times the errors add up to a prediction. `docs/fit.md` tells how they were found. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from quantkit.gguf import tensor_names
from quantkit.recipes.facts import ModelFacts, category, is_quantized

# KL divergence over relative error: a trained mixture's, measured tensor by tensor
SENSITIVITY: Mapping[str, float] = {
    "output": 0.45, "token_embd": 0.35, "attn_q": 0.02, "attn_k": 0.02, "attn_v": 0.03,
    "attn_output": 0.03, "ffn_gate": 0.035, "ffn_up": 0.025, "ffn_down": 0.05, "other": 0.03,
}  # fmt: skip
EDGE = 3.0  # of an ffn_down in the first or last eighth of the layers

# relative error of normal weights: what a format does where nothing was measured
NORMAL_ERROR: Mapping[str, float] = {
    "F32": 0.0, "F16": 4.3e-8, "BF16": 2.75e-6, "Q8_0": 2.88e-5, "Q6_K": 3.16e-4, "Q5_K": 1.31e-3,
    "Q5_1": 1.44e-3, "Q5_0": 1.83e-3, "Q4_K": 5.11e-3, "IQ4_NL": 5.81e-3, "IQ4_XS": 5.90e-3,
    "Q4_1": 6.13e-3, "Q4_0": 7.41e-3, "MXFP4": 1.30e-2, "Q3_K": 2.28e-2, "IQ3_S": 2.76e-2,
    "Q2_K": 8.82e-2, "TQ1_0": 0.654, "TQ2_0": 0.654,
}  # fmt: skip

# the same with importances, all of them alike: about what trained weights have with their own
IMPORTANCE_ERROR: Mapping[str, float] = {
    "Q8_0": 2.84e-5, "Q6_K": 3.0e-4, "Q5_K": 1.24e-3, "Q4_K": 4.97e-3, "IQ4_NL": 5.58e-3,
    "IQ4_XS": 5.68e-3, "IQ3_S": 1.86e-2, "Q3_K": 2.08e-2, "IQ3_XXS": 3.29e-2, "IQ2_S": 6.18e-2,
    "Q2_K": 7.14e-2, "IQ2_XS": 8.97e-2, "IQ2_XXS": 0.118, "IQ1_M": 0.203, "IQ1_S": 0.235,
}  # fmt: skip

# what these formats' errors count for beside others': they make weights larger or smaller as a
# whole, by 2% (IQ3_S) and 4% (Q2_K), which the next layer does not average out; the three matrices
# of a feed-forward network are multiplied, so there it adds up
ONE_SIDED: Mapping[str, float] = {"IQ3_S": 1.1, "Q2_K": 1.2}
ONE_SIDED_FFN: Mapping[str, float] = {**ONE_SIDED, "IQ3_S": 1.3}

# the mean error up to which a file deserves the words; beyond the last, the last
USE_CASES: tuple[tuple[float, str], ...] = (
    (1e-5, "as good as the source; for further work"),
    (1e-4, "nearly lossless"),
    (5e-4, "hardly any loss"),
    (1.8e-3, "very low loss"),
    (4.5e-3, "low loss"),
    (8e-3, "moderate loss"),
    (1.4e-2, "noticeable loss"),
    (2.6e-2, "high loss"),
    (1.0, "heavy loss"),
)


class Judged(NamedTuple):
    """A tensor as it is judged: its name, its shape in NumPy order, its format, and the relative
    error that comes of it."""

    name: str
    shape: tuple[int, ...]
    format: str
    error: float


def sensitivity(name: str, facts: ModelFacts) -> float:
    """How much KL divergence a relative error of the tensor causes, for each unit of it."""
    kind = category(name)
    factor = SENSITIVITY[kind]
    if kind == "token_embd" and facts.tied and name == "token_embd.weight":
        factor += SENSITIVITY["output"]
    block, eighth = tensor_names.parse(name).bid, facts.n_layers // 8
    if kind == "ffn_down" and block is not None:
        factor *= 1.0 if eighth <= block < facts.n_layers - eighth else EDGE
    return factor


def loss(name: str, fmt: str, error: float, facts: ModelFacts) -> float:
    """The KL divergence to expect of a tensor in a format with this relative error."""
    one_sided = ONE_SIDED_FFN if category(name).startswith("ffn") else ONE_SIDED
    return sensitivity(name, facts) * one_sided.get(fmt, 1.0) * error


def usual_error(fmt: str, important: bool) -> float:
    """The relative error to expect where nothing was measured, with importances or without."""
    return (IMPORTANCE_ERROR if important else NORMAL_ERROR).get(fmt) or NORMAL_ERROR[fmt]


def mean_error(tensors: Iterable[Judged], facts: ModelFacts) -> float:
    """The mean relative error of the tensors that are quantized, each as it matters."""
    total = weight = 0.0
    for t in tensors:
        if is_quantized(t.name, t.shape, facts.arch):
            total += loss(t.name, t.format, t.error, facts)
            weight += sensitivity(t.name, facts)
    return total / weight if weight else 0.0


def use_case(error: float, quantized_before: Sequence[str] = ()) -> str:
    """What a file of that mean error is good for, in a few words. Made of a source that was
    quantized before, its loss is not known: only what is added to it."""
    if quantized_before:
        return f"{made_from(quantized_before)}: {100 * error:.2g}% error added"
    return next((words for most, words in USE_CASES if error <= most), USE_CASES[-1][1])


def made_from(quantized_before: Sequence[str]) -> str:
    """What a file is whose source was quantized before, where nobody measured the error added."""
    return f"made from weights in {', '.join(quantized_before)}"
