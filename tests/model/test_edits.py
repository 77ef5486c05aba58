"""A smaller mixture of the experts that are there: weights, router and metadata agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.calibration.imatrix import read_imatrix
from quantkit.cli import app
from quantkit.gguf.container import read_header
from quantkit.jobs import Run, convert, quantize
from quantkit.model.open import Reading
from quantkit.planning.plan import Plan
from quantkit.source.gguf_set import open_gguf
from quantkit.source.tensors import Files
from tests.checkpoints import DATA
from tests.conftest import sha256
from tests.runtime import Llama

Get = Callable[[str], Path]
KEPT = Reading(keep_experts=(3, 0, 1))


def tensors(path: Path) -> dict[str, np.ndarray]:
    _, tensors = open_gguf(path)
    with Files([path]) as files:
        return {t.name: files.read_rows(t, 0, t.n_rows).reshape(t.shape) for t in tensors}


@pytest.mark.parametrize("case", ["mixtral-4x", "mixtral-4x-tf5fused"])
def test_weights_router_and_counts(case: str, checkpoint: Get, tmp_path: Path) -> None:
    convert(checkpoint(case), tmp_path / "all.gguf")
    convert(checkpoint(case), tmp_path / "kept.gguf", reading=KEPT)
    whole, kept = tensors(tmp_path / "all.gguf"), tensors(tmp_path / "kept.gguf")
    for name, x in whole.items():
        of_experts = "_exps" in name or "ffn_gate_inp" in name
        expected = x[[3, 0, 1]] if of_experts else x
        assert kept[name].shape == expected.shape, name
        assert kept[name].tobytes() == np.ascontiguousarray(expected).tobytes(), name
    header = read_header(tmp_path / "kept.gguf")
    assert header.get("llama.expert_count") == 3
    assert header.get("llama.expert_used_count") == 2
    assert header.get("general.size_label") == "3x1.1M"
    assert [i.key for i in header.kv] == [i.key for i in read_header(tmp_path / "all.gguf").kv]


def test_from_a_gguf_it_is_the_same(checkpoint: Get, tmp_path: Path) -> None:
    convert(checkpoint("mixtral-4x"), tmp_path / "all.gguf")
    for source, name in ((tmp_path / "all.gguf", "a"), (checkpoint("mixtral-4x"), "b")):
        quantize(source, ["Q4_K_M"], tmp_path / f"{name}.gguf", reading=KEPT)
    assert sha256(tmp_path / "a.gguf") == sha256(tmp_path / "b.gguf")


def test_llama_cpp_runs_it(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    """Experts 0 and 2 are one model: dropping either leaves the same mixture of three."""
    answers = []
    for keep in ((0, 1, 3), (2, 1, 3)):
        path = tmp_path / f"{keep[0]}.gguf"
        quantize(frankenmoe["mergekit"], ["Q8_0"], path, reading=Reading(keep_experts=keep))
        answers.append(Llama(path).complete("def __init__(self")["choices"][0]["text"])
    assert answers[0] == answers[1] != ""


def test_the_importances_follow(checkpoint: Get, tmp_path: Path) -> None:
    """Quantizing fewer experts gives the bytes that those experts have among all."""
    imatrix = read_imatrix(DATA / "imatrix" / "mixtral-4x.gguf")
    source = checkpoint("mixtral-4x")
    quantize(source, ["Q4_K_M"], tmp_path / "all.gguf", imatrix=imatrix)
    quantize(source, ["Q4_K_M"], tmp_path / "kept.gguf", imatrix=imatrix, reading=KEPT)
    whole, kept = tensors_raw(tmp_path / "all.gguf"), tensors_raw(tmp_path / "kept.gguf")
    name = "blk.0.ffn_up_exps.weight"
    size = len(whole[name]) // 4
    assert kept[name] == b"".join(whole[name][x * size : (x + 1) * size] for x in (3, 0, 1))


def test_the_importances_follow_to_a_cluster(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task is given the matrix as it was read, and keeps the experts' part of it itself."""

    def here(name: str, plan: Plan, task: Any, call: dict[str, Any], *rest: Any) -> None:
        task(call, plan.outputs[0].type, 1, 1)

    monkeypatch.setattr("quantkit.jobs.quantize_on", here)
    imatrix = read_imatrix(DATA / "imatrix" / "mixtral-4x.gguf")
    for cluster, name in ((None, "a"), ("ray", "b")):
        quantize(
            checkpoint("mixtral-4x"),
            ["Q4_K_M"],
            tmp_path / f"{name}.gguf",
            imatrix=imatrix,
            reading=KEPT,
            run=Run(cluster=cluster),
        )
    assert sha256(tmp_path / "a.gguf") == sha256(tmp_path / "b.gguf")


def tensors_raw(path: Path) -> dict[str, bytes]:
    _, tensors = open_gguf(path)
    with Files([path]) as files:
        return {t.name: files.read_rows(t, 0, t.n_rows).tobytes() for t in tensors}


