"""The formats that llama-quantize gives, tensor by tensor; and what a person may ask otherwise."""

from __future__ import annotations

import functools
import gzip
import json
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import RecipeError, UsageError
from quantkit.gguf.container import KeyValue, uint32
from quantkit.gguf.types import type_by_name
from quantkit.model.model import Model, ModelTensor
from quantkit.planning.build import model_facts
from quantkit.recipes import file_types, llama_quant
from quantkit.recipes.choose import Choice, Overrides, choose, tensor_type
from quantkit.recipes.facts import ModelFacts, is_quantized
from quantkit.recipes.file_types import (
    ALIASES,
    RECIPES,
    Recipe,
    find_recipe,
    guessed_file_type,
)
from quantkit.recipes.llama_quant import FALLBACKS, RULES, Rule, more_bits

DATA = Path(__file__).parents[1] / "data"
Tensors = list[tuple[str, tuple[int, ...], str]]
BY_NAME = {r.name: r for r in RECIPES}


@functools.cache
def stored(name: str) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress((DATA / "quantize" / name).read_bytes())))


CASES: dict[str, Any] = stored("goldens.json.gz")["cases"]
ASSIGNMENTS: list[Any] = stored("assignments.json.gz")["cases"]


def facts_of(arch: str, kv: dict[str, Any], tensors: Tensors) -> ModelFacts:
    """As the planner finds them in a model's metadata."""

    def entry(key: str, value: Any) -> KeyValue:
        if isinstance(value, list):  # one INT32 a layer
            raw = struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
            return KeyValue(f"{arch}.{key}", raw)
        return uint32(f"{arch}.{key}", value)

    model_tensors = tuple(ModelTensor(name, shape, fmt, ()) for name, shape, fmt in tensors)
    return model_facts(
        Model("test", arch, model_tensors, {}, tuple(entry(k, v) for k, v in kv.items()))
    )


def formats(choices: list[Choice]) -> list[str]:
    return [c.format for c in choices]


@pytest.mark.parametrize("case", CASES)
def test_every_type_of_every_golden(case: str) -> None:
    golden = CASES[case]
    tensors = [(name, tuple(shape), fmt) for name, shape, fmt in golden["tensors"]]
    facts = facts_of(golden["arch"], golden["kv"], tensors)
    checked = 0
    for part in ("types", "types_imatrix"):
        facts = replace(facts, has_imatrix=part == "types_imatrix")
        for name, expected in golden.get(part, {}).items():
            if name not in BY_NAME:
                raise AssertionError(name)
            checked += 1
            if "importance matrix" in expected.get("fails", ""):
                with pytest.raises(RecipeError, match="importance matrix"):
                    choose(BY_NAME[name], facts, tensors)
            elif "fails" in expected:  # for reasons that are not the recipe's
                choose(BY_NAME[name], facts, tensors)
            else:
                assert formats(choose(BY_NAME[name], facts, tensors)) == expected["formats"]
                if BY_NAME[name].base:
                    assert BY_NAME[name].file_type == expected["file_type"]
                else:
                    assert expected["file_type"] == golden["file_type"]
    assert checked >= 8


@pytest.mark.parametrize("part", ["quantize", "quantize_imatrix"])
def test_every_type_of_the_frankenmoe(part: str) -> None:
    golden = json.loads((DATA / "frankenmoe-4x.golden.json").read_text())
    kv = {k: v["value"] for k, v in golden["convert"]["bf16"]["kv"].items() if "value" in v}
    arch = kv["general.architecture"]
    numbers = {
        k: kv[f"{arch}.{k}"]
        for k in ("block_count", "expert_count", "attention.head_count", "attention.head_count_kv")
    }
    types = {t["name"]: t["type"] for t in golden["convert"]["bf16"]["tensors"]}
    checked = 0
    for name, expected in golden[part].items():
        tensors = [
            (t["name"], tuple(t["shape"][::-1]), types[t["name"]]) for t in expected["tensors"]
        ]
        facts = replace(facts_of(arch, numbers, tensors), has_imatrix=part == "quantize_imatrix")
        if name not in BY_NAME:
            raise AssertionError(name)
        chosen = formats(choose(BY_NAME[name], facts, tensors))
        assert chosen == [t["type"] for t in expected["tensors"]], name
        checked += 1
    own = [r.name for r in RECIPES if not r.like]  # the others are llama-quantize's with options
    wanting = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS"}
    wanting.add("Q2_K_S")
    newer = {"Q1_0", "Q2_0"}  # than the golden
    assert {*own} - {*golden[part]} == newer | (wanting if part == "quantize" else set())
    assert checked == len(golden[part])


