"""Options for formats that change nothing are said to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.jobs import Run, quantize
from quantkit.planning.build import Request
from quantkit.recipes.choose import Overrides
from tests.checkpoints import read_safetensors, write_safetensors
from tests.told import Told

Get = Callable[[str], Path]
KEPT = "llama.cpp never quantizes what it names: blk.0."


def notes(source: Path, types: list[str], **given: Any) -> list[str]:
    told, request = Told(), Request(Overrides(**given))
    quantize(source, types, Path("x"), request=request, run=Run(dry=True, progress=told))
    return [note for note in told.notes if "has no effect" in note]


@pytest.mark.parametrize(
    ("types", "patterns", "words"),
    [
        (["Q4_K_M"], {"ffn_gate_inp": "Q8_0"}, [f"ffn_gate_inp=Q8_0 has no effect: {KEPT}"]),
        (["Q4_K_M"], {"norm": "F16", "attn_v": "Q8_0"}, [f"norm=F16 has no effect: {KEPT}"]),
        (["Q4_K_M"], {"attn": "Q5_K", "attn_v": "Q8_0"}, ["what it names, an earlier one does"]),
        (["F16"], {"attn_v": "Q8_0"}, ["F16 gives all tensors that format"]),
        (["COPY"], {"attn_v": "Q8_0"}, ["COPY keeps all formats"]),
        (["Q4_K_L"], {"^output": "Q6_K"}, ["the type itself, decides on output.weight"]),
        # in one of two; another format for want of whole blocks; what it would have been anyway
        (["F16", "Q4_K_M"], {"attn_v": "Q8_0"}, []),
        (["Q4_K_M"], {".": "Q4_K"}, []),
        (["Q4_K_M"], {"ffn_gate_inp|attn_v": "Q8_0"}, []),
        (["Q4_K_M-moe"], {"attn_v": "Q8_0"}, []),
    ],
)
def test_patterns(
    types: list[str], patterns: dict[str, str], words: list[str], checkpoint: Get
) -> None:
    found = notes(checkpoint("mixtral-4x"), types, tensor_types=tuple(patterns.items()))
    assert len(found) == len(words)
    for note, part in zip(found, words, strict=True):
        assert part in note


def test_other_options(checkpoint: Get) -> None:
    source = checkpoint("mixtral-4x")
    assert notes(source, ["F16"], output_tensor_type="Q8_0", leave_output_tensor=True) == []
    ends = {"output_tensor_type": "Q8_0", "token_embedding_type": "Q6_K"}
    assert len(notes(source, ["COPY"], **ends)) == 2
    named = (("^output", "Q6_K"),)
    (note,) = notes(source, ["Q4_K_M"], output_tensor_type="Q8_0", tensor_types=named)
    assert "another option, or the type itself, decides on output.weight" in note


def test_an_output_that_is_the_embedding(broken: Callable[..., Path]) -> None:
    source = broken()
    tensors = read_safetensors(source / "model.safetensors")
    del tensors["lm_head.weight"]
    write_safetensors(source / "model.safetensors", tensors)
    (note,) = notes(source, ["Q8_0"], leave_output_tensor=True)
    assert note.endswith("the model has no output.weight, the embedding serves as both")
