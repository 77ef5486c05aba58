"""How much each tensor's error matters, and whether what was found holds elsewhere:
`python -m benchmarks.sensitivity SOURCE WORK_DIR TEXT...`.

First, one tensor at a time is quantized, the rest stays in F32, and llama.cpp tells the KL
divergence. Then the factors of `quality.py` predict llama.cpp's published divergences of models
that they were not taken from, from the formats of their tensors alone.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from quantkit.fitting.measure import measure
from quantkit.jobs import Run, prepare, quantize
from quantkit.planning.build import Request, model_facts
from quantkit.recipes.choose import Overrides, choose
from quantkit.recipes.facts import ModelFacts, category, is_quantized
from quantkit.recipes.file_types import find_recipe
from quantkit.recipes.sensitivity import NORMAL_ERROR, sensitivity
from quantkit.verification.divergence import divergences, mean

FORMATS = ("Q4_K",)
AT_ONCE = 8  # models in memory

# llama.cpp tools/perplexity/README.md: mean KL divergence of Llama 3 8B without importances; and
# for Llama 2 70B, the perplexity's increase. Q8_0 is the floor there, not the weights' doing.
SCOREBOARDS = {
    "Llama 3 8B": (ModelFacts("llama", 32, 0, 32, 8, False), {
        "Q6_K": 0.005452, "Q5_K_M": 0.010762, "Q5_K_S": 0.016595, "Q5_1": 0.018045,
        "Q5_0": 0.022239, "Q4_K_M": 0.031273, "Q4_K_S": 0.043136, "Q4_1": 0.071683,
        "Q4_0": 0.07194, "Q3_K_L": 0.087176, "Q3_K_M": 0.101913, "Q3_K_S": 0.228217,
        "Q2_K": 0.445132,
    }),
    "Llama 2 70B": (ModelFacts("llama", 80, 0, 64, 8, False), {
        "Q6_K": 0.0016, "Q5_K_M": 0.004, "Q5_K_S": 0.005, "Q5_0": 0.0126, "Q4_K_M": 0.012,
        "Q4_K_S": 0.0157, "Q4_1": 0.0237, "Q4_0": 0.0361, "Q3_K_L": 0.038, "Q3_K_M": 0.0472,
        "Q3_K_S": 0.0789, "Q2_K": 0.0882,
    }),
}  # fmt: skip
MATRICES = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")


def tensor_by_tensor(source: Path, work: Path, texts: list[Path], threads: int | None) -> None:
    """Print the divergence over the relative error, of every tensor in every format."""
    job = prepare(source, ["COPY"])
    facts = model_facts(job.model)
    names = [
        t.name
        for t in job.plan.outputs[0].by_name.values()
        if is_quantized(t.name, t.shape, facts.arch)
    ]
    errors = measure(job.plan, dict.fromkeys(names, FORMATS), 2)
    base = work / "base.gguf"
    quantize(source, ["F32"], base, run=Run(force=True))
    cases = [(name, fmt) for name in names for fmt in FORMATS]
    found: dict[str, list[float]] = defaultdict(list)
    logs = defaultdict(list)
    for start in range(0, len(cases), AT_ONCE):
        part = cases[start : start + AT_ONCE]
        paths = [work / f"one-{i}.gguf" for i in range(len(part))]
        for (name, fmt), path in zip(part, paths, strict=True):
            only = Overrides(tensor_types=((f"^{name}$", fmt), ("", "F32")))
            request = Request(only)
            quantize(source, ["Q4_K_S"], path, request=request, run=Run(force=True))
        rows = divergences(paths, base, texts, threads=threads)
        for (name, fmt), row in zip(part, rows, strict=True):
            kl, error = mean(row).kl, errors[name][fmt]
            found[category(name)].append(kl / error)
            logs["relative error"].append(np.log(kl / error))
            logs["times sensitivity"].append(np.log(kl / error / sensitivity(name, facts)))
            print(f"{name} {fmt}: {kl:.6f} / {error:.5f} = {kl / error:.4f}", flush=True)
    for role, values in found.items():
        print(f"{role}: mean {np.mean(values):.4f}, {min(values):.4f} to {max(values):.4f}")
    for what, values in logs.items():
        print(f"{what}: off by a factor of {np.exp(np.std(values)):.2f} (one standard deviation)")


def elsewhere() -> None:
    """Print predictions for published models, against what was measured."""
    for model, (facts, published) in SCOREBOARDS.items():
        sizes = {f"blk.{i}.{m}.weight" for i in range(facts.n_layers) for m in MATRICES}
        names = sorted({"output.weight", "token_embd.weight"} | sizes)
        tensors = [(name, (4096, 4096), "F16") for name in names]
        predicted: dict[str, list[float]] = {"with sensitivity": [], "all alike": []}
        for kind in published:
            formats = [c.format for c in choose(find_recipe(kind), facts, tensors)]
            made = [NORMAL_ERROR[fmt] for fmt in formats]
            weights = [sensitivity(name, facts) for name in names]
            predicted["with sensitivity"].append(float(np.dot(weights, made)))
            predicted["all alike"].append(sum(made))
        measured = np.log([*published.values()])
        print(f"{model}: {len(published)} types")
        for what, values in predicted.items():
            off = np.log(values) - measured
            ranks = [np.argsort(np.argsort(v)) for v in (values, measured)]
            print(
                f"  {what}: off by {np.exp(off.std()):.2f} around {np.exp(off.mean()):.2f}, "
                f"rank correlation {np.corrcoef(*ranks)[0, 1]:.3f}"
            )


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    elsewhere()
    tensor_by_tensor(options.source, options.work, options.texts, options.threads)


if __name__ == "__main__":
    main()