def run(case: dict[str, Any]) -> list[Choice]:
    """`choose` on a case of assignments.json.gz."""
    tensors = [(name, tuple(shape), fmt) for name, shape, fmt, _ in case["tensors"]]
    own = {f.name: case[f.name] for f in fields(ModelFacts) if f.name in case}
    facts = ModelFacts(tied=all(name != "output.weight" for name, _, _ in tensors), **own)
    overrides = dict(case["overrides"])
    patterns = tuple((pattern, fmt) for pattern, fmt in overrides.pop("tensor_types"))
    return choose(
        BY_NAME[case["recipe"]], facts, tensors, Overrides(tensor_types=patterns, **overrides)
    )


@pytest.mark.parametrize("i", range(len(ASSIGNMENTS)))
def test_rule_and_overrides_give_what_llama_cpps_functions_give(i: int) -> None:
    case = ASSIGNMENTS[i]
    if case["refused"]:
        with pytest.raises(RecipeError, match=case["refused"]):
            run(case)
    else:
        assert formats(run(case)) == [fmt for _, _, _, fmt in case["tensors"]]


def test_no_row_of_the_table_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RULES
    idle = []
    for row in whole:
        monkeypatch.setattr(llama_quant, "RULES", tuple(r for r in whole if r is not row))
        for case in ASSIGNMENTS:
            concerned = not row.recipes or case["recipe"] in row.recipes
            if concerned and not case["refused"]:
                try:
                    if formats(run(case)) != [fmt for _, _, _, fmt in case["tensors"]]:
                        break
                except RecipeError:
                    break
        else:
            idle.append(row)
    assert not idle


DENSE = ModelFacts("llama", 4, 0, 4, 4, tied=False)


def one(recipe: str, n: int, name: str = "blk.1.attn_q.weight", **overrides: Any) -> Choice:
    """The choice for a single tensor with rows of `n` weights."""
    tensors = [("output.weight", (8, 256), "BF16"), (name, (8, n), "BF16")]
    return choose(BY_NAME[recipe], DENSE, tensors, Overrides(**overrides))[1]


@pytest.mark.parametrize(
    ("recipe", "n", "expected"),
    [
        ("Q4_K_M", 256, Choice("Q4_K")),
        ("Q4_K_M", 288, Choice("Q5_0", "Q4_K")),
        ("Q4_K_M", 100, Choice("F16", "Q4_K")),
        ("Q6_K", 96, Choice("Q8_0", "Q6_K")),
        ("Q8_0", 40, Choice("F16", "Q8_0")),
        ("IQ4_XS", 64, Choice("IQ4_NL", "IQ4_XS")),
        ("TQ2_0", 64, Choice("Q4_0", "TQ2_0")),
        ("BF16", 100, Choice("BF16")),
    ],
)
def test_a_choice_says_what_it_fell_back_from(recipe: str, n: int, expected: Choice) -> None:
    assert one(recipe, n) == expected


def test_the_output_falls_back_where_its_rows_do_not_fit() -> None:
    tensors = [("output.weight", (8, 288), "BF16")]
    assert choose(BY_NAME["Q4_0"], DENSE, tensors) == [Choice("Q8_0", "Q6_K")]


def test_overrides_are_marked_and_fall_back_too() -> None:
    assert one("Q4_K_M", 256, tensor_types=(("attn_q", "Q6_K"),)) == Choice("Q6_K", None, True)
    assert one("Q4_K_M", 64, tensor_types=(("attn_q", "Q6_K"),)) == Choice("Q8_0", "Q6_K", True)
    assert one("Q4_K_M", 256, pure=True) == Choice("Q4_K")
    first = (("blk.1", "Q5_0"), ("attn_q", "Q6_K"))
    assert one("Q4_K_M", 256, tensor_types=first).format == "Q5_0"
    assert one("F16", 256, tensor_types=(("attn_q", "Q6_K"),)) == Choice("F16")


def test_an_override_that_does_not_fit_the_row_says_so() -> None:
    with pytest.raises(RecipeError, match=r"token_embd.weight cannot be Q4_K.* 288 .*256"):
        one("Q8_0", 288, "token_embd.weight", token_embedding_type="Q4_K")


def test_a_pattern_that_matches_nothing_is_an_error_with_near_names() -> None:
    with pytest.raises(RecipeError, match=r"atn_q=Q6_K matches no tensor; near names: attn_q"):
        one("Q4_K_M", 256, tensor_types=(("atn_q", "Q6_K"),))