def test_experts_used(checkpoint: Get, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            "quantize",
            str(checkpoint("mixtral-4x")),
            "-t",
            "Q8_0",
            "-o",
            str(tmp_path / "m.gguf"),
            "--experts-used",
            "1",
            "--keep-experts",
            "2",
        ],
    )
    assert result.exit_code == 0
    assert read_header(tmp_path / "m.gguf").get("llama.expert_count") == 1
    result = CliRunner().invoke(
        app,
        [
            "quantize",
            str(checkpoint("mixtral-4x")),
            "-t",
            "Q8_0",
            "-o",
            str(tmp_path / "m.gguf"),
            "--experts-used",
            "3",
            "--force",
        ],
    )
    assert result.exit_code == 0
    assert read_header(tmp_path / "m.gguf").get("llama.expert_used_count") == 3


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(keep_experts=(0, 4)), "0 to 3"),
        (Reading(keep_experts=(1,)), "fewer than the 2"),
        (Reading(keep_experts=(1, 1)), "cannot be kept"),
        (Reading(experts_used=5), "5 experts cannot be used"),
        (Reading(experts_used=0), "0 experts cannot be used"),
    ],
)
def test_what_cannot_be(reading: Reading, words: str, checkpoint: Get, tmp_path: Path) -> None:
    with pytest.raises(errors.RecipeError, match=words):
        quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path, reading=reading, run=Run(dry=True))


def test_a_model_without_experts(checkpoint: Get, tmp_path: Path) -> None:
    with pytest.raises(errors.RecipeError, match="has no experts"):
        convert(checkpoint("mistral-dense"), tmp_path, reading=Reading(experts_used=1))


def test_a_bias_of_one_row_is_cut(checkpoint: Get, tmp_path: Path) -> None:
    """ERNIE's is `[1, n]`; through a file as from the checkpoint."""
    convert(checkpoint("ernie45moe"), tmp_path / "all.gguf")
    reading = Reading(keep_experts=(2, 0), experts_used=1)
    convert(checkpoint("ernie45moe"), tmp_path / "kept.gguf", reading=reading)
    whole, kept = tensors(tmp_path / "all.gguf"), tensors(tmp_path / "kept.gguf")
    biases = [name for name in whole if "exp_probs_b" in name]
    assert biases
    for name in biases:
        assert kept[name].shape[-1] == 2
        assert kept[name].ravel().tolist() == whole[name].ravel()[[2, 0]].tolist()
    for source, name in ((tmp_path / "all.gguf", "a"), (checkpoint("ernie45moe"), "b")):
        quantize(source, ["Q8_0"], tmp_path / f"{name}.gguf", reading=reading)
    assert sha256(tmp_path / "a.gguf") == sha256(tmp_path / "b.gguf")


def test_experts_that_share_a_part_go_together(checkpoint: Get, tmp_path: Path) -> None:
    """Two of GroveMoE's share one more."""
    convert(checkpoint("grovemoe"), tmp_path / "all.gguf")
    reading = Reading(keep_experts=(2, 3), experts_used=1)
    convert(checkpoint("grovemoe"), tmp_path / "kept.gguf", reading=reading)
    whole, kept = tensors(tmp_path / "all.gguf"), tensors(tmp_path / "kept.gguf")
    shared = [name for name in whole if "_chexps" in name]
    assert shared
    for name in shared:
        assert kept[name].tobytes() == np.ascontiguousarray(whole[name][1:]).tobytes()
    for keep in ((0, 2), (1, 0), (1, 2, 3)):
        with pytest.raises(errors.RecipeError, match="keep or leave whole groups"):
            convert(
                checkpoint("grovemoe"),
                tmp_path / "no.gguf",
                reading=Reading(keep_experts=keep, experts_used=1),
            )


@pytest.mark.parametrize(
    ("case", "keep", "words"),
    [
        ("deepseek-v3", (0, 1), "2 experts in 2 groups are one in each"),
        ("deepseek-v3", (0, 1, 2), "3 experts do not divide into the model's 2 groups"),
        ("afmoe", (0,), "1 experts in 1 groups are one in each"),
    ],
)
def test_groups_of_experts(
    case: str, keep: tuple[int, ...], words: str, checkpoint: Get, tmp_path: Path
) -> None:
    with pytest.raises(errors.RecipeError, match=words):
        convert(checkpoint(case), tmp_path, reading=Reading(keep_experts=keep, experts_used=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("general.alignment=int:64", "files are written with 32"),
        ("general.architecture=str:qwen3", "it says what the tensors are; it is llama"),
        ("split.count=int:4", "it counts files"),
        ("llama.block_count=int:1", "it says what the tensors are; it is 2 and stays so"),
        ("llama.expert_count=int:3", "it says what the tensors are; it is 4"),
        ("llama.expert_group_count=int:2", "this model has no such key"),
        ("llama.feed_forward_length=int:128", "it says what the tensors are"),
        ("tokenizer.ggml.model=str:gpt2", "it says what the tensors are; it is llama"),
    ],
)
def test_keys_that_the_tensors_contradict(
    override: str, words: str, checkpoint: Get, tmp_path: Path
) -> None:
    with pytest.raises(errors.RecipeError, match=words):
        quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path, override_kv=[override])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("llama.rope.freq_base=int:5", "is FLOAT32 in this model"),
        ("llama.rope.scaling.type=str:mrope", "not one of linear"),
        ("llama.attention.layer_norm_rms_epsilon=float:nan", "is nan"),
        ("llama.expert_used_count=int:5", "is 5, of 4 experts"),
        ("llama.expert_used_count=int:0", "is 0, of 4 experts"),
        ("tokenizer.ggml.eos_token_id=int:9999", "is 9999, of"),
        ("llama.pooling_type=int:9", "llama.cpp works with 0 to 4"),
    ],
)
def test_keys_that_llama_cpp_cannot_read(
    override: str, words: str, checkpoint: Get, tmp_path: Path
) -> None:
    with pytest.raises((errors.RecipeError, errors.NotLoadable), match=words):
        quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path, override_kv=[override])
    assert list(tmp_path.iterdir()) == []
