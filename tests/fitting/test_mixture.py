"""The mixture for any number of experts: `--recipe moe`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantkit.cli import app
from quantkit.errors import RecipeError, UsageError
from quantkit.gguf.types import type_by_name
from quantkit.jobs import quantize
from quantkit.recipes.choose import Choice, Overrides, choose
from quantkit.recipes.facts import ModelFacts, category
from quantkit.recipes.file_types import LOW_FORMATS, MOE_FORMATS, find_recipe, with_mixture
from tests.checkpoints import FRANKENMOE

Get = Callable[[str], Path]
run = CliRunner().invoke


def mixtral(experts: int, layers: int = 32, width: int = 4096, ffn: int = 14336) -> list[Any]:
    """The matrices of a mixture of these sizes, as quantize orders them."""
    sizes = {
        "attn_k": (1024, width),
        "attn_output": (width, width),
        "attn_q": (width, width),
        "attn_v": (1024, width),
        "ffn_down_exps": (experts, width, ffn),
        "ffn_gate_exps": (experts, ffn, width),
        "ffn_up_exps": (experts, ffn, width),
    }
    ends = [(f"{n}.weight", (32000, width), "BF16") for n in ("output", "token_embd")]
    blocks = [(f"blk.{i}.{n}.weight", s, "BF16") for i in range(layers) for n, s in sizes.items()]
    return [*ends, *blocks]


def nbytes(tensors: list[Any], choices: list[Choice]) -> int:
    pairs = zip(tensors, choices, strict=True)
    return sum(type_by_name(c.format).row_bytes(prod(t[1])) for t, c in pairs)


@pytest.mark.parametrize(("experts", "ffn"), [(4, 14336), (8, 14336), (64, 1024), (256, 2048)])
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K_S", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"])
def test_the_mixture_for_any_number_of_experts(kind: str, experts: int, ffn: int) -> None:
    tensors = mixtral(experts, ffn=ffn)
    facts = ModelFacts("llama", 32, experts, 32, 8, False)
    plain = choose(find_recipe(kind), facts, tensors)
    ours = choose(find_recipe(f"{kind}-moe"), facts, tensors)
    assert 0.99 < nbytes(tensors, ours) / nbytes(tensors, plain) <= 1
    bits: dict[str, list[float]] = {}
    for (name, _, _), c in zip(tensors, ours, strict=True):
        t = type_by_name(c.format)
        bits.setdefault(category(name), []).append(8 * t.type_size / t.block_size)
    means = {role: sum(b) / len(b) for role, b in bits.items()}
    experts_bits = [means[role] for role in ("ffn_gate", "ffn_up", "ffn_down")]
    attention = [means[role] for role in ("attn_q", "attn_k", "attn_v", "attn_output")]
    assert min(attention) >= max(experts_bits) - (0.5 if experts == 4 else 0.1)
    assert means["attn_v"] >= means["attn_q"]
    assert means["ffn_down"] >= means["ffn_up"]


@pytest.mark.parametrize("kind", ["IQ1_M", "IQ2_XXS", "IQ2_M", "IQ3_S", "Q2_K"])
def test_the_mixture_with_importances(kind: str) -> None:
    """The low bits, but for tensors that the matrix has nothing for."""
    tensors = mixtral(8, layers=8)
    names = [name for name, _, _ in tensors if name not in ("output.weight", "token_embd.weight")]
    bare = "blk.3.ffn_up_exps.weight"
    important = frozenset(names) - {bare}
    facts = ModelFacts("llama", 8, 8, 32, 8, False, has_imatrix=True, importances=important)
    plain = choose(find_recipe(kind), facts, tensors)
    ours = choose(find_recipe(f"{kind}-moe"), facts, tensors)
    assert 0.97 < nbytes(tensors, ours) / nbytes(tensors, plain) <= 1
    formats = {t[0]: c.format for t, c in zip(tensors, ours, strict=True)}
    assert formats[bare] in MOE_FORMATS
    assert {formats[name] for name in ("output.weight", "token_embd.weight")} <= set(MOE_FORMATS)
    assert set(formats.values()) & set(LOW_FORMATS)


def test_what_a_person_chose_stays_in_the_mixture() -> None:
    tensors = mixtral(4, layers=4)
    facts = ModelFacts("llama", 4, 4, 32, 8, False)
    given = Overrides(output_tensor_type="Q8_0", tensor_types=(("attn_k", "Q2_K"),))
    found = {
        t[0]: c
        for t, c in zip(
            tensors, choose(find_recipe("Q4_K_M-moe"), facts, tensors, given), strict=True
        )
    }
    assert found["output.weight"] == ("Q8_0", None, True)
    assert found["blk.2.attn_k.weight"] == ("Q2_K", None, True)


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (["Q8_0-moe"], "types from IQ1_S to Q6_K, not Q8_0"),
        (["IQ2_M-moe"], "needs an importance matrix"),
        (["Q2_K_S-moe"], "not Q2_K_S"),
        (["MXFP4_MOE-moe"], "not MXFP4_MOE"),
        (["Q9_K-moe"], "unknown type 'Q9_K'"),
    ],
)
def test_types_without_a_mixture(types: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises((RecipeError, UsageError), match=words):
        quantize(FRANKENMOE, types, tmp_path)


def test_recipes_by_name(checkpoint: Get, tmp_path: Path) -> None:
    assert with_mixture(["Q4_K_M"], None) == with_mixture(["Q4_K_M"], "default") == ["Q4_K_M"]
    with pytest.raises(UsageError, match="unknown recipe 'dense'; recipes: default, moe"):
        with_mixture(["Q4_K_M"], "dense")
    with pytest.raises(RecipeError, match="the model has none"):
        quantize(checkpoint("llama-dense"), ["Q4_K_M-moe"], tmp_path)
    result = run(
        app, ["quantize", str(FRANKENMOE), "-t", "Q4_K_M", "--recipe", "MOE", "-o", str(tmp_path)]
    )
    assert result.exit_code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["frankenmoe-mergekit-Q4_K_M-moe.gguf"]
