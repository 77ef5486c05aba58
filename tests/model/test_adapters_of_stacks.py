"""LoRA of experts in one tensor, as PEFT saves it for `target_parameters`: llama.cpp's own
converter has no place for it, and its runtime computes what the merged model gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.jobs import convert
from quantkit.model.open import Reading
from tests.checkpoints import DTYPES, architectures, read_safetensors, values, write_safetensors
from tests.model.test_adapters import PROMPT, WEIGHTS, Tensors, based_on
from tests.runtime import Llama

RANK = 4


def write_adapter(
    base: Path, out: Path, parameters: list[str], turned: bool, **settings: Any
) -> None:
    """An adapter of stacks of the base, to whose weights its changes are added: the last of the
    `parameters` is wrapped around the others. `turned`: the halves of an expert make its transpose
    (as PEFT has it for `[in, out]`, and had it before 0.19 for all)."""
    tensors, halves = read_safetensors(base / "model.safetensors"), dict[str, np.ndarray]()
    for name, (dtype, shape, data) in tensors.items():
        stem, _, parameter = name.rpartition(".")
        if parameter not in parameters:
            continue
        experts, rows, columns = shape
        wide, high = (rows, columns) if turned else (columns, rows)
        inner = "" if parameter == parameters[-1] else ".base_layer"
        a, b = (f"base_model.model.{stem}{inner}.lora_{half}.weight" for half in "AB")
        for half, size in ((a, [experts * RANK, wide]), (b, [high, experts * RANK])):
            halves[half] = values(f"{half} {parameter}", "F32", size, {"mean": 0, "std": 0.1})
        change = np.einsum(
            f"ore,eri->{'eio' if turned else 'eoi'}",
            halves[b].reshape(high, RANK, experts).astype(np.float64),
            halves[a].reshape(experts, RANK, wide).astype(np.float64),
        )
        weights = np.frombuffer(data, DTYPES[dtype]).astype(np.float64).reshape(shape) + 2 * change
        tensors[name] = ("F32", shape, weights.astype(np.float32).tobytes())
    write_safetensors(base / "model.safetensors", tensors, {"format": "pt"})
    out.mkdir()
    made: Tensors = {n: ("F32", list(x.shape), x.tobytes()) for n, x in sorted(halves.items())}
    write_safetensors(out / WEIGHTS, made)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, **settings}
    config["target_parameters"] = [f"mlp.experts.{name}" for name in parameters]
    (out / "adapter_config.json").write_text(json.dumps(config))


NEW = {"peft_version": "0.21.2"}
BOTH = ["gate_up_proj", "down_proj"]
# Case, parameters, whether halves make the transpose, more of the config
STACKS: list[tuple[str, list[str], bool, dict[str, Any]]] = [
    ("mixtral-4x-tf5fused", BOTH, False, NEW),
    ("mixtral-4x-tf5fused", BOTH[:1], False, {}),  # not square, so the shapes tell
    ("mixtral-4x-tf5fused", BOTH[:1], True, {}),
    ("gpt-oss-bf16", BOTH[:1], True, NEW),
    ("gpt-oss-bf16", BOTH[:1], False, NEW),
]


@pytest.mark.parametrize(("case", "parameters", "turned", "settings"), STACKS)
def test_llama_cpp_computes_what_the_merged_model_gives(
    case: str,
    parameters: list[str],
    turned: bool,
    settings: dict[str, Any],
    broken: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    base, (plain, whole, lora) = broken(case), (tmp_path / f"{n}.gguf" for n in ("a", "b", "c"))
    known = architectures().get(case, {"golden": {"pre": None}})
    reading = Reading(known["golden"]["pre"])
    convert(base, plain, "f32", reading=reading)
    write_adapter(base, tmp_path / "adapter", parameters, turned, **settings)
    convert(tmp_path / "adapter", lora, reading=based_on(base))
    convert(base, whole, "f32", reading=reading)
    before, expected, found = (
        Llama(path, exact=True, adapter=beside).log_probabilities(PROMPT)
        for path, beside in ((plain, None), (whole, None), (plain, lora))
    )
    assert max(abs(found[i] - p) for i, p in expected.items()) < 2e-5
    assert max(abs(before[i] - p) for i, p in expected.items()) > 1e-2


@pytest.mark.parametrize(
    ("case", "settings"),
    [("mixtral-4x-tf5fused", {}), ("mixtral-4x-tf5fused", {"peft_version": "0.18.1"}),
     ("gpt-oss-bf16", NEW)],
)  # fmt: skip
def test_square_experts_that_may_lie_either_way(
    case: str, settings: dict[str, Any], broken: Callable[[str], Path], tmp_path: Path
) -> None:
    base = broken(case)
    write_adapter(base, tmp_path / "adapter", BOTH[1:], False, **settings)
    with pytest.raises(errors.UnsupportedSource, match=r"square.*merge_and_unload"):
        convert(tmp_path / "adapter", tmp_path / "x.gguf", reading=based_on(base))


def test_experts_of_another_base(broken: Callable[[str], Path], tmp_path: Path) -> None:
    base = broken("mixtral-4x-tf5fused")
    write_adapter(base, tmp_path / "adapter", BOTH[:1], False)
    config = json.loads((base / "config.json").read_text())
    config["intermediate_size"] += 32
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.TensorShape, match=r"a change of \[512, 256\] found.*another base"):
        convert(tmp_path / "adapter", tmp_path / "x.gguf", reading=based_on(base))


def test_alphas_by_name(broken: Callable[[str], Path], tmp_path: Path) -> None:
    base = broken("mixtral-4x-tf5fused")
    write_adapter(base, tmp_path / "adapter", BOTH[:1], False, alpha_pattern={"experts": 3})
    with pytest.raises(errors.UnsupportedSource, match="'alpha_pattern' is not read beside"):
        convert(tmp_path / "adapter", tmp_path / "x.gguf", reading=based_on(base))
