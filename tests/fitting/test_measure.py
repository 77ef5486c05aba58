"""What formats do to tensors, from a sample of their rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import quant_types
from quantkit.errors import NonFiniteWeight
from quantkit.execution.pipeline import execute
from quantkit.fitting import measure
from quantkit.fitting.measure import mean_errors, relative_error
from quantkit.jobs import Job, prepare
from quantkit.planning.build import model_facts
from quantkit.planning.schedule import Schedule
from quantkit.recipes.sensitivity import IMPORTANCE_ERROR, NORMAL_ERROR
from tests.checkpoints import FRANKENMOE, read_safetensors, write_safetensors
from tests.fake_hub import Hub

Get = Callable[[str], Path]


def wanted(job: Job, *formats: str) -> dict[str, tuple[str, ...]]:
    tensors = job.plan.outputs[0].by_name.values()
    return {t.name: formats for t in tensors if len(t.shape) > 1 and t.shape[-1] % 256 == 0}


def weights(job: Job, tmp_path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the model, made and read whole."""
    job = replace(job, plan=prepare(FRANKENMOE, ["F32"], tmp_path / "w.gguf").plan)
    execute(Schedule(job.plan, 2))
    data = (tmp_path / "w.gguf").read_bytes()
    return {
        t.name: np.frombuffer(data, np.float32, t.weights, t.offset).reshape(t.shape)
        for t in job.plan.outputs[0].by_name.values()
    }


def test_a_small_tensor_is_measured_whole(tmp_path: Path) -> None:
    job = prepare(FRANKENMOE, ["COPY"])
    found = measure.measure(job.plan, wanted(job, "Q3_K", "Q8_0"), 2)
    whole = weights(job, tmp_path)
    for name in ("blk.1.attn_q.weight", "blk.2.ffn_down_exps.weight"):  # permuted; stacked
        x = whole[name].astype(np.float64)
        for fmt in ("Q3_K", "Q8_0"):
            q = quant_types.dequantize(quant_types.quantize(whole[name], fmt), fmt)
            expected = ((q - x) ** 2).sum() / (x**2).sum()
            assert found[name][fmt] == pytest.approx(expected, rel=1e-5)


def test_a_sample_is_near_the_whole_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(FRANKENMOE, ["COPY"])
    names = wanted(job, "Q4_K")
    whole = measure.measure(job.plan, names, 2)
    monkeypatch.setattr(measure, "SAMPLE", 1 << 14)
    some = measure.measure(job.plan, names, 1)
    assert some != whole
    assert measure.measure(job.plan, names, 2) == some
    for name, errors in some.items():
        assert errors["Q4_K"] == pytest.approx(whole[name]["Q4_K"], rel=0.15), name


def test_a_sample_reaches_every_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE", 1 << 14)
    plan = prepare(FRANKENMOE, ["COPY"]).plan
    for t in plan.outputs[0].by_name.values():
        if len(t.shape) == 3:
            rows = [c.row + i for c in measure.pieces(plan, t) for i in range(c.count)]
            assert {row // t.shape[1] for row in rows} == set(range(t.shape[0]))
            assert len(set(rows)) == len(rows) == (1 << 14) // 256


def test_from_the_hub_only_the_sample_is_fetched(
    checkpoint: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("mixtral-4x-sharded")
    here = prepare(source, ["COPY"])
    monkeypatch.setattr(measure, "SAMPLE", 1 << 12)
    monkeypatch.setattr(measure, "PIECES", measure.PIECES_AFAR)
    expected = measure.measure(here.plan, wanted(here, "Q4_K"), 2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.publish("org/ckpt", source)
        job = prepare("hf://org/ckpt", ["COPY"])
        before = hub.bytes_of("blob")
        assert measure.measure(job.plan, wanted(job, "Q4_K"), 2) == expected
        fetched = hub.bytes_of("blob") - before
    most = len(expected) * 2 * (1 << 12)  # bytes, in bfloat16
    assert most / 2 < fetched <= most < here.plan.source_bytes / 4


def test_importance_weighs_the_channels() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 256)).astype(np.float32)
    x[:, :128] *= 10
    importance = np.ones_like(x)
    importance[:, 128:] = 1e-6
    q = quant_types.dequantize(quant_types.quantize(x, "Q4_K", importance), "Q4_K")
    expected = ((q - x) ** 2 * importance).sum() / (x**2 * importance).sum()
    assert relative_error(x, "Q4_K", importance) == pytest.approx(float(expected), rel=1e-4)
    assert relative_error(np.zeros_like(x), "Q4_K") == 0.0


@pytest.mark.parametrize("fmt", sorted(NORMAL_ERROR))
def test_the_errors_of_normal_weights(fmt: str) -> None:
    """The constants that stand in where nothing was measured."""
    x = np.random.default_rng(5).standard_normal((64, 4096)).astype(np.float32) * np.float32(0.02)
    assert relative_error(x, fmt) == pytest.approx(NORMAL_ERROR[fmt], rel=0.03, abs=1e-9)


@pytest.mark.parametrize("fmt", sorted(IMPORTANCE_ERROR))
def test_the_errors_of_normal_weights_with_importances(fmt: str) -> None:
    x = np.random.default_rng(5).standard_normal((64, 4096)).astype(np.float32) * np.float32(0.02)
    found = relative_error(x, fmt, np.ones_like(x))
    assert found == pytest.approx(IMPORTANCE_ERROR[fmt], rel=0.03)


def test_the_mean_error_of_what_will_be_written() -> None:
    job = prepare(FRANKENMOE, ["Q2_K", "Q4_K_M", "Q8_0", "F32"])
    found = mean_errors(job.plan, model_facts(job.model), 2)
    assert found["Q2_K"] > 4 * found["Q4_K_M"] > 100 * found["Q8_0"] > found["F32"] == 0.0


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    source = shutil.copytree(FRANKENMOE, tmp_path / "nan")
    tensors = read_safetensors(source / "model.safetensors")
    dtype, shape, data = tensors["model.embed_tokens.weight"]
    data = bytearray(data)
    data[7 * 512 : 7 * 512 + 2] = b"\xc0\x7f"  # bfloat16 NaN, in row 7 of 256 weights
    tensors["model.embed_tokens.weight"] = (dtype, shape, bytes(data))
    write_safetensors(source / "model.safetensors", tensors)
    job = prepare(source, ["COPY"])
    with pytest.raises(NonFiniteWeight, match=r"embed_tokens.weight has NaN .* in row 7"):
        measure.measure(job.plan, wanted(job, "Q4_K"), 2)