def test_classes_of_characters_are_llama_quantize_s() -> None:
    """std::regex knows `[[:digit:]]`, which Python takes for five letters and a colon."""
    named = tensor_type(r"blk\.[[:DIGIT:]_]+\.attn_[[:alpha:]]\.[^[:space:]]*=Q6_K")
    assert one("Q4_K_M", 256, tensor_types=(named,)).format == "Q6_K"
    with pytest.raises(UsageError, match="no class of characters is called digits"):
        tensor_type("blk.[[:digits:]]=Q6_K")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_q", "not PATTERN=FORMAT"),
        ("=Q8_0", "not PATTERN=FORMAT"),
        ("attn_q=", "not PATTERN=FORMAT"),
        ("attn_(q=Q8_0", "not a regular expression"),
        ("attn_q=Q4_KM", "unknown format 'Q4_KM'; did you mean Q4_K"),
    ],
)
def test_a_malformed_tensor_type_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tensor_type(text)


def test_a_tensor_type_is_lower_cased_and_its_format_spelled_as_ggml_does() -> None:
    assert tensor_type("Blk.0.ATTN_q=q6_k") == ("blk.0.attn_q", "Q6_K")


@pytest.mark.parametrize(
    ("name", "found"), [("q4_k", "Q4_K_M"), ("Q3_K", "Q3_K_M"), ("iq4_xs", "IQ4_XS")]
)
def test_types_are_found_by_alias_and_in_any_case(name: str, found: str) -> None:
    assert find_recipe(name).name == found


def test_an_unknown_type_names_its_neighbours() -> None:
    for typed, near in (("statc", "static"), ("i2", "IQ2_S or IQ2_M"), ("defalt", "default")):
        with pytest.raises(UsageError, match=rf"unknown type '{typed}'; did you mean {near}\? "):
            find_recipe(typed)
    with pytest.raises(UsageError, match="unknown type 'Q4_KMM'; did you mean Q4_K_M"):
        find_recipe("Q4_KMM")


def test_the_tables_do_not_contradict_each_other() -> None:
    assert len(BY_NAME) == len(RECIPES)
    assert not {*BY_NAME} & {*ALIASES}
    numbers = [r.file_type for r in RECIPES if r.base and not r.like]
    assert len({*numbers}) == len(numbers)
    named = {name for rule in RULES for name in rule.recipes}
    assert named <= {*BY_NAME}
    bases = {r.base for r in RECIPES}
    assert {*FALLBACKS, *FALLBACKS.values()} <= bases
    assert {rule.format for rule in RULES} <= bases
    assert all(type_by_name(base) for base in bases if base)


def test_copy_keeps_what_is_there_whatever_is_asked() -> None:
    copy = one("COPY", 100, token_embedding_type="Q8_0", tensor_types=(("attn_q", "Q6_K"),))
    assert copy == Choice("BF16")


@pytest.mark.parametrize(
    ("found", "file_type"),
    [
        (["F32", "Q4_K", "Q4_K"], 15),
        (["F32", "BF16"], 0),  # the first to reach the count
        (["BF16", "F32"], 32),
        (["MXFP4"], 0),
        ([], 0),
    ],
)
def test_the_file_type_of_an_unlabelled_copy_is_guessed(found: list[str], file_type: int) -> None:
    assert guessed_file_type(found) == file_type | 1024


def test_what_is_never_quantized() -> None:
    assert not is_quantized("blk.0.attn_norm.weight", (256,))
    assert not is_quantized("blk.0.attn_norm.weight", (8, 256))
    assert not is_quantized("blk.0.ffn_gate_inp.weight", (4, 256))
    assert not is_quantized("blk.0.attn_q.bias", (4, 256))
    assert not is_quantized("blk.0.attn_q.weight", (1, 1, 256))
    assert is_quantized("blk.0.attn_q.weight", (2, 1, 256))
    assert is_quantized("blk.0.attn_v_b.weight", (4, 256))
    assert not is_quantized("blk.0.attn_v_b.weight", (4, 256), "glm5-next")


def test_the_layers_that_matter_most() -> None:
    assert [i for i in range(32) if more_bits(i, 32)] == [
        *range(4),
        6,
        9,
        12,
        15,
        18,
        21,
        24,
        27,
        28,
        29,
        30,
        31,
    ]


def test_a_recipe_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is promised to whoever adds a type: a row of RECIPES, and rows of RULES."""
    mine = Recipe("Q4_K_Q8", 15, "Q4_K", "attention in Q8_0")
    row = Rule("attn_q", ("Q4_K_Q8",), "Q8_0")
    monkeypatch.setattr(llama_quant, "RULES", (row, *RULES))
    monkeypatch.setattr(file_types, "RECIPES", (*RECIPES, mine))
    tensors: Tensors = [
        ("blk.0.attn_k.weight", (8, 256), "F32"),
        ("blk.0.attn_q.weight", (8, 256), "F32"),
    ]
    assert formats(choose(find_recipe("Q4_K_Q8"), DENSE, tensors)) == ["Q4_K", "Q8_0"]
